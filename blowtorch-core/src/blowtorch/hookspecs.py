"""The contracts between blowtorch and its extensions: the page that an extension author reads.

An extension is a class whose methods carry `@hookimpl`. An entry point in the group of its kind gives it a name, and
the options that a user writes beside that name are the arguments of its constructor. Every method below is optional
unless it says otherwise, and may take fewer arguments than are listed here: write only the ones you use.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from blowtorch.clock import Interval
from blowtorch.errors import ScriptError, nearest
from blowtorch.progress import Checkpoint
from blowtorch.state import RunInfo, RunState

if TYPE_CHECKING:
    import torch


Hook = TypeVar("Hook")

hookspec = pluggy.HookspecMarker("blowtorch")
hookimpl = pluggy.HookimplMarker("blowtorch")

__all__ = [
    "CallbackSpec",
    "Checkpoint",
    "CheckpointBackendSpec",
    "ConfigSourceSpec",
    "LoggerSpec",
    "RunInfo",
    "RunState",
    "Schedule",
    "SchedulerSpec",
    "hookimpl",
    "hookspec",
]


def required(hook: Hook) -> Hook:
    """Mark a hook of a contract that every extension of that kind must have."""
    vars(hook)["blowtorch_required"] = True
    return hook


class Schedule:
    """A torch scheduler and when it is stepped.

    Args:
        scheduler: anything with `step`, `state_dict` and `load_state_dict`.
        every: an interval of the clock, such as `"1 steps"` or `"1 epoch"`.
        metric: the metric that is handed to `scheduler.step`, for schedulers that want one; it is then stepped
            after a validation or an epoch in which the metric was measured, where another `every` has passed by then.

    Raises:
        OptionError: `every` is not an interval.
    """

    def __init__(self, scheduler: Any, every: str = "1 steps", metric: str | None = None) -> None:
        self.scheduler = scheduler
        self.every = Interval.parse(every)
        self.metric = metric


class ConfigSourceSpec:
    """Reads configuration; group `blowtorch.config_sources`, used by suffix (`yaml`) or by scheme (`env`)."""

    @required
    @hookspec(firstresult=True)
    def config_read(self, source: str) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Read one source and return its mapping. Required.

        Called once for each source that a script or command line names, when the `Run` is made.

        Args:
            source: the path of a file as written, or what stands behind the scheme's colon.

        Returns:
            A mapping of plain values. If it has an attribute `lines`, a mapping of dotted key to line number, the
            origins of values say `source:line`; where that holds a text instead of a number, the text is the origin.
            With an attribute `ignores_case` that is true, keys mean those that are there in upper or lower case.

        Raises:
            ConfigError: the source is malformed; say the file and the line.
        """


class SchedulerSpec:
    """Builds a learning-rate schedule; group `blowtorch.schedulers`, named by the option `scheduler`."""

    @required
    @hookspec(firstresult=True)
    def scheduler_build(
        self, optimizer: torch.optim.Optimizer, total_steps: int | None, steps_per_epoch: int | None
    ) -> Any:
        """Build the scheduler of one optimizer. Required.

        Called once for each optimizer, and for each phase of a sequence, before the first step, also when a run is
        resumed: the state is put back afterwards.

        Args:
            optimizer: already holding its parameters.
            total_steps: optimizer steps of the whole run, or of its phase of a sequence; None when unknown.
            steps_per_epoch: optimizer steps of one epoch; None when unknown.

        Returns:
            A torch scheduler, which is stepped once per step, or a `Schedule`.
        """


