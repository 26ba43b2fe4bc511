"""What extensions are handed: where a run stands and what it works with, to read; and what they may ask of it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from blowtorch.config.containers import unpack
from blowtorch.errors import ScriptError
from blowtorch.progress import Checkpoint, Progress

if TYPE_CHECKING:
    import torch
    from torch import nn

    from blowtorch.clock import Time
    from blowtorch.config.config import Config
    from blowtorch.options import RunOptions


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What an extension is told about the run; plain data, the same in every process.

    Attributes:
        id: unique for ever, and the same after a resume: a tracker's own run can be found again by it.
        name: the folder's name without its time, such as `brave-otter-3`.
        folder: the run folder.
        own_folder: a folder for this extension alone, kept over restarts; None for those that ship with the core
            and keep nothing there, and where there is no run.
        config: the resolved configuration as dicts, lists and plain values, secrets masked; a copy each time.
        resumed: whether the run continues an earlier one.
    """

    id: str
    name: str
    folder: Path
    own_folder: Path | None
    config: Mapping[str, Any]
    resumed: bool

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return unpack(value) if name == "config" else value  # nobody changes what others are told


@dataclass
class JudgedWeights:
    """Weights that stand in for those of the model wherever it is judged.

    Attributes:
        now: by the names of the model's `state_dict`; None where the model is judged by its own weights.
        earlier: what `now` was in the checkpoint from which the run goes on, until somebody takes it.
        read_by_optimizers: returns copies of those by which optimizers with modes would have the model judged.
    """

    now: Mapping[str, torch.Tensor] | None = None
    earlier: Mapping[str, torch.Tensor] | None = None
    read_by_optimizers: Callable[[], Mapping[str, torch.Tensor]] = dict


