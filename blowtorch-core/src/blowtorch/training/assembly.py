"""Putting the parts of a run together: extensions, batches, optimizers, and everything that a checkpoint holds."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from blowtorch.checkpoint.checkpoints import Checkpoints
from blowtorch.clock import Interval, Trigger, Triggers
from blowtorch.data.batches import Batches
from blowtorch.errors import ScriptError
from blowtorch.folder.folder import RunFolder
from blowtorch.hookspecs import Schedule
from blowtorch.options import RunOptions
from blowtorch.plugins import Plugin, Plugins
from blowtorch.record.metric_objects import MetricObjects, find_metric_objects
from blowtorch.record.metrics import Window
from blowtorch.record.record import Record
from blowtorch.schedule.option import SchedulerOption, build_schedules, read_scheduler_option
from blowtorch.schedule.schedules import Schedules, as_schedule, read_configured
from blowtorch.script.functions import Function
from blowtorch.script.returns import Loss, Returns
from blowtorch.script.script import Script, ValidationRequest
from blowtorch.state import RunState
from blowtorch.training.callbacks import Callbacks
from blowtorch.training.gradients import Gradients, check_self_driven
from blowtorch.training.validation import Validation


@dataclass(frozen=True)
class Extensions:
    """The extensions that a run names, and those that it always has."""

    loggers: list[Plugin]
    callbacks: list[Plugin]
    backend: Plugin
    scheduler: SchedulerOption | None

    @classmethod
    def create(cls, options: RunOptions, plugins: Plugins) -> "Extensions":
        """Create them; an `ExtensionError` where one cannot be had."""
        return cls(
            loggers=[plugins.create("logger", given) for given in options.loggers],
            callbacks=_create_callbacks(options, plugins),
            backend=plugins.create("checkpoint-backend", options.checkpoint_backend),
            scheduler=None if options.scheduler is None else read_scheduler_option(options.scheduler, plugins),
        )


@dataclass(frozen=True)
class Data:
    """The batches to train on, and each validation with its own."""

    train: Batches
    validations: list[tuple[ValidationRequest, Batches]]

    @classmethod
    def choose(
        cls, script: Script, options: RunOptions, loaders: tuple[Any, Any], seed: int, device: torch.device
    ) -> "Data":
        """Those of the call, the train and the validation loader, or else those of the decorators.

        Raises:
            ScriptError: there is none to train on, or one is of no use.
        """
        requests, train_loader = script.choose_validations(loaders[1]), script.choose_train_loader(loaders[0])
        limits = [limit for limit in (options.limit_train_batches, options.overfit_batches) if limit is not None]
        is_repeated = options.overfit_batches is not None
        train = Batches(train_loader, seed, device, min(limits, default=None), is_repeated=is_repeated)
        most = options.limit_validate_batches
        return cls(train, [(each, Batches(each.loader, seed, device, most, each.name)) for each in requests])

    def close(self) -> None:
        """End the workers of all loaders."""
        for batches in (self.train, *(batches for _, batches in self.validations)):
            batches.close()


@dataclass
class Training:
    """The parts of a run; they stay the same while it lasts."""

    function: Function  # the train step, or a function that drives a whole epoch
    batches: Batches
    returns: Returns
    loss: Loss
    schedules: Schedules
    validations: list[Validation]
    callbacks: Callbacks
    record: Record
    checkpoints: Checkpoints
    gradients: Gradients | None  # None where nothing happens to them
    epoch_window: Window
    record_trigger: Trigger
    checkpoint_trigger: Trigger | None
    changes: list[str] = field(default_factory=list)  # since the process that is continued, in words
    random_state: dict[str, Any] | None = None  # of a checkpoint; put back before the next batch is fetched

    def __post_init__(self) -> None:
        found = [self.record_trigger, self.checkpoint_trigger, *(each.trigger for each in self.validations)]
        self.triggers = [  # everything that may be due after a step; at the end of an epoch all are asked anyway
            trigger for trigger in found if trigger is not None and trigger.interval.unit != "epochs"
        ]


def count_steps(state: RunState, num_batches: int | None) -> None:
    """Work out how many optimizer steps an epoch and the run have."""
    state.steps_per_epoch = None if num_batches is None else math.ceil(num_batches / state.options.accumulate)
    limits = [state.options.max_steps]
    if state.steps_per_epoch is not None and state.max_epochs is not None:
        limits.append(state.max_epochs * state.steps_per_epoch)
    state.total_steps = min((limit for limit in limits if limit is not None), default=None)


def build_optimizers(script: Script, state: RunState, scheduler: SchedulerOption | None) -> Schedules:
    """Have the script make its optimizers, and give them their schedules."""
    assert script.configure_optimizers is not None
    configure = script.configure_optimizers.bind(state)
    optimizers, schedulers = read_configured(configure.function(**configure.given()))
    state.optimizers.update(optimizers)
    if script.train is not None and not script.train.drives_itself:
        _refuse_closures(optimizers)
    schedules: dict[str, Schedule] = {
        name: as_schedule(name, given, state.options.checkpoint_metric) for name, given in schedulers.items()
    }
    if scheduler is not None:
        if schedules:
            raise ScriptError(
                "configure_optimizers returns schedulers, and the option scheduler names another; keep one of them"
            )
        schedules = build_schedules(scheduler, optimizers, state.total_steps, state.steps_per_epoch)
    return Schedules(state.optimizers, schedules)


def _refuse_closures(optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Raise a `ScriptError` for an optimizer that computes the loss several times in a step, as the loop does not."""
    for name, optimizer in optimizers.items():
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ScriptError(
                f"optimizer {name!r} is LBFGS, which is stepped with a closure; have the train step ask for "
                f"`optimizers` and call optimizers[{name!r}].step(closure) itself"
            )