class LoggerSpec:
    """Shows a run elsewhere; group `blowtorch.loggers`, any number, named by the option `loggers`.

    Loggers read the record of the run in the background, each at its own pace, and are given plain data. One that
    raises is tried again with growing pauses, from where it stood, while the run goes on. Delivery is in order and
    at least once. What a hook is given is shared: leave it unchanged.
    """

    @hookspec
    def log_start(self, run: RunInfo) -> None:
        """The run begins, or continues: `run.resumed`. Called first, once in every process."""

    @hookspec
    def log_rewind(self, step: int) -> None:
        """What was logged for steps after `step` is void: the run went back. Comes after `log_start`."""

    @hookspec
    def log_metrics(self, metrics: Mapping[str, float], step: int, epoch: int, time: float) -> None:
        """Metrics were recorded.

        Args:
            metrics: name to value, such as `{"train/loss": 0.42}`; values may be NaN or infinite.
            step: optimizer steps done; 0 for what is measured before the first.
            epoch: the epoch under way, the first being 1; 0 before it begins.
            time: seconds since 1970 when they were recorded.
        """

    @hookspec
    def log_image(self, name: str, path: Path, step: int) -> None:
        """An image was logged.

        Args:
            name: what it was called, such as `samples`.
            path: a PNG file in the run folder, which stays there.
            step: optimizer steps done.
        """

    @hookspec
    def log_histogram(self, name: str, counts: Sequence[int], edges: Sequence[float], step: int) -> None:
        """A histogram was logged.

        Args:
            name: what it was called, such as `weights/first`.
            counts: how many values lie in each bin.
            edges: where the bins begin, and where the last one ends: one more than there are counts.
            step: optimizer steps done.
        """

    @hookspec
    def log_text(self, name: str, text: str, step: int) -> None:
        """A text was logged.

        Args:
            name: what it was called, such as `samples`.
            text: the text, as it was given.
            step: optimizer steps done.
        """

    @hookspec
    def log_file(self, name: str, path: Path, step: int) -> None:
        """A file was logged.

        Args:
            name: what it was called, such as `predictions`.
            path: a copy in the run folder, which stays there.
            step: optimizer steps done.
        """

    @hookspec
    def log_flush(self) -> None:
        """Everything recorded so far has been handed over; a good moment to write it out.

        Called after each burst of events, and right before `log_finish`.
        """

    @hookspec
    def log_finish(self, status: str, summary: Mapping[str, float]) -> None:
        """The process ends its part of the run. Called last.

        Args:
            status: `finished`, `stopped` or `failed`.
            summary: the last value of every metric, and `best/<metric>` where there is a best.
        """


class CheckpointBackendSpec:
    """Stores finished checkpoints; group `blowtorch.checkpoint_backends`, one, named by `checkpoint_backend`.

    The core makes and verifies the files; a backend only puts a directory somewhere durable and gets it back. While a
    run trains, its hooks are called from a thread beside the loop, one after the other.
    """

    @hookspec(firstresult=True)
    def checkpoint_open(self, run: RunInfo, reads_only: bool) -> None:
        """The run begins or continues, or somebody reads its checkpoints. Called first, before any other hook.

        Args:
            reads_only: nothing will be published or deleted, and another process may be at work on the run: there is
                nothing to clean up.
        """

    @required
    @hookspec(firstresult=True)
    def checkpoint_publish(self, name: str, directory: Path) -> None:
        """Store a finished directory under a name, all or nothing, durably. Required.

        A name that exists is replaced. The directory may be moved; what is left of it is removed afterwards. When
        this returns, the checkpoint must survive a power cut.
        """

    @required
    @hookspec(firstresult=True)
    def checkpoint_fetch(self, name: str, directory: Path, files: Sequence[str] | None) -> Path:  # type: ignore[empty-body]
        """Bring a checkpoint back, unverified. Required.

        Args:
            name: as it was published.
            directory: an empty directory that may be filled.
            files: only these files are needed, or None for all.

        Returns:
            The directory that holds the files: `directory`, or one of the backend's own, which is only read.

        Raises:
            FileNotFoundError: nothing is stored under this name.
        """

    @required
    @hookspec(firstresult=True)
    def checkpoint_list(self) -> Sequence[str]:  # type: ignore[empty-body]
        """Return the names of all complete checkpoints, in ascending order. Required."""

    @required
    @hookspec(firstresult=True)
    def checkpoint_delete(self, name: str) -> None:
        """Delete a checkpoint, so that it is never listed half there. One that is missing is no error. Required."""


