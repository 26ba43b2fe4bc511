"""Puts together what the loop works with: extensions, batches, optimizers, and everything that a checkpoint holds."""

import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from blowtorch.checkpoint.checkpoints import Checkpoints
from blowtorch.checkpoint.contents import Contents, SavedProgress
from blowtorch.checkpoint.frozen import FrozenWeights
from blowtorch.checkpoint.store import Store
from blowtorch.checkpoint.tensors import KeptModule, plain_name
from blowtorch.clock import Interval, Trigger, Triggers
from blowtorch.data.batches import Batches
from blowtorch.errors import ScriptError
from blowtorch.folder.folder import RunFolder
from blowtorch.hookspecs import Schedule
from blowtorch.options import RunOptions
from blowtorch.parallel.agreement import make_agreement
from blowtorch.plugins import Plugin, Plugins
from blowtorch.progress import Progress
from blowtorch.record.logged import Logged
from blowtorch.record.metric_objects import MetricObjects, find_metric_objects
from blowtorch.record.metrics import Window
from blowtorch.record.record import Record
from blowtorch.schedule.configured import Configured
from blowtorch.schedule.option import (
    SchedulerOption,
    build_schedules,
    describe_scheduler_option,
    find_ended,
    read_scheduler_option,
)
from blowtorch.schedule.returned import as_schedule, read_configured
from blowtorch.schedule.schedules import Schedules
from blowtorch.script.returns import Loss, Returns
from blowtorch.script.script import Script
from blowtorch.state import RunState
from blowtorch.training.callbacks import Callbacks
from blowtorch.training.coverage import Coverage
from blowtorch.training.gradients import ChangedGradients, Gradients, are_changed
from blowtorch.training.run_batches import RunBatches
from blowtorch.training.shared_gradients import SharedGradients, check_self_driven
from blowtorch.training.start import StartingPoint
from blowtorch.training.training import Steps, Training
from blowtorch.training.validation import Validation
from blowtorch.training.workspace import Surroundings, Workspace


@dataclass(frozen=True)
class RunExtensions:
    """The extensions that a run names, and those that it always has."""

    loggers: list[Plugin]
    callbacks: list[Plugin]
    backend: Plugin
    scheduler: SchedulerOption | None

    @classmethod
    def create(cls, options: RunOptions, plugins: Plugins, is_first: bool = True) -> "RunExtensions":
        """Make those of one process; an `ExtensionError` where one cannot be had.

        Of several processes, the first has the loggers, and the callbacks that say `ranks = "first"`.
        """
        callbacks = _create_callbacks(options, plugins)
        return cls(
            loggers=[plugins.create("logger", logger) for logger in options.loggers] if is_first else [],
            callbacks=[each for each in callbacks if is_first or getattr(each.instance, "ranks", "all") != "first"],
            backend=plugins.create("checkpoint-backend", options.checkpoint_backend),
            scheduler=None if options.scheduler is None else read_scheduler_option(options.scheduler, plugins),
        )


@dataclass(frozen=True)
class Plan:
    """What is found out before anything is touched.

    Attributes:
        start: which run it is, and from where it goes on.
        surroundings: the seed, the device, and the processes.
        extensions: that take part.
        batches: to train on and to validate with.
    """

    start: StartingPoint
    surroundings: Surroundings
    extensions: RunExtensions
    batches: RunBatches


def assemble_steps(
    script: Script,
    workspace: Workspace,
    batches: Batches,
    scheduler: SchedulerOption | None = None,
    call_callbacks: Callable[[RunState], Callbacks] = Callbacks,
) -> Steps:
    """Put together what the loop works with in each step; the optimizers are made here.

    Args:
        script: what it says.
        workspace: in which the steps take place.
        batches: to train on.
        scheduler: what the option of that name says.
        call_callbacks: makes what calls the callbacks.

    Raises:
        BlowtorchError: something cannot work.
    """
    state, train = workspace.state, script.train
    assert train is not None
    count_steps(workspace, batches)
    schedules = build_optimizers(script, workspace, scheduler)
    roots = {"model": state.model, **script.kept}
    loss = Loss(train, state.options.optimize_metric)
    returns = Returns(
        train.name,
        workspace.logged,
        workspace.lines.warn_new,
        MetricObjects(lambda: find_metric_objects(train.function, roots), workspace.world),
        Window(only_finite=state.options.on_nan == "skip", pool=workspace.pool),
        summed=loss if state.options.loss_is == "sum" else None,
        has_no_return=train.has_no_return,
    )
    gradients = _build_gradients(script, workspace, batches, returns)
    return Steps(
        workspace=workspace,
        function=train.bind(state, backward=gradients.backward),
        batches=batches,
        returns=returns,
        loss=loss,
        gradients=gradients,
        schedules=schedules,
        callbacks=call_callbacks(state),
    )


