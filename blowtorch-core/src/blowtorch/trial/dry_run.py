"""A dry run: everything that a run does is done once, on the real thing, and nothing of it is left behind.

Two steps, two batches of each validation, a checkpoint that is written, verified and loaded again, and loggers that are
started, fed and finished. What that took tells what the whole run will take.
"""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from blowtorch.clock import Time
from blowtorch.errors import CheckpointError, ExtensionError
from blowtorch.options import RunOptions
from blowtorch.state import RunState
from blowtorch.training.assembly import Training
from blowtorch.training.between_steps import notify, record_validation
from blowtorch.training.loop import begin, drive_epoch, finish, finish_epoch, report_unread_overrides, train_epoch
from blowtorch.training.session import Session
from blowtorch.training.validation import Validation, validate

_TIMES = 2  # steps, and batches of each validation


@dataclass(frozen=True)
class Pace:
    """How long a validation takes.

    Attributes:
        num_done: batches that were tried; 0 for a function that drives a validation and takes none.
        num_batches: of a whole one; None when unknown.
        seconds: of a batch, or of all of one that takes none.
        num_times: how often it will be done; None when unknown.
    """

    num_done: int
    num_batches: int | None
    seconds: float
    num_times: int | None

    @property
    def total(self) -> float | None:
        """Seconds of all of them; None when unknown."""
        parts = 1 if self.num_done == 0 else self.num_batches
        return None if parts is None or self.num_times is None else self.seconds * parts * self.num_times

    def __str__(self) -> str:
        if self.num_done == 0:
            return f"done once in {_duration(self.seconds)}; {_or_unknown(self.num_times)} times"
        done = f"{self.num_done} batches done of {_or_unknown(self.num_batches)}"
        return f"{done}, {_duration(self.seconds)} each; {_or_unknown(self.num_times)} times"


@dataclass
class Findings:
    """What a dry run has measured.

    Attributes:
        seconds_per_step: None where there was no step.
        validations: by name.
        checkpoint_bytes: the size of one checkpoint.
        checkpoint_seconds: from its copy until it could be read.
    """

    seconds_per_step: float | None = None
    validations: dict[str, Pace] = field(default_factory=dict)
    checkpoint_bytes: int = 0
    checkpoint_seconds: float = 0.0


def as_rehearsal(options: RunOptions) -> RunOptions:
    """The options of a dry run: a new run beside those that exist; no recording disturbs its steps."""
    return dataclasses.replace(options, resume="never", run_name="dry-run", log_every="2 steps", sanity_batches=0)


def rehearse(training: Training, state: RunState) -> Findings:
    """Do everything that a run does, two times at most.

    Raises:
        CheckpointError: the checkpoint cannot be written or loaded, or the disk has no room for those of the run.
    """
    findings = Findings()
    intervals = [None if each.trigger is None else each.trigger.interval for each in training.validations]
    starts = [each.is_at_start for each in training.validations]
    for validation in training.validations:
        validation.trigger, validation.is_at_start = None, False  # done below, for two batches only
    begin(training, state)
    state.begin_epoch()
    notify(training, state, "epoch_start")
    training.batches.limit_to(_TIMES * state.options.accumulate)
    marks: list[float] = []
    training.callbacks.step_end.append(lambda *_: marks.append(time.perf_counter()))
    started = time.perf_counter()
    (train_epoch if training.function.kind == "train_step" else drive_epoch)(training, state)
    findings.seconds_per_step = _last_gap([started, *marks])
    for validation, interval, is_at_start in zip(training.validations, intervals, starts, strict=True):
        num_done, seconds = time_validation(training, state, validation)
        end = _foresee_end(state, findings.seconds_per_step)
        num_times = None if end is None else (0 if interval is None else interval.count(end)) + is_at_start
        pace = Pace(num_done, validation.batches.num_batches, seconds, num_times)
        findings.validations[validation.name] = pace
    finish_epoch(training, state)
    report_unread_overrides(state)
    started = time.perf_counter()
    finish(training, state)
    findings.checkpoint_bytes = training.checkpoints.try_to_load(state)
    findings.checkpoint_seconds = time.perf_counter() - started
    _check_room(training, state, findings.checkpoint_bytes)
    return findings


def time_validation(training: Training, state: RunState, validation: Validation) -> tuple[int, float]:
    """Try a validation on two batches; how many it took, and the seconds of the last, or of all where it took none."""
    begun, taken = [], []
    function, move_on = validation.function.function, validation.batches.iterate

    def start(epoch: int, position: int = 0) -> Iterator[Any]:
        for batch in move_on(epoch, position):
            taken.append(time.perf_counter())
            yield batch

    def call(**arguments: Any) -> Any:
        begun.append(time.perf_counter())
        return function(**arguments)

    with (
        training.returns.objects.put_aside(),
        _in_place_of(validation.function, "function", call),
        _in_place_of(validation.batches, "iterate", start),
    ):
        metrics = validate(validation, state, most_batches=_TIMES)
    ended = time.perf_counter()
    record_validation(training, state, validation.name, metrics)
    return len(taken), ended - (taken or begun)[-1]


