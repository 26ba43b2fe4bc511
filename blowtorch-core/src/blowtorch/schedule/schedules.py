"""When learning rates change: after a step, after an epoch, or after a validation that measured a metric."""

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.optim import lr_scheduler

from blowtorch.clock import Trigger
from blowtorch.errors import ScriptError, nearest
from blowtorch.hookspecs import Schedule
from blowtorch.schedule.rates import scheduler_under_way
from blowtorch.state import RunState

# These step each group from the rate that it has.
_FOR_ANY_GROUPS = (
    lr_scheduler.StepLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.ExponentialLR,
    lr_scheduler.CosineAnnealingLR,
    lr_scheduler.LinearLR,
    lr_scheduler.ConstantLR,
    lr_scheduler.PolynomialLR,
)
_KNOWN = ("torch.", "blowtorch.")  # a subclass from elsewhere may step in another way


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
        self._told: set[str] = set()  # the optimizers of which it was said that their groups have changed
        self.triggers = {name: Trigger(schedule.every) for name, schedule in self.by_name.items()}
        self._each_step = [
            name
            for name, schedule in self.by_name.items()
            if schedule.metric is None and schedule.every.unit != "epochs"
        ]
        self.wants_steps = bool(self._each_step)
        self._made_for = {name: len(optimizer.param_groups) for name, optimizer in optimizers.items()}
        self._was_one_group = sum(self._made_for.values()) == 1  # whose rate keeps its short name if others are added
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
        return {
            ("lr" if self._was_one_group and index == 0 else f"lr/{name}/{index}"): float(group["lr"])
            for name, optimizer in self._optimizers.items()
            for index, group in enumerate(optimizer.param_groups)
        }

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
                with self._for_own_groups(name, state):
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
        following = scheduler_under_way(scheduler)
        if isinstance(following, lr_scheduler.OneCycleLR):  # which raises if it is stepped further
            is_over = is_over or following.last_epoch >= following.total_steps
        if not is_over:
            with self._for_own_groups(name, state):
                scheduler.step()
        elif name not in self._ended:
            self._ended.add(name)
            state.warn(
                f"the schedule of {name!r} has come to its end, and step {state.step} is past it: the learning rate "
                f"stays as it is. Does the loader give more batches than its length says?"
            )

    @contextlib.contextmanager
    def _for_own_groups(self, name: str, state: RunState) -> Iterator[None]:
        """Show a scheduler the parameter groups for which it was made, since most of torch's fail with any others."""
        scheduler = self.by_name[name].scheduler
        owner = find_owner(name, scheduler, self._optimizers)
        if owner is None or len(self._optimizers[owner].param_groups) == self._made_for[owner]:
            yield
            return
        optimizer, made_for = self._optimizers[owner], self._made_for[owner]
        groups = optimizer.param_groups
        if len(groups) < made_for:
            raise ScriptError(
                f"optimizer {owner!r} has {len(groups)} parameter groups, and its schedule was made for {made_for}; "
                f"leave groups where they are, and freeze their parameters"
            )
        takes_any = isinstance(scheduler, _FOR_ANY_GROUPS) and type(scheduler).__module__.startswith(_KNOWN)
        if owner not in self._told:
            self._told.add(owner)
            what = "scales its rate from where it is" if takes_any else "leaves its rate as it is"
            state.warn(
                f"parameter groups were added to optimizer {owner!r} during the run: its schedule, which was made for "
                f"{made_for}, {what}. Have all groups from the start, frozen, to give them a schedule"
            )
        if takes_any:
            yield
            return
        optimizer.param_groups = groups[:made_for]
        try:
            yield
        finally:
            optimizer.param_groups = groups

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


def find_owner(name: str, scheduler: Any, optimizers: Mapping[str, torch.optim.Optimizer]) -> str | None:
    """Return the name of the optimizer whose rates a scheduler changes, or None."""
    owner = getattr(scheduler, "optimizer", None)
    if owner is None:
        return name if name in optimizers else next(iter(optimizers)) if len(optimizers) == 1 else None
    return next((each for each, optimizer in optimizers.items() if optimizer is owner), None)


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