@dataclass(kw_only=True, eq=False, repr=False)
class RunState:
    """Where a run stands and what it works with, to read; only `stop`, `log`, `say`, `warn` and `judge_with` change it.

    Attributes:
        info: the run as extensions are told of it.
        options: the options that hold.
        config: the resolved configuration.
        seed: the seed from which every random stream is derived.
        device: where the model and the batches are.
        model: the model in training.
        compiled_model: what `torch.compile` made of it, which shares its weights; None without the option `compile`.
        optimizers: by name; a single one is called `optimizer`. Empty until they are made.
        rank: the number of this process among those that train together, from 0.
        world_size: how many these are.
    """

    # What follows `optimizers` is kept out of sight: the loop's own account, and who does what the verbs ask for.

    info: RunInfo
    options: RunOptions
    config: Config
    seed: int
    device: torch.device
    model: nn.Module
    compiled_model: Any = None
    optimizers: Mapping[str, torch.optim.Optimizer]
    rank: int = 0
    world_size: int = 1
    progress: InitVar[Progress]
    judged: InitVar[JudgedWeights]
    log_by: InitVar[Callable[[Mapping[str, Any], str], None]]
    say_by: InitVar[Callable[[str], None]]
    warn_by: InitVar[Callable[[str], None]]

    def __post_init__(
        self,
        progress: Progress,
        judged: JudgedWeights,
        log_by: Callable[[Mapping[str, Any], str], None],
        say_by: Callable[[str], None],
        warn_by: Callable[[str], None],
    ) -> None:
        self._progress, self._judged = progress, judged
        self._log, self._say, self._warn = log_by, say_by, warn_by
        self._is_complete = True

    def __setattr__(self, name: str, value: Any) -> None:
        if "_is_complete" in self.__dict__:
            raise AttributeError(
                f"RunState shows where a run stands and cannot be changed, so {name!r} cannot be set; to end the run "
                f"after the current step, call state.stop(reason)"
            )
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"RunState shows where a run stands and cannot be changed, so {name!r} cannot be deleted")

    def shown_with(self, own_folder: Path | None) -> RunState:
        """Return the same state as one extension is shown it: with a folder of its own."""
        shown = copy.copy(self)
        shown.__dict__["info"] = dataclasses.replace(self.info, own_folder=own_folder)
        return shown

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that keeps the record, the console and the loggers, as a lone one does."""
        return self.rank == 0

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.info.folder

    @property
    def is_resumed(self) -> bool:
        """Whether this process continues an earlier one."""
        return self.info.resumed

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._progress.step

    @property
    def epoch(self) -> int:
        """Number of the epoch under way, or of the last one when it is done; the first is 1."""
        return self._progress.epoch

    @property
    def batch(self) -> int:
        """Batches of this epoch that are done."""
        return self._progress.batch

    @property
    def is_epoch_done(self) -> bool:
        """Whether the epoch has ended and everything that happens at its end is done."""
        return self._progress.is_epoch_done

    @property
    def samples(self) -> int:
        """Samples trained on."""
        return self._progress.samples

    @property
    def seconds(self) -> float:
        """Seconds that the run has been under way, those of the processes that it continues included."""
        return self._progress.seconds

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last recorded value of every metric, by its recorded name."""
        self._progress.catch_up()
        return MappingProxyType(self._progress.metrics)

    @property
    def validations(self) -> tuple[str, ...]:
        """The names of the validations that the run does."""
        return self._progress.validations

    @property
    def best(self) -> Checkpoint | None:
        """The best checkpoint so far by `options.checkpoint_metric`; it may still be on its way to the disk."""
        return self._progress.best

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole run; None when unknown."""
        return self._progress.total_steps

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of one epoch; None when unknown."""
        return self._progress.steps_per_epoch

    @property
    def max_epochs(self) -> int | None:
        """The epochs that are asked for: one when nothing limits the run."""
        options = self.options
        limits = (options.max_epochs, options.max_steps, options.max_samples, options.max_time)
        return 1 if all(limit is None for limit in limits) else options.max_epochs

    @property
    def stop_reason(self) -> str | None:
        """Why the run ends after the current step, if it does; it is then finished."""
        return self._progress.stop_reason

    @property
    def interruption(self) -> str | None:
        """What wants the run to stop early, such as SIGTERM; it is then stopped, to be continued."""
        return self._progress.interruption

    @property
    def averaged(self) -> Mapping[str, torch.Tensor] | None:
        """The weights that stand in for those of the model wherever it is judged; see `judge_with`."""
        return self._judged.now

    def time(self) -> Time:
        """Read the clock: steps, whole epochs, samples and seconds."""
        return self._progress.time()

    def stop(self, reason: str) -> None:
        """End the run after the current step: it is then finished.

        Args:
            reason: a sentence, which the console and the record tell.

        Raises:
            ScriptError: there is none.
        """
        if not isinstance(reason, str) or not reason:
            raise ScriptError(f"state.stop(reason) expects a sentence that says why the run ends, got {reason!r}")
        self._progress.stop(reason)

    def log(self, metrics: Mapping[str, Any], reduce: str = "mean") -> None:
        """Record more from within a step, named like what the step returns.

        Args:
            metrics: name to scalar tensor or number.
            reduce: what is recorded of the values since the last recording: their `mean`, weighted by batch size,
                their `sum`, `max` or `min`, or the `last`. Of a mean, the last value of each step counts.

        Raises:
            ScriptError: `reduce` is none of these, or another than before.
        """
        self._log(metrics, reduce)

    def say(self, text: str) -> None:
        """Put a line on the console and into `console.log`."""
        self._say(text)

    def warn(self, text: str) -> None:
        """Warn the user; the warning is kept in the record and in `console.log` too."""
        self._warn(text)

    def judge_with(self, weights: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor] | None:
        """Judge the model by other weights from now on: in validations, in `model.pt`, and when the run is over.

        Args:
            weights: tensors by the names of the model's `state_dict`; whoever averages weights goes on changing them.

        Returns:
            Such weights as they were in the checkpoint from which the run goes on, or None.
        """
        self._judged.now = weights
        earlier, self._judged.earlier = self._judged.earlier, None
        return earlier
