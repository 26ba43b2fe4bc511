"""What the option `scheduler` says: one scheduler or a sequence of them, for all optimizers or for each its own.

cosine                                              by name
{cosine: {floor: 0.1}}                              with options
[{warmup: {warmup: 5 epochs}, for: 5 epochs}, cosine]   a sequence
{generator: cosine, discriminator: linear}          one for each optimizer, by the names of these
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from blowtorch.clock import Interval
from blowtorch.errors import BlowtorchError, ExtensionError, OptionError, nearest, warn
from blowtorch.hookspecs import Schedule, SchedulerSpec
from blowtorch.plugins import Plugin, Plugins
from blowtorch.schedule.sequence import Phase, SequentialScheduler, read_rates, set_rates

_EXAMPLE = "[{'warmup': {'warmup': '500 steps'}, 'for': '500 steps'}, 'cosine']"
_ALONE = {  # these are known before they are built
    "plateau": "waits for a metric",
    "one_cycle": "sets rates and momentum of its own from the first step to the last",
}


@dataclass(frozen=True)
class SchedulerPlan:
    """The schedulers of one optimizer, in order.

    Attributes:
        plugins: one, or those of a sequence.
        spans: how long each of them but the last is followed, in steps or epochs.
    """

    plugins: Sequence[Plugin]
    spans: Sequence[Interval] = ()

    @property
    def label(self) -> str:
        """How messages speak of it."""
        return " and then ".join(plugin.label for plugin in self.plugins)

    def build(self, optimizer: torch.optim.Optimizer, total_steps: int | None, steps_per_epoch: int | None) -> Schedule:
        """Build the schedule of an optimizer.

        Raises:
            BlowtorchError: one of the schedulers cannot be built, or cannot be in a sequence.
        """
        if not self.spans:
            return _build(self.plugins[0], optimizer, total_steps, steps_per_epoch)
        lengths = [_count_steps(span, steps_per_epoch, "for") for span in self.spans]
        rest = None if total_steps is None else total_steps - sum(lengths)
        if rest is not None and rest <= 0:  # no error, since a run is often cut short to try it out
            warn(
                f"option scheduler: the sequence comes to its last scheduler, {self.plugins[-1].name!r}, after "
                f"{sum(lengths)} steps, and the run has only {total_steps}"
            )
            rest = 1
        rates, phases = read_rates(optimizer), []
        for plugin, length, total in zip(self.plugins, [*lengths, None], [*lengths, rest], strict=True):
            set_rates(optimizer, rates)
            schedule = _build(plugin, optimizer, total, steps_per_epoch)
            every = _check_phase(plugin, schedule, steps_per_epoch)
            phases.append(Phase(schedule.scheduler, every, length, read_rates(optimizer)))
        return Schedule(SequentialScheduler(optimizer, phases))


SchedulerOption = SchedulerPlan | Mapping[str, SchedulerPlan | None]


def read_scheduler_option(value: Any, plugins: Plugins) -> SchedulerOption:
    """Make the schedulers that the option `scheduler` names; those of single optimizers, by the optimizers' names.

    Raises:
        OptionError: it cannot be understood.
        ExtensionError: a scheduler cannot be had.
    """
    if not isinstance(value, Mapping) or not _is_by_optimizer(value, plugins):
        return _read_plan(value, plugins)
    if "for" in value:
        raise OptionError(f"option scheduler: 'for' belongs into an entry of a sequence, such as {_EXAMPLE}")
    plans: dict[str, SchedulerPlan | None] = {}
    for name, scheduler in value.items():
        with _speaking_of(f"option scheduler, optimizer {name!r}"):
            plans[name] = None if scheduler is None else _read_plan(scheduler, plugins)
    return plans


def build_schedules(
    option: SchedulerOption,
    optimizers: Mapping[str, torch.optim.Optimizer],
    total_steps: int | None,
    steps_per_epoch: int | None,
) -> dict[str, Schedule]:
    """Build the schedules of the optimizers, by the optimizers' names.

    Raises:
        OptionError: the option names an optimizer that there is not.
        BlowtorchError: a scheduler cannot be built.
    """
    plans = _by_optimizer(option, optimizers)
    for name in plans:
        if name not in optimizers:
            raise OptionError(
                f"option scheduler: no optimizer is called {name!r}.{nearest(str(name), optimizers)} "
                f"configure_optimizers returns {', '.join(map(repr, optimizers))}"
            )
    return {name: plan.build(optimizers[name], total_steps, steps_per_epoch) for name, plan in plans.items() if plan}


def find_ended(option: SchedulerOption, optimizers: Iterable[str]) -> set[str]:
    """Return the optimizers whose schedules come to their end with the run: they are told how many steps it has."""
    plans = _by_optimizer(option, optimizers)
    return {name for name, plan in plans.items() if plan is not None and _asks_for_end(plan.plugins[-1])}


def _asks_for_end(plugin: Plugin) -> bool:
    method = plugin.implementation("scheduler_build")
    return method is not None and "total_steps" in (*method.argnames, *method.kwargnames)


def _by_optimizer(option: SchedulerOption, optimizers: Iterable[str]) -> Mapping[str, SchedulerPlan | None]:
    return dict.fromkeys(optimizers, option) if isinstance(option, SchedulerPlan) else option


def describe_scheduler_option(option: SchedulerOption) -> str:
    """Return the words by which messages speak of the option."""
    plans = [option] if isinstance(option, SchedulerPlan) else option.values()
    return ", ".join(dict.fromkeys(plan.label for plan in plans if plan is not None))


def _is_by_optimizer(mapping: Mapping[Any, Any], plugins: Plugins) -> bool:
    """Tell whether the keys of a mapping are optimizers; a single one that is the name of a scheduler is none."""
    if len(mapping) != 1:
        return bool(mapping)
    (key, value), names = next(iter(mapping.items())), _names(plugins)
    if value is None or not isinstance(key, str) or key in names or ":" in key:
        return False
    # What remains is an optimizer, or a scheduler misspelt: what stands behind that are options.
    is_named = isinstance(value, Mapping) and any(name in names or nearest(str(name), names) for name in value)
    return not isinstance(value, Mapping) or (is_named and not nearest(key, names))


def _names(plugins: Plugins) -> list[str]:
    return [extension.name for extension in plugins.extensions if extension.kind == "scheduler"]


def _read_plan(value: Any, plugins: Plugins) -> SchedulerPlan:
    """Make one scheduler, or those of a sequence."""
    if not isinstance(value, list | tuple):
        return SchedulerPlan([_create(value, plugins)])
    if not value:
        raise OptionError(f"option scheduler: expected a sequence such as {_EXAMPLE}, got none at all")
    schedulers, spans = [], []
    for number, entry in enumerate(value, start=1):
        with _speaking_of(f"option scheduler, entry {number} of {len(value)}"):
            scheduler, span = _split_entry(entry, is_last=number == len(value))
            plugin = _create(scheduler, plugins)
            if plugin.package == "blowtorch-core" and plugin.name in _ALONE and len(value) > 1:
                raise OptionError(f"{plugin.name!r} {_ALONE[plugin.name]}, so it cannot be in a sequence")
            schedulers.append(plugin)
            spans += [] if span is None else [span]
    return SchedulerPlan(schedulers, spans)


def _split_entry(entry: Any, is_last: bool) -> tuple[Any, Interval | None]:
    """Return the scheduler of an entry, and how long it is followed: None for the last one, which has what is left."""
    scheduler = entry
    if isinstance(entry, Mapping) and "for" in entry:
        scheduler = {name: value for name, value in entry.items() if name != "for"}
        if list(scheduler) == ["scheduler"]:  # for an object, which cannot stand before its options
            scheduler = scheduler["scheduler"]
        if is_last:
            raise OptionError("the last scheduler of a sequence has the rest of the run: leave out its 'for'")
        with _speaking_of("'for'"):
            return scheduler, Interval.parse(entry["for"], units=("steps", "epochs"))
    if not is_last:
        raise OptionError(
            f"expected it to say how long it is followed, such as {_EXAMPLE}, got {entry!r} without 'for'"
        )
    return scheduler, None


def _create(scheduler: Any, plugins: Plugins) -> Plugin:
    kind = scheduler if isinstance(scheduler, type) else type(scheduler)
    if issubclass(kind, LRScheduler):
        raise OptionError(
            f"option scheduler: expected a name, {{name: options}} or an extension object, got torch's "
            f"{kind.__name__}; return it beside its optimizer from configure_optimizers"
        )
    return plugins.create("scheduler", scheduler)


@contextmanager
def _speaking_of(place: str) -> Iterator[None]:
    """Let the errors that are raised inside begin with the place in the option that they are about."""
    try:
        yield
    except BlowtorchError as error:
        inner = str(error).removeprefix("option scheduler, ").removeprefix("option scheduler: ")
        raise type(error)(f"{place}: {inner}") from error


def _build(
    plugin: Plugin, optimizer: torch.optim.Optimizer, total_steps: int | None, steps_per_epoch: int | None
) -> Schedule:
    """Have an extension build its schedule, which is stepped after every step unless it says otherwise."""
    built = plugin.call(
        SchedulerSpec.scheduler_build, optimizer=optimizer, total_steps=total_steps, steps_per_epoch=steps_per_epoch
    )
    if not isinstance(built, Schedule) and not callable(getattr(built, "step", None)):
        raise ExtensionError(f"{plugin.label} built {built!r}; expected a torch scheduler or a Schedule")
    return built if isinstance(built, Schedule) else Schedule(built)


def _check_phase(plugin: Plugin, schedule: Schedule, steps_per_epoch: int | None) -> int:
    """Return after how many steps a scheduler is stepped, or raise an `OptionError` if it cannot be in a sequence."""
    if schedule.metric is not None:
        raise OptionError(f"{plugin.label} waits for the metric {schedule.metric!r}, so it cannot be in a sequence")
    if isinstance(schedule.scheduler, OneCycleLR | CyclicLR | ReduceLROnPlateau):
        kind = type(schedule.scheduler).__name__
        raise OptionError(f"{plugin.label} builds a {kind}, which does not leave the rates to others after its steps")
    if schedule.every.unit not in ("steps", "epochs"):
        raise OptionError(f"{plugin.label} is stepped every {schedule.every}; a sequence counts in steps or epochs")
    return _count_steps(schedule.every, steps_per_epoch, "every")


def _count_steps(interval: Interval, steps_per_epoch: int | None, option: str) -> int:
    with _speaking_of(f"option scheduler, {option!r}"):
        return interval.in_steps(steps_per_epoch)