def assemble(script: Script, workspace: Workspace, plan: Plan, folder: RunFolder, record: Record) -> Training:
    """Put together what the loop works with; what has a state to be saved is made known to the checkpoints."""
    state, progress = workspace.state, workspace.progress

    def call_callbacks(state: RunState) -> Callbacks:
        functions = {
            moment: [function.bind(state) for function in asked if state.is_first or not function.is_for_first]
            for moment, asked in script.moments.items()
        }
        shown = [(plugin, state.shown_with(own_folder(folder, plugin))) for plugin in plan.extensions.callbacks]
        return Callbacks(state, shown, functions)

    steps = assemble_steps(script, workspace, plan.batches.train, plan.extensions.scheduler, call_callbacks)
    progress.is_shared = workspace.world.is_shared
    epoch_window = Window(steps.returns.window.reductions)
    validations = _build_validations(workspace, plan.batches, steps.loss)
    progress.validations = tuple(validation.name for validation in validations)
    record_trigger = Trigger(Interval.parse(state.options.log_every))
    checkpoint_trigger = _trigger(state.options.checkpoint_every)
    named = {"record": record_trigger, "checkpoint": checkpoint_trigger}
    named |= {f"validations/{validation.name}": validation.trigger for validation in validations}
    named |= {f"schedulers/{name}": trigger for name, trigger in steps.schedules.triggers.items()}
    info = state.shown_with(own_folder(folder, plan.extensions.backend)).info
    store = Store(folder, plan.extensions.backend, info)
    workspace.judged.read_by_optimizers = partial(workspace.optimizer_modes.read_judged, state.model)
    contents = Contents(
        model=state.model,
        judged=workspace.judged,
        configured=Configured(
            workspace.optimizers, steps.schedules, partial(_find_parameters, state.model, script.kept)
        ),
        progress=SavedProgress(progress, state.options, store.path_of),
        triggers=Triggers({name: trigger for name, trigger in named.items() if trigger is not None}, progress.time),
        others={"epoch_window": epoch_window, **plan.batches.parts(), **_checkpoint_parts(steps, script.kept)},
        frozen=None if state.options.checkpoint_frozen else FrozenWeights(state.model),
    )
    checkpoints = Checkpoints(workspace.world, state, progress, contents, store, record)
    return Training(
        steps=steps,
        validations=validations,
        record=record,
        checkpoints=checkpoints,
        epoch_window=epoch_window,
        record_trigger=record_trigger,
        checkpoint_trigger=checkpoint_trigger,
        coverage=Coverage(workspace, script.kept),
        agreement=make_agreement(workspace.world, progress, checkpoints, workspace.media),
    )


def count_steps(workspace: Workspace, batches: Batches) -> None:
    """Work out how many optimizer steps an epoch and the run have."""
    state, progress = workspace.state, workspace.progress
    num_batches = progress.num_batches = batches.num_batches
    progress.batch_size = batches.batch_size
    progress.steps_per_epoch = None if num_batches is None else math.ceil(num_batches / state.options.accumulate)
    progress.limits = (state.max_epochs, state.options.max_steps)
    progress.count_total_steps()


def describe_lengths(progress: Progress, scheduler: SchedulerOption | None) -> Iterator[str]:
    """Yield a sentence for each length that is another than in the process before, where that matters."""
    if scheduler is not None and progress.total_steps != progress.earlier_total_steps:
        yield (
            f"the run has {progress.total_steps} steps now and had {progress.earlier_total_steps} before: "
            f"{describe_scheduler_option(scheduler)}, by the new length from here on"
        )
    now, before = progress.num_batches, progress.earlier_num_batches
    if progress.is_within_epoch and None not in (now, before) and now != before:
        yield (
            f"an epoch has {now} batches now and had {before} before: epoch {progress.epoch} goes on behind its batch "
            f"{progress.batch}, so with other data or another batch size some samples come twice in it, or not at all"
        )


def build_optimizers(script: Script, workspace: Workspace, scheduler: SchedulerOption | None) -> Schedules:
    """Have the script make its optimizers, and give them their schedules."""
    state, progress = workspace.state, workspace.progress
    optimizers, schedulers = read_configured(script.make_optimizers(state))
    workspace.optimizers.update(optimizers)
    workspace.optimizer_modes.begin_training()
    if script.train is not None and not script.train.drives_itself:
        _refuse_closures(optimizers)
    if scheduler is None:
        metric = state.options.checkpoint_metric
        return Schedules(optimizers, {name: as_schedule(name, each, metric) for name, each in schedulers.items()})
    if schedulers:
        raise ScriptError(
            "configure_optimizers returns schedulers, and the option scheduler names another; keep one of them"
        )

    def build(total_steps: int | None) -> dict[str, Schedule]:
        return build_schedules(scheduler, optimizers, total_steps, progress.steps_per_epoch)

    return Schedules(optimizers, {}, build, find_ended(scheduler, optimizers), progress.total_steps)


