"""When learning rates change: after a step, after an epoch, or after a validation that measured a metric."""

import contextlib
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from blowtorch.clock import Trigger
from blowtorch.errors import ScriptError, nearest
from blowtorch.hookspecs import Schedule
from blowtorch.state import RunState


class Schedules:
    """The learning-rate schedules of a run.

    Args:
        optimizers: by name.
        schedules: by name; several may change the same optimizer.
        build: makes those of the option `scheduler`, from the number of steps of the run; None for those of the script.
        ended: the names of those that come to their end with the run.
        total_steps: how many steps the run has; None when unknown.

    Attributes:
        by_name: the schedules.
        triggers: what tells when each of them is stepped.
        wants_steps: whether one of them follows steps.
        rates: those that the last step used, by the names under which they are recorded.
    """

    def __init__(
        self,
        optimizers: Mapping[str, torch.optim.Optimizer],
        schedules: Mapping[str, Schedule],
        build: Callable[[int | None], Mapping[str, Schedule]] | None = None,
        ended: Collection[str] = (),
        total_steps: int | None = None,
    ) -> None:
        self._build = build
        self._optimizers = optimizers
        self._names_of_ended = ended
        self._total_steps = total_steps
        self._first_options = [_read_options(group) for each in optimizers.values() for group in each.param_groups]
        self.by_name = dict(schedules if build is None else build(total_steps))
        self._ended: set[str] = set()
        self.triggers = {name: Trigger(schedule.every) for name, schedule in self.by_name.items()}
        self._each_step = [
            name
            for name, schedule in self.by_name.items()
            if schedule.metric is None and schedule.every.unit != "epochs"
        ]
        self.wants_steps = bool(self._each_step)
        self._groups = {  # by index: the groups themselves are others once an optimizer has loaded its state
            f"lr/{name}/{index}": (optimizer, index)
            for name, optimizer in optimizers.items()
            for index in range(len(optimizer.param_groups))
        }
        if len(self._groups) == 1:
            self._groups = {"lr": next(iter(self._groups.values()))}
        self.rates = self.read_rates()

    def fit_to(self, total_steps: int | None) -> None:
        """Make the schedules of the option anew for a run of another length, from the rates that the script has set."""
        if self._build is None or total_steps == self._total_steps:
            return
        self._total_steps = total_steps
        groups = [group for each in self._optimizers.values() for group in each.param_groups]
        for group, options in zip(groups, self._first_options, strict=True):
            for name in group.keys() - options.keys() - {"params"}:
                del group[name]
            group.update(options)
        self.by_name.update(self._build(total_steps))

    def read_rates(self) -> dict[str, float]:
        """Return the learning rates of now, by the names under which they are recorded."""
        return {name: float(optimizer.param_groups[index]["lr"]) for name, (optimizer, index) in self._groups.items()}

    def after_step(self, state: RunState, has_stepped: bool = True) -> None:
        """Step the schedules that follow optimizer steps; `rates` keeps the rates that the step itself used.

        Args:
            state: where the run stands.
            has_stepped: whether the optimizers have; a step counts all the same if its batches were left out.
        """
        self.rates = self.read_rates()
        time = state.time()
        with contextlib.nullcontext() if has_stepped else warnings.catch_warnings():
            if not has_stepped:
                warnings.filterwarnings("ignore", "Detected call of")  # torch expects the very first step to be one
            for name in self._each_step:
                if self.triggers[name].fire(time):
                    self._advance(name, state)

    def after_metrics(self, state: RunState, measured: Mapping[str, float]) -> None:
        """Step the schedules whose metric was measured."""
        for name, schedule in self.by_name.items():
            metric = schedule.metric
            if metric is not None and metric in measured and self.triggers[name].fire(state.time()):
                schedule.scheduler.step(measured[metric])

    def check_metrics(self, state: RunState, validations: Sequence[str]) -> None:
        """Raise a `ScriptError` for a schedule whose metric was not measured though every validation has been done."""
        prefixes = tuple(f"{validation}/" for validation in validations)
        measured = [name for name in state.metrics if name.startswith((*prefixes, "train_epoch/"))]
        if all(any(name.startswith(prefix) for name in measured) for prefix in prefixes):
            for schedule in self.by_name.values():
                if schedule.metric is not None and schedule.metric not in measured:
                    raise ScriptError(
                        f"a scheduler waits for {schedule.metric!r}, which neither a validation nor an epoch measures."
                        f"{nearest(schedule.metric, measured)} There are {', '.join(measured) or 'none'}"
                    )

    def after_epoch(self, state: RunState) -> None:
        """Step the schedules that follow epochs."""
        for name, schedule in self.by_name.items():
            is_by_epoch = schedule.metric is None and schedule.every.unit == "epochs"
            if is_by_epoch and self.triggers[name].fire(state.time()):
                self._advance(name, state)

    def _advance(self, name: str, state: RunState) -> None:
        """Step a schedule; one that is over holds its last rates, and says so once."""
        scheduler = self.by_name[name].scheduler
        is_over = name in self._names_of_ended and self._total_steps is not None and state.step > self._total_steps
        if isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR):  # which raises if it is stepped further
            is_over = is_over or scheduler.last_epoch >= scheduler.total_steps
        if not is_over:
            scheduler.step()
        elif name not in self._ended:
            self._ended.add(name)
            state.warn(
                f"the schedule of {name!r} has come to its end, and step {state.step} is past it: the learning rate "
                f"stays as it is. Does the loader give more batches than its length says?"
            )

    def checkpoint_parts(self) -> dict[str, Any]:
        """Return what belongs into a checkpoint, by name."""
        schedulers = {f"schedulers/{name}": SavedSchedule(self, name) for name in self.by_name}
        return {"rates": self, **schedulers}

    def state_dict(self) -> dict[str, float]:
        """Return the rates of the last step, which a window that is still open records."""
        return dict(self.rates)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take the rates of the last step from a checkpoint."""
        self.rates = dict(state)


class SavedSchedule:
    """A schedule as checkpoints keep it, whichever scheduler it has."""

    def __init__(self, schedules: Schedules, name: str) -> None:
        self._schedules = schedules
        self._name = name

    def state_dict(self) -> Any:
        """Return the state of its scheduler."""
        return self._schedules.by_name[self._name].scheduler.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Go on from a state."""
        self._schedules.by_name[self._name].scheduler.load_state_dict(state)


