"""Where a run stands: the account of the core, which no extension can change.

Extensions and scripts see it through `RunState`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blowtorch.clock import NEVER, Time, monotonic_seconds


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint: complete, verified by its manifest, and safe to load once it is published.

    Attributes:
        name: `step-00000120`.
        step: optimizer steps done when it was taken.
        metric: the value of the option `checkpoint_metric` measured at that step, or None.
        path: its directory; where another checkpoint backend keeps it, words that say so, and
            `open_run(folder).load_model` fetches it.
    """

    name: str
    step: int
    metric: float | None
    path: Path


@dataclass(slots=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        epoch: number of the epoch under way, or of the last one when it is done; the first is 1.
        batch: batches of this epoch that are done.
        is_epoch_done: whether the epoch has ended and everything that happens at its end is done.
        samples: samples trained on.
        metrics: the last recorded value of every metric, by its recorded name; up to date after `catch_up`.
        measured_at: the step at which each of `metrics` was recorded.
        validations: the names of those that the run does.
        best: the best checkpoint so far by `options.checkpoint_metric`.
        total_steps: optimizer steps of the whole run; None when unknown.
        earlier_total_steps: the same as it was when the checkpoint was taken from which the run goes on.
        num_batches: of an epoch; None when unknown.
        earlier_num_batches: the same as it was when that checkpoint was taken.
        steps_per_epoch: None when unknown.
        batch_size: that of the train loader, where the samples of its epochs are known by their place; else None.
        extra_steps: how many more steps than now the epochs that are done had, since their steps were smaller.
        limits: the options `max_epochs` and `max_steps`, as they hold.
        num_skipped: steps in a row that were left out, since their gradients were not finite.
        stop_reason: why the run ends after the current step; it is then finished.
        interruption: what wants the run to stop early, such as SIGTERM; it is then stopped, to be continued.
        is_shared: whether several processes train, which have to agree before anything ends the run.
        wanted_stop: why this process alone wants the run to end, until all have agreed on it.
        wanted_interruption: what has asked this process alone to stop early, until all have agreed on it.
        agreed_seconds: what `seconds` was when the processes agreed on it last; None where this one is alone.
        next_event: the first step after which the loop has to look whether anything is due; 0 for the next one.
        earlier_seconds: how long the processes that this one continues have trained.
        started: when this process began to train, on the monotonic clock.
        catch_up: reads what was recorded and is still on its way from the device.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    is_epoch_done: bool = True
    samples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    measured_at: dict[str, int] = field(default_factory=dict)
    validations: tuple[str, ...] = ()
    best: Checkpoint | None = None
    total_steps: int | None = None
    earlier_total_steps: int | None = None
    num_batches: int | None = None
    earlier_num_batches: int | None = None
    steps_per_epoch: int | None = None
    batch_size: int | None = None
    extra_steps: int = 0
    limits: tuple[int | None, int | None] = (None, None)
    num_skipped: int = 0
    stop_reason: str | None = None
    interruption: str | None = None
    is_shared: bool = False
    wanted_stop: str | None = None
    wanted_interruption: str | None = None
    agreed_seconds: float | None = None
    next_event: int = NEVER
    earlier_seconds: float = 0.0
    started: float = field(default_factory=monotonic_seconds)
    catch_up: Callable[[], None] = lambda: None

    @property
    def seconds(self) -> float:
        """Seconds that the run has been under way, those of the processes that it continues included."""
        return self.read_clock() if self.agreed_seconds is None else self.agreed_seconds

    def read_clock(self) -> float:
        """Return `seconds` by the clock of this process."""
        return self.earlier_seconds + monotonic_seconds() - self.started

    @property
    def is_ending(self) -> bool:
        """Whether something wants the run to end after the current step."""
        return self.interruption is not None or self.stop_reason is not None

    @property
    def is_within_epoch(self) -> bool:
        """Whether the run stands in the middle of an epoch."""
        return self.batch > 0 and not self.is_epoch_done

    def count_total_steps(self) -> None:
        """Work out how many steps the whole run has."""
        max_epochs, max_steps = self.limits
        limits = [] if max_steps is None else [max_steps]
        if max_epochs is not None and self.steps_per_epoch is not None:
            limits.append(max_epochs * self.steps_per_epoch + self.extra_steps)
        self.total_steps = min(limits, default=None)

    def time(self) -> Time:
        """Read the clock."""
        epochs = self.epoch if self.is_epoch_done else self.epoch - 1
        return Time(self.step, epochs, self.samples, self.seconds)

    def stamp(self) -> dict[str, Any]:
        """Return what every event of the record says of its moment."""
        return {"step": self.step, "epoch": self.epoch, "time": time.time()}

    def start_epoch(self) -> None:
        """Go on to the next epoch."""
        self.epoch += 1
        self.batch = 0
        self.is_epoch_done = False

    def stop(self, reason: str) -> None:
        """End the run after the current step: it is finished. Of several processes, all have to agree first."""
        if self.is_shared:
            self.wanted_stop = reason
        else:
            self.stop_reason = reason
            self.look_soon()

    def interrupt(self, cause: str) -> None:
        """Stop the run after the current step, to be continued; safe in a signal handler and in any thread."""
        if self.is_shared:
            self.wanted_interruption = cause
        else:
            self.interruption = cause
            self.look_soon()

    def agree(self, stop_reason: str | None, interruption: str | None) -> None:
        """Do what the processes have agreed on: end the run, stop it, or nothing."""
        self.stop_reason = self.stop_reason or stop_reason
        self.interruption = self.interruption or interruption
        self.wanted_stop = self.wanted_interruption = None

    def look_soon(self) -> None:
        """Have the loop look after its next step whether anything is due; several processes look when all do."""
        if not self.is_shared:
            self.next_event = 0

    def measured_now(self) -> dict[str, float]:
        """Return the metrics that were recorded at this very step."""
        return {name: value for name, value in self.metrics.items() if self.measured_at[name] == self.step}