@contextlib.contextmanager
def _in_place_of(owner: Any, name: str, substitute: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, substitute)
    try:
        yield
    finally:
        setattr(owner, name, original)


def missing_folders(options: RunOptions) -> list[Path]:
    """The folders that a run would make to have its own in, the innermost first."""
    path = Path(options.save_path).absolute()
    return [each for each in (path, *path.parents) if not each.exists()]


def remove_traces(session: Session, made: Sequence[Path]) -> None:
    """Delete the run folder and the checkpoints, wherever these are, and the folders that were made for it."""
    if hasattr(session, "training"):
        session.training.checkpoints.delete_all()
    shutil.rmtree(session.folder.path, ignore_errors=True)
    with contextlib.suppress(OSError):  # another run has begun there meanwhile
        for folder in made:
            folder.rmdir()


def check_loggers(session: Session) -> None:
    """Raise an `ExtensionError` for a logger that did not take all that it was given."""
    for feed in session.feeds:
        if not feed.is_finished or feed.skipped:
            raise ExtensionError(
                f"the dry run failed: {feed.trouble or f'{feed.plugin.label} is too slow'}; a run would go on without "
                f"this logger, which could catch up later"
            )


def report(session: Session, findings: Findings) -> Iterator[str]:
    """What a dry run has found, in lines for people."""
    state, options = session.state, session.state.options
    steps, seconds = state.total_steps, findings.seconds_per_step
    yield "dry run: everything works, and this is what the run will be like"
    if seconds is not None:
        yield f"  steps        {state.step} done of {_or_unknown(steps)}, {_duration(seconds)} each"
    for name, pace in findings.validations.items():
        yield f"  {name:<12} {pace}"
    size, kept = findings.checkpoint_bytes, _most_checkpoints(options)
    yield f"  checkpoint   {_size(size)} written, verified and loaded in {_duration(findings.checkpoint_seconds)}"
    if session.training.checkpoints.are_local:
        free = shutil.disk_usage(_existing(Path(options.save_path))).free
        yield f"  disk         {_size(kept * size)} for up to {kept} checkpoints; {_size(free)} are free"
    if session.feeds:
        names = ", ".join(feed.plugin.name for feed in session.feeds)
        yield f"  loggers      {names}: started, fed and finished; what they keep elsewhere stays there"
    yield f"  whole run    {_foresee(findings, steps)}"


def _foresee(findings: Findings, steps: int | None) -> str:
    if steps is None or findings.seconds_per_step is None:
        return "its length is not known, so neither is its time"
    total = steps * findings.seconds_per_step
    validations = [pace.total for pace in findings.validations.values()]
    if None in validations:
        return f"about {_duration(total)}, and its validations"
    return f"about {_duration(total + sum(each for each in validations if each is not None))}"


def _foresee_end(state: RunState, seconds_per_step: float | None) -> Time | None:
    steps = state.total_steps
    if steps is None or seconds_per_step is None:
        return None
    epochs = steps // state.steps_per_epoch if state.steps_per_epoch else 0
    return Time(steps, epochs, steps * state.samples // max(1, state.step), steps * seconds_per_step)


def _last_gap(marks: list[float]) -> float | None:
    return marks[-1] - marks[-2] if len(marks) > 1 else None


def _most_checkpoints(options: RunOptions) -> int:
    return options.keep_last + options.keep_best + 1  # the new one is there before an old one is deleted


def _check_room(training: Training, state: RunState, size: int) -> None:
    """Raise a `CheckpointError` if the disk has no room for the checkpoints that the run will keep."""
    needed, free = _most_checkpoints(state.options) * size, shutil.disk_usage(state.folder).free
    if training.checkpoints.are_local and free < needed:
        raise CheckpointError(
            f"the run keeps up to {_most_checkpoints(state.options)} checkpoints of {_size(size)}, {_size(needed)} in "
            f"all, and {state.folder.parent} has {_size(free)} left; free some, or lower keep_last or keep_best"
        )


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.absolute().parent)


def _or_unknown(number: int | None) -> str:
    return "an unknown number" if number is None else f"{number:,}"


def _size(count: float) -> str:
    """A number of bytes.

    >>> _size(1_234_567)
    '1.2 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if seconds >= 60 else f"{seconds:.2g} s"