class CallbackSpec:
    """Takes part in the loop; group `blowtorch.callbacks`, any number, named by the option `callbacks`.

    Callbacks are called in the order in which they are named, in the thread of the loop. They may read everything in
    `state` and call `state.stop(reason)` to end the run after the current step; anything that a callback has to
    remember over a restart it gives and takes by methods `state_dict` and `load_state_dict`. One that raises fails
    the run.

    Where several processes train together, each has its own; one whose attribute `ranks` is `"first"` takes part in the
    first process alone. `state.rank`, `state.world_size` and `state.is_first` tell which one this is.
    """

    @hookspec
    def run_start(self, state: RunState) -> None:
        """Everything is ready and, if the run continues, restored; nothing has been trained by this process."""

    @hookspec
    def epoch_start(self, state: RunState) -> None:
        """An epoch begins with its first batch; `state.epoch` is its number."""

    @hookspec
    def epoch_resume(self, state: RunState) -> None:
        """An epoch goes on after a restart in the middle of it; `epoch_start` was called by an earlier process."""

    @hookspec
    def train_step_end(self, state: RunState, batch: Any, metrics: Mapping[str, Any]) -> None:
        """A step is done and counted: `state.step` is its number; gradients are still there.

        Args:
            batch: the batch trained on, on the device; of an accumulation group the last.
            metrics: what the step returned for it, unreduced; reading a tensor waits for the device.
        """

    @hookspec
    def validation_start(self, state: RunState, name: str) -> None:
        """A validation is about to begin, with the model as it is in training; one that a stop cuts short begins again.

        Random numbers drawn here do not move the streams of training.

        Args:
            name: `val`, or the name given to the decorator.
        """

    @hookspec
    def validation_end(self, state: RunState, name: str, metrics: Mapping[str, float]) -> None:
        """A validation is done and recorded, and nothing has been decided by it yet.

        Random numbers drawn here do not move the streams of training.

        Args:
            name: `val`, or the name given to the decorator.
            metrics: by their recorded names, such as `{"val/loss": 0.3}`.
        """

    @hookspec
    def checkpoint_saved(self, state: RunState, checkpoint: Checkpoint, is_best: bool) -> None:
        """A checkpoint is published, after the step of `checkpoint` or some steps later, in the middle of an epoch too.

        Random numbers drawn here do not move the streams of training. What is logged here is recorded at the
        present step, which differs from run to run; use `checkpoint.step` where that matters.

        Args:
            checkpoint: its name, step, metric and path.
            is_best: whether it is the best so far by the option `checkpoint_metric`.
        """

    @hookspec
    def epoch_end(self, state: RunState, metrics: Mapping[str, float]) -> None:
        """The last step of an epoch is trained, recorded and validated; its checkpoint is still to come.

        Args:
            metrics: the means over the epoch, such as `{"train_epoch/loss": 0.4}`.
        """

    @hookspec
    def line_said(self, state: RunState, text: str) -> None:
        """The run says a line, which `console.log` has already; whoever shows such lines shows it.

        Lines come from callbacks and functions by `state.say`, and from the loop. What is said in here goes into
        `console.log` alone.

        Args:
            text: the line, without a line feed.
        """

    @hookspec
    def run_end(self, state: RunState, status: str) -> None:
        """The run ends. Called last; the last checkpoint is written, unless the run failed.

        Args:
            status: `finished`, `stopped` or `failed`.
        """


MOMENTS: dict[str, tuple[str, ...]] = {
    name: tuple(parameter for parameter in inspect.signature(spec).parameters if parameter != "self")
    for name, spec in vars(CallbackSpec).items()
    if not name.startswith("_")
}


def check_moment(moment: str) -> None:
    """Raise a `ScriptError` if there is no such moment."""
    if moment not in MOMENTS:
        raise ScriptError(
            f"@run.on({moment!r}): no such moment.{nearest(moment, MOMENTS)} Moments are {', '.join(MOMENTS)}"
        )
