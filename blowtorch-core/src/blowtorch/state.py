"""`RunState`: the one carrier of everything that changes while a run is under way."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blowtorch.clock import NEVER, Time
from blowtorch.errors import ScriptError, nearest, warn

if TYPE_CHECKING:
    import torch
    from torch import nn

    from blowtorch.config.config import Config
    from blowtorch.options import RunOptions

REDUCTIONS: dict[str, Callable[[Any, Any], Any]] = {  # of what there was and what came; no tensor is waited for
    "sum": operator.add,
    "max": lambda before, value: _choose("maximum", max, before, value),
    "min": lambda before, value: _choose("minimum", min, before, value),
    "last": lambda before, value: value,
}


def _choose(of_tensors: str, of_numbers: Callable[..., Any], before: Any, value: Any) -> Any:
    import torch

    if isinstance(before, torch.Tensor) and isinstance(value, torch.Tensor):
        return getattr(torch, of_tensors)(before, value)
    return math.nan if math.isnan(before) or math.isnan(value) else of_numbers(before, value)  # as of tensors


@dataclass(frozen=True)
class RunInfo:
    """What an extension is told about the run; plain data, the same in every process.

    Attributes:
        id: unique for ever, and the same after a resume: a tracker's own run can be found again by it.
        name: the folder's name without its time, such as `brave-otter-3`.
        folder: the run folder.
        logger_folder: a folder for this extension alone, kept over restarts; None where there is none.
        config: the resolved configuration, secrets masked.
        resumed: whether the run continues an earlier one.
    """

    id: str
    name: str
    folder: Path
    logger_folder: Path | None
    config: Mapping[str, Any]
    resumed: bool


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is published: complete, verified by its manifest, and safe to load.

    Attributes:
        name: `step-00000120`.
        step: optimizer steps done when it was taken.
        metric: the value of the option `checkpoint_metric` measured at that step, or None.
        path: its directory, or where a backend keeps it, in words.
    """

    name: str
    step: int
    metric: float | None
    path: Path


