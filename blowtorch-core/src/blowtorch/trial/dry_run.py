"""A dry run: everything that a run does is done once, on the real thing, and nothing of it is left behind.

Two steps, two batches of each validation, a checkpoint that is written, verified and loaded again, and loggers that are
started, fed and finished. What that took tells what the whole run will take.
"""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from blowtorch.clock import Interval, Time, Trigger
from blowtorch.errors import CheckpointError, ExtensionError
from blowtorch.options import RunOptions
from blowtorch.script.script import Script
from blowtorch.state import RunState
from blowtorch.streams import derive_seed
from blowtorch.training.loop import train
from blowtorch.training.session import Session
from blowtorch.training.training import Training
from blowtorch.trial.untouched import left_as_it_was

_TIMES = 2  # steps, and batches of each validation


@dataclass(frozen=True)
class Forecast:
    """How long a validation of the run will take, by what was tried of it.

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
        batches = 1 if self.num_done == 0 else self.num_batches
        return None if batches is None or self.num_times is None else self.seconds * batches * self.num_times

    def __str__(self) -> str:
        if self.num_done == 0:
            return f"done once in {_in_words(self.seconds)}; {_or_unknown(self.num_times)} times"
        done = f"{self.num_done} batches done of {_or_unknown(self.num_batches)}"
        return f"{done}, {_in_words(self.seconds)} each; {_or_unknown(self.num_times)} times"


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
    validations: dict[str, Forecast] = field(default_factory=dict)
    checkpoint_bytes: int = 0
    checkpoint_seconds: float = 0.0


def do_dry_run(
    script: Script,
    model: nn.Module,
    options: RunOptions,
    make_session: Callable[[RunOptions], Session],
) -> Session:
    """Do what the option `dry_run` asks for, and print what was found; return the session that did it.

    Args:
        script: whose objects are left as they were.
        model: is left as it was.
        options: of the run that the dry run is for.
        make_session: makes one with given options, which deletes what it has kept.

    Raises:
        CheckpointError: the checkpoint cannot be written or loaded, or the disk has no room for those of the run.
        ExtensionError: a logger did not take all that it was given.
    """
    new_folders = missing_folders(options)
    with left_as_it_was(script, model, derive_seed(script.seed, "dry_run"), options.callbacks):
        session = make_session(dry_run_options(options))
        try:
            with session as training:
                findings = try_everything(training)
            check_loggers(session)
        finally:
            remove_empty(new_folders)
    if session.status == "finished":
        for line in report(session, findings):
            print(line)
    return session


def dry_run_options(options: RunOptions) -> RunOptions:
    """Return the options of a dry run: a new run beside those that exist; no recording disturbs its steps."""
    return dataclasses.replace(options, resume="never", run_name="dry-run", log_every="2 steps", sanity_batches=0)


def try_everything(training: Training) -> Findings:
    """Do everything that a run does, two times at most.

    Raises:
        CheckpointError: the checkpoint cannot be written or loaded, or the disk has no room for those of the run.
    """
    findings, state = Findings(), training.state
    asked = [(validation.trigger, validation.is_at_start) for validation in training.validations]
    wholes = [validation.batches.num_batches for validation in training.validations]
    for validation in training.validations:
        validation.trigger, validation.is_at_start = Trigger(Interval.parse("1 epoch")), False
        validation.batches.limit_to(_TIMES)
    training.steps.batches.limit_to(_TIMES * state.options.accumulate)
    marks = [time.perf_counter()]
    training.steps.callbacks.watch_steps(lambda batch, metrics: marks.append(time.perf_counter()))
    train(training, most_epochs=1)
    findings.seconds_per_step = marks[-1] - marks[-2] if len(marks) > 1 else None
    end = _foresee_end(state, findings.seconds_per_step)
    for validation, (trigger, is_at_start), whole in zip(training.validations, asked, wholes, strict=True):
        num_times = None if end is None else (0 if trigger is None else trigger.interval.count(end)) + is_at_start
        pace = validation.pace
        findings.validations[validation.name] = Forecast(pace.num_batches, whole, pace.seconds, num_times)
    findings.checkpoint_bytes = training.checkpoints.try_to_load()
    saved_since = max(marks[-1], *(validation.pace.ended for validation in training.validations), 0.0)
    findings.checkpoint_seconds = time.perf_counter() - saved_since
    _check_room(training, state, findings.checkpoint_bytes)
    return findings


def missing_folders(options: RunOptions) -> list[Path]:
    """Return the folders that a run would make to have its own in, the innermost first."""
    path = Path(options.save_path).absolute()
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(new_folders: Sequence[Path]) -> None:
    """Delete folders that were made for a dry run, the innermost first."""
    with contextlib.suppress(OSError):  # another run has begun there meanwhile
        for folder in new_folders:
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
    """Yield what was found, in lines for people."""
    state = session.training.state
    options = state.options
    steps, seconds = state.total_steps, findings.seconds_per_step
    yield "dry run: everything works, and this is what the run will be like"
    if seconds is not None:
        yield f"  steps        {state.step} done of {_or_unknown(steps)}, {_in_words(seconds)} each"
    for name, forecast in findings.validations.items():
        yield f"  {name:<12} {forecast}"
    size, kept = findings.checkpoint_bytes, _most_checkpoints(options)
    yield f"  checkpoint   {_size(size)} written, verified and loaded in {_in_words(findings.checkpoint_seconds)}"
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
    validations = [forecast.total for forecast in findings.validations.values()]
    if None in validations:
        return f"about {_in_words(total)}, and its validations"
    return f"about {_in_words(total + sum(seconds for seconds in validations if seconds is not None))}"


def _foresee_end(state: RunState, seconds_per_step: float | None) -> Time | None:
    steps = state.total_steps
    if steps is None or seconds_per_step is None:
        return None
    epochs = steps // state.steps_per_epoch if state.steps_per_epoch else 0
    return Time(steps, epochs, steps * state.samples // max(1, state.step), steps * seconds_per_step)


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
    """Write a number of bytes for people.

    >>> _size(1_234_567)
    '1.2 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _in_words(seconds: float) -> str:
    return Interval(seconds, "seconds").in_words()