def _find_parameters(model: nn.Module, kept: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """Return the parameters of the model, and of modules that are kept beside it, by their names."""
    modules = {f"kept/{name}.": module for name, module in kept.items() if isinstance(module, nn.Module)}
    return {
        plain_name(f"{prefix}{name}"): parameter
        for prefix, module in {**modules, "": model}.items()
        for name, parameter in module.named_parameters()
    }


def own_folder(folder: RunFolder, plugin: Plugin) -> Any:
    """Return the folder in which a callback or backend keeps what is its own; None for one that ships with the core."""
    is_built_in = plugin.package == "blowtorch-core"
    return None if is_built_in else folder.own_folder(plugin.kind, plugin.name)


def _refuse_closures(optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Raise a `ScriptError` for an optimizer that computes the loss itself in a step, as the loop does not let it."""
    for name, optimizer in optimizers.items():
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ScriptError(
                f"optimizer {name!r} is {type(optimizer).__name__}, which is stepped with a closure; have the "
                f"train step ask for `optimizers` and call optimizers[{name!r}].step(closure) itself"
            )


def _checkpoint_parts(steps: Steps, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything else that has a state to be saved, by the name that it has in checkpoints."""
    return {
        "window": steps.returns.window,
        "metric_objects": steps.returns.objects,
        **({"gradients": steps.gradients} if steps.gradients.has_state else {}),
        **{f"optimizers/{name}": optimizer for name, optimizer in steps.workspace.optimizers.items()},
        **steps.schedules.checkpoint_parts(),
        **steps.callbacks.checkpoint_parts(),
        **{f"kept/{name}": _plain(instance) for name, instance in kept.items()},
    }


def _plain(instance: Any) -> Any:
    """Return what is kept, a module as the model itself is saved: whether it is compiled or has shapes yet or not."""
    is_module = isinstance(instance, torch.nn.Module) and type(instance).state_dict is torch.nn.Module.state_dict
    return KeptModule(instance) if is_module else instance


def _build_gradients(script: Script, workspace: Workspace, batches: Batches, returns: Returns) -> Gradients:
    assert script.train is not None
    options, is_self_driven = workspace.state.options, script.train.drives_itself
    if is_self_driven:
        try:
            check_self_driven(script.train.name, script.train.asks_for, options, workspace.state.model)
        except ScriptError as error:
            workspace.world.refuse(error)
    if not are_changed(options) and not workspace.world.is_shared:
        return Gradients()
    arguments: dict[str, Any] = {
        "state": workspace.state,
        "progress": workspace.progress,
        "logged": workspace.logged if workspace.world.is_first else Logged(),  # what all would log counts once
        "lines": workspace.lines,
        "batches": batches,
        "is_self_driven": is_self_driven,
        "returns": returns,
    }
    is_shared = workspace.world.is_shared
    return SharedGradients(workspace.world, **arguments) if is_shared else ChangedGradients(**arguments)


def _build_validations(workspace: Workspace, data: RunBatches, loss: Loss) -> list[Validation]:
    options, validations = workspace.state.options, []
    for request, batches in data.validations:
        assert request.function is not None
        validations.append(
            Validation(
                name=request.name,
                function=request.function.bind(workspace.state, is_validate=True),
                batches=batches,
                returns=Returns(
                    request.function.name,
                    workspace.logged,
                    workspace.lines.warn_new,
                    MetricObjects(world=workspace.world),
                    Window(pool=workspace.pool),
                    summed=loss if options.loss_is == "sum" else None,
                    has_no_return=request.function.has_no_return,
                ),
                trigger=_trigger(request.every or options.validate_every),
                is_at_start=options.validate_at_start if request.at_start is None else request.at_start,
            )
        )
    return validations


def _create_callbacks(options: RunOptions, plugins: Plugins) -> list[Plugin]:
    """Make the callbacks that the options name, after the progress bar and the console, unless they name these too."""
    callbacks = [plugins.create("callback", callback) for callback in options.callbacks]
    named = {plugin.name for plugin in callbacks}
    own: list[Any] = [{"console": {"progress": options.progress}}] if "console" not in named else []
    if options.progress and "progress_bar" not in named and _can_show_bar():
        own.insert(0, "progress_bar")
    return [plugins.create("callback", callback) for callback in own] + callbacks


def _can_show_bar() -> bool:
    """Return whether standard error is a terminal or a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if "IPKernelApp" in getattr(shell, "config", ()):
        return True
    try:
        return bool(sys.stderr.isatty())
    except Exception:  # it is None or closed, or the user's own, with `write` and little else
        return False


def _trigger(interval: str | None) -> Trigger | None:
    return None if interval is None else Trigger(Interval.parse(interval))
