"""What a run will take, by what a dry run has done of it; and how that is said."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from blowtorch.clock import Interval, Time
from blowtorch.options import RunOptions
from blowtorch.state import RunState
from blowtorch.training.session import Session


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
        num_steps: that were done.
        seconds_per_step: None where there was no step.
        validations: by name.
        checkpoint_bytes: the size of one checkpoint.
        checkpoint_seconds: from its copy until it could be read.
    """

    num_steps: int = 0
    seconds_per_step: float | None = None
    validations: dict[str, Forecast] = field(default_factory=dict)
    checkpoint_bytes: int = 0
    checkpoint_seconds: float = 0.0


def report(session: Session, findings: Findings) -> Iterator[str]:
    """Yield what was found, in lines for people."""
    state = session.training.state
    options = state.options
    steps, seconds = state.total_steps, findings.seconds_per_step
    yield "dry run: everything works, and this is what the run will be like"
    if seconds is not None:
        yield f"  steps        {findings.num_steps} done of {_or_unknown(steps)}, {_in_words(seconds)} each"
    for name, forecast in findings.validations.items():
        yield f"  {name:<12} {forecast}"
    size, kept = findings.checkpoint_bytes, most_checkpoints(options)
    yield f"  checkpoint   {format_size(size)} written, verified and loaded in {_in_words(findings.checkpoint_seconds)}"
    if session.training.checkpoints.are_local:
        free = shutil.disk_usage(_existing(Path(options.save_path))).free
        yield f"  disk         {format_size(kept * size)} for up to {kept} checkpoints; {format_size(free)} are free"
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


def foresee_end(state: RunState, seconds_per_step: float | None) -> Time | None:
    """Return where the clock will stand at the end of the run; None where its length is not known."""
    steps = state.total_steps
    if steps is None or seconds_per_step is None:
        return None
    epochs = steps // state.steps_per_epoch if state.steps_per_epoch else 0
    return Time(steps, epochs, steps * state.samples // max(1, state.step), steps * seconds_per_step)


def most_checkpoints(options: RunOptions) -> int:
    """Return how many checkpoints of a run are there at most at a time."""
    return options.keep_last + options.keep_best + 1  # the new one is there before an old one is deleted


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.absolute().parent)


def _or_unknown(number: int | None) -> str:
    return "an unknown number" if number is None else f"{number:,}"


def format_size(count: float) -> str:
    """Write a number of bytes for people.

    >>> format_size(1_234_567)
    '1.2 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _in_words(seconds: float) -> str:
    return Interval(seconds, "seconds").in_words()