def assemble(
    script: Script, state: RunState, data: Data, extensions: Extensions, folder: RunFolder, record: Record
) -> Training:
    """The parts of a run; what each has to remember is made known to the checkpoints."""
    count_steps(state, data.train.num_batches)
    schedules = build_optimizers(script, state, extensions.scheduler)
    gradients = _build_gradients(script, state, data.train.num_batches)
    train = script.train
    assert train is not None
    function = train.bind(state, backward=Tensor.backward if gradients is None else gradients.backward)
    roots = {"model": state.model, **script.kept}
    objects = MetricObjects(lambda: find_metric_objects(train.function, roots))
    returns = Returns(function.name, state, objects, only_finite=state.options.on_nan == "skip")
    callbacks = Callbacks(
        extensions.callbacks,
        {moment: [each.bind(state) for each in functions] for moment, functions in script.moments.items()},
    )
    training = Training(
        function=function,
        batches=data.train,
        returns=returns,
        loss=Loss(function, state.options.optimize_metric),
        schedules=schedules,
        validations=_build_validations(state, data),
        callbacks=callbacks,
        record=record,
        checkpoints=Checkpoints(folder, extensions.backend, state.info, record),
        gradients=gradients,
        epoch_window=Window(returns.window.reductions),
        record_trigger=Trigger(Interval.parse(state.options.log_every)),
        checkpoint_trigger=_trigger(state.options.checkpoint_every),
    )
    training.checkpoints.parts.update(_name_parts(training, state, script.kept))
    return training


def _name_parts(training: Training, state: RunState, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that has a state to be saved, by the name that it has in checkpoints."""
    named = {"record": training.record_trigger, "checkpoint": training.checkpoint_trigger}
    named |= {f"validations/{each.name}": each.trigger for each in training.validations}
    named |= {f"schedulers/{name}": trigger for name, trigger in training.schedules.triggers.items()}
    triggers = {name: trigger for name, trigger in named.items() if trigger is not None}
    return {
        "state": state,
        "triggers": Triggers(triggers, state.time),
        "window": training.returns.window,
        "epoch_window": training.epoch_window,
        "metric_objects": training.returns.objects,
        **({"gradients": training.gradients} if training.gradients and training.gradients.has_state else {}),
        **{f"optimizers/{name}": optimizer for name, optimizer in state.optimizers.items()},
        **training.schedules.parts(),
        **training.callbacks.parts(),
        **({"data": training.batches} if training.batches.has_state else {}),
        **{f"kept/{name}": instance for name, instance in kept.items()},
    }


def _build_gradients(script: Script, state: RunState, num_batches: int | None) -> Gradients | None:
    assert script.train is not None
    if script.train.drives_itself:
        check_self_driven(script.train.name, script.train.asks_for, state.options)
    return Gradients(state, num_batches) if Gradients.are_touched(state.options) else None


def _build_validations(state: RunState, data: Data) -> list[Validation]:
    options, validations = state.options, []
    for request, batches in data.validations:
        assert request.function is not None
        validations.append(
            Validation(
                name=request.name,
                function=request.function.bind(state, is_validate=True),
                batches=batches,
                returns=Returns(request.function.name, state),
                trigger=_trigger(request.every or options.validate_every),
                is_at_start=options.validate_at_start if request.at_start is None else request.at_start,
            )
        )
    return validations


def _create_callbacks(options: RunOptions, plugins: Plugins) -> list[Plugin]:
    """The callbacks that the options name, after the progress bar and the console, unless they name these too."""
    callbacks = [plugins.create("callback", given) for given in options.callbacks]
    named = {plugin.name for plugin in callbacks}
    own: list[Any] = [{"console": {"progress": options.progress}}] if "console" not in named else []
    if options.progress and "progress_bar" not in named and _can_show_bar():
        own.insert(0, "progress_bar")
    return [plugins.create("callback", given) for given in own] + callbacks


def _can_show_bar() -> bool:
    """Whether standard error is a terminal or a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or "IPKernelApp" in getattr(shell, "config", ())


def _trigger(interval: str | None) -> Trigger | None:
    return None if interval is None else Trigger(Interval.parse(interval))