def _read_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a parameter group, with copies of those that are tensors."""
    options = {name: value for name, value in group.items() if name != "params"}
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in options.items()}


def read_configured(returned: Any) -> tuple[dict[str, torch.optim.Optimizer], dict[str, Any]]:
    """Sort what `configure_optimizers` returned into optimizers and schedulers by name.

    Raises:
        ScriptError: it is neither an optimizer, nor a dict of them, nor a pair (optimizers, schedulers).
    """
    schedulers: Any = {}
    optimizers = returned
    if isinstance(returned, tuple) and len(returned) == 2:
        optimizers, schedulers = returned
    if is_optimizer(optimizers):
        optimizers = {"optimizer": optimizers}
    is_valid = isinstance(optimizers, Mapping) and optimizers
    if not is_valid or not all(is_optimizer(value) for value in optimizers.values()):
        raise ScriptError(
            f"configure_optimizers returned {_outline(returned):.200}; expected an optimizer, a dict of named "
            f"optimizers, or a pair (optimizers, schedulers){_hint(optimizers)}"
        )
    if schedulers is None:
        schedulers = {}
    if isinstance(schedulers, Sequence):
        schedulers = {str(index): scheduler for index, scheduler in enumerate(schedulers)}
    elif not isinstance(schedulers, Mapping):
        schedulers = {"scheduler": schedulers}
    return dict(optimizers), dict(schedulers)


def _outline(value: Any) -> str:
    """Return what a value is made of; the text of an optimizer alone has a dozen lines."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name!r}: {_outline(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        inside = ", ".join(map(_outline, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    return repr(value) if value is None or isinstance(value, str | int | float) else type(value).__name__


def _hint(optimizers: Any) -> str:
    """Return what to write for what other frameworks take, where it is that."""
    if isinstance(optimizers, Sequence) and optimizers and all(map(is_optimizer, optimizers)):
        return ". One optimizer needs no list" if len(optimizers) == 1 else ". Name the optimizers by a dict"
    if isinstance(optimizers, Mapping) and "lr_scheduler" in optimizers:
        return ". Return the optimizer and its scheduler as a pair, with a Schedule that says when it is stepped"
    return ""


def is_optimizer(value: Any) -> bool:
    """Return whether a value is an optimizer, or does what one does: some wrap another one and are none of torch."""
    methods = ("step", "zero_grad", "state_dict", "load_state_dict")
    return isinstance(value, torch.optim.Optimizer) or (
        hasattr(value, "param_groups") and all(callable(getattr(value, method, None)) for method in methods)
    )


def as_schedule(name: str, scheduler: Any, checkpoint_metric: str) -> Schedule:
    """Return the schedule of a scheduler that the script made.

    It is stepped after each epoch, as in torch's own examples; a `ReduceLROnPlateau` when the metric is measured.
    """
    if isinstance(scheduler, Schedule):
        is_plateau = isinstance(scheduler.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        if is_plateau and scheduler.metric is None:
            raise ScriptError(f"scheduler {name!r}: ReduceLROnPlateau needs Schedule(..., metric='val/loss')")
        if is_optimizer(scheduler.scheduler):
            raise ScriptError(f"scheduler {name!r}: Schedule(...) expects a scheduler, got an optimizer")
        return scheduler
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return Schedule(scheduler, metric=checkpoint_metric)
    if not callable(getattr(scheduler, "step", None)):
        raise ScriptError(f"configure_optimizers returned {scheduler!r} as scheduler {name!r}; it has no method step")
    return Schedule(scheduler, every="1 epoch")