@dataclass
class RunState:
    """Where a run stands, and what it works with.

    Attributes:
        info: the run as extensions are told of it.
        options: the options that hold.
        config: the resolved configuration.
        folder: the run folder.
        seed: the seed from which every random stream is derived.
        device: where the model and the batches are.
        model: the model in training.
        compiled_model: what `torch.compile` made of it, which shares its weights; None without the option `compile`.
        averaged: weights that stand in for those of the model wherever it is judged, by the names of its `state_dict`;
            a callback that averages weights sets it when the run starts, to a mapping that it fills later.
        earlier_average: what `averaged` was in the checkpoint from which the run goes on, for the callback to take.
        optimizers: by name; a single one is called `optimizer`.
        is_resumed: whether this process continues an earlier one.
        step: optimizer steps done.
        epoch: number of the epoch under way, or of the last one when it is done; the first is 1.
        batch: batches of this epoch that are done.
        is_epoch_done: whether the epoch has ended and everything that happens at its end is done.
        samples: samples trained on.
        metrics: the last recorded value of every metric, by its recorded name.
        measured_at: the step at which each of `metrics` was recorded.
        best: the best checkpoint so far by `options.checkpoint_metric`.
        total_steps: optimizer steps of the whole run; None when unknown.
        earlier_total_steps: the same as it was when the checkpoint was taken from which the run goes on.
        steps_per_epoch: None when unknown.
        stop_reason: set it to a sentence to end the run after the current step; the run is then finished.
        interruption: what wants the run to stop early, such as SIGTERM; the run is then stopped, to be continued.
        num_skipped: steps that have been left out in a row, since their gradients were not finite.
        logged: what `log` was given and nothing has recorded yet.
        reductions: what is recorded of each name that was logged: `mean`, `sum`, `max`, `min` or `last`.
        is_trying: whether what happens now is tried alone, so that nothing of it is recorded.
        listeners: called with every line that the run says.
        next_event: the next step after which anything can be due.
        reported: what has been warned of once and need not be again.
    """

    info: RunInfo
    options: RunOptions
    config: Config
    folder: Path
    seed: int
    device: torch.device
    model: nn.Module
    compiled_model: Any = None
    averaged: Mapping[str, torch.Tensor] | None = None
    earlier_average: Mapping[str, torch.Tensor] | None = None
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    is_resumed: bool = False
    step: int = 0
    epoch: int = 0
    batch: int = 0
    is_epoch_done: bool = True
    samples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    measured_at: dict[str, int] = field(default_factory=dict)
    best: Checkpoint | None = None
    total_steps: int | None = None
    earlier_total_steps: int | None = None
    steps_per_epoch: int | None = None
    stop_reason: str | None = None
    interruption: str | None = None
    num_skipped: int = 0
    logged: dict[str, Any] = field(default_factory=dict)
    reductions: dict[str, str] = field(default_factory=dict)
    is_trying: bool = False
    listeners: list[Callable[[str], None]] = field(default_factory=list)
    next_event: int = NEVER
    reported: set[str] = field(default_factory=set)
    _earlier_seconds: float = 0.0
    _started: float = field(default_factory=time.monotonic)
    _write_console_log: Callable[[str], None] = lambda _: None
    _append: Callable[..., None] = lambda event, **values: None
    _media: tuple[int, list[str]] = field(default_factory=lambda: (0, []))

    @property
    def seconds(self) -> float:
        """Seconds that the run has been under way, those of the processes that it continues included."""
        return self._earlier_seconds + time.monotonic() - self._started

    @property
    def max_epochs(self) -> int | None:
        """The epochs that are asked for: one when nothing limits the run."""
        options = self.options
        limits = (options.max_epochs, options.max_steps, options.max_samples, options.max_time)
        return 1 if all(limit is None for limit in limits) else options.max_epochs

    def attach(self, write_console_log: Callable[[str], None], append: Callable[..., None]) -> None:
        """Take the places where lines and events are kept."""
        self._write_console_log, self._append = write_console_log, append

    def time(self) -> Time:
        """The reading of the clock."""
        epochs = self.epoch if self.is_epoch_done else self.epoch - 1
        return Time(self.step, epochs, self.samples, self.seconds)

    def begin_epoch(self) -> None:
        """Go on to the next epoch."""
        self.epoch += 1
        self.batch = 0
        self.is_epoch_done = False

    def log(self, metrics: Mapping[str, Any], reduce: str = "mean") -> None:
        """Record more from within a step, named like what the step returns.

        Args:
            metrics: name to scalar tensor or number.
            reduce: what is recorded of the values since the last recording: their `mean`, weighted by batch size,
                their `sum`, `max` or `min`, or the `last`. Of a mean, the last value of each step counts.

        Raises:
            ScriptError: `reduce` is none of these, or another than before.
        """
        if reduce != "mean" and reduce not in REDUCTIONS:
            names = ("mean", *REDUCTIONS)
            raise ScriptError(f"log(reduce={reduce!r}): expected {', '.join(names)}.{nearest(reduce, names)}")
        for name, value in metrics.items():
            if self.reductions.setdefault(name, reduce) != reduce:
                raise ScriptError(
                    f"{name!r} is logged with reduce={reduce!r}, and was with {self.reductions[name]!r}; give one of "
                    f"them another name"
                )
            has_more = reduce != "mean" and name in self.logged
            self.logged[name] = REDUCTIONS[reduce](self.logged[name], value) if has_more else value

    def measured_now(self) -> dict[str, float]:
        """The metrics that were recorded at this very step."""
        return {name: value for name, value in self.metrics.items() if self.measured_at[name] == self.step}

    def record(self, event: str, **values: Any) -> None:
        """Put an event of this moment into the record."""
        self._append(event, step=self.step, epoch=self.epoch, time=time.time(), **values)

    def count_media(self, name: str) -> int:
        """How many files of a name there have been since the last step."""
        if self._media[0] != self.step:
            self._media = (self.step, [])
        self._media[1].append(name)
        return self._media[1].count(name) - 1

    def say(self, text: str) -> None:
        """Put a line on the console and into `console.log`."""
        self._write_console_log(text)
        for listener in self.listeners:
            listener(text)

    def warn(self, text: str) -> None:
        """Warn the user; the warning is kept in the record and in `console.log` too."""
        self.record("warning", text=text)
        self._write_console_log(f"warning: {text}")
        warn(text)

    def state_dict(self) -> dict[str, Any]:
        """The position of the run, in plain values."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "is_epoch_done": self.is_epoch_done,
            "samples": self.samples,
            "seconds": self.seconds,
            "metrics": dict(self.metrics),
            "num_skipped": self.num_skipped,
            "stop_reason": self.stop_reason if self.interruption else None,  # which a run that goes on would forget
            "measured_at": dict(self.measured_at),
            "total_steps": self.total_steps,
            "best": None if self.best is None else [self.best.name, self.best.step, self.best.metric],
            "best_by": [self.options.checkpoint_metric, self.options.smaller_is_better],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position of a checkpoint."""
        self.step, self.epoch, self.batch = state["step"], state["epoch"], state["batch"]
        self.is_epoch_done, self.samples = state["is_epoch_done"], state["samples"]
        self._earlier_seconds, self._started = state["seconds"], time.monotonic()
        self.earlier_total_steps = state["total_steps"]
        self.metrics, self.measured_at = dict(state["metrics"]), dict(state["measured_at"])
        self.num_skipped, self.stop_reason = state["num_skipped"], state["stop_reason"]
        is_comparable = state["best_by"] == [self.options.checkpoint_metric, self.options.smaller_is_better]
        if state["best"] is not None and is_comparable:
            name, step, metric = state["best"]
            self.best = Checkpoint(name, step, metric, self.folder / "checkpoints" / name)
