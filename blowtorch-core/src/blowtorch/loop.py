"""The training and validation loops, in plain sight.

    run_start
    for each epoch:
        epoch_start
        for each batch:                       # on the device, in the order of (seed, epoch), from the right position
            train step, backward, optimizer step, schedulers per step
            train_step_end
            now and then: record, validate, decide, checkpoint
        record, validate, epoch_end, schedulers per epoch, decide, checkpoint
    checkpoint
    run_end

At one step things always happen in this order: train, record, validate, decide, checkpoint.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from blowtorch.callbacks import Callbacks
from blowtorch.checkpoints import Checkpoints
from blowtorch.clock import NEVER, Trigger
from blowtorch.data import Batches
from blowtorch.errors import BlowtorchError, CheckpointError, ScriptError, nearest
from blowtorch.metrics import MeanWindow, count_samples, means
from blowtorch.record import Record
from blowtorch.reproducibility import derive_seed, isolated_random, restore_random_state
from blowtorch.schedules import Schedules
from blowtorch.state import RunState
from blowtorch.steps import Function, Loss, Returns


@dataclass
class Validation:
    """One validation: its function, its data, and when it is due."""

    name: str
    function: Function
    batches: Batches
    returns: Returns
    trigger: Trigger | None
    is_at_start: bool


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
    epoch_window: MeanWindow
    record_trigger: Trigger
    checkpoint_trigger: Trigger | None
    changes: list[str] = field(default_factory=list)  # since the process that is continued, in words
    random_state: dict[str, Any] | None = None  # of a checkpoint; put back before the next batch is fetched

    def __post_init__(self) -> None:
        found = [self.record_trigger, self.checkpoint_trigger, *(each.trigger for each in self.validations)]
        self.triggers = [  # everything that may be due after a step; at the end of an epoch all are asked anyway
            trigger for trigger in found if trigger is not None and trigger.interval.unit != "epochs"
        ]


def train(training: Training, state: RunState) -> None:
    """Train until a limit is reached or something wants the run to stop; a checkpoint stands at the end."""
    notify(training, state, "run_start")
    for line in training.changes:
        state.say(line)
    if state.step == 0 and training.random_state is None:  # else a run stopped at step 0 goes on
        measured = validate_all(training, state, [each for each in training.validations if each.is_at_start])
        decide_and_save(training, state, measured)
    run_epoch = train_epoch if training.function.kind == "train_step" else drive_epoch
    while should_go_on(state):
        if state.is_epoch_done:
            restore_streams(training)  # what takes part in the beginning of an epoch may draw from them
            state.begin_epoch()
        notify(training, state, "epoch_start")
        is_whole = run_epoch(training, state)
        if is_whole:
            finish_epoch(training, state)
        if state.interruption is None:
            report_unread_overrides(state)
    if state.interruption is not None:
        state.say(f"{state.interruption}: stopping after step {state.step}")
    if not training.checkpoints.is_current(state):
        save(training, state, is_best=False)
    if not training.checkpoints.is_current(state):
        raise CheckpointError("the last checkpoint of the run could not be written; see the warnings above")


def notify(training: Training, state: RunState, moment: str, **at_hand: Any) -> None:
    """Call everybody who takes part in a moment outside of the steps; what they log is recorded at once."""
    training.callbacks.call(moment, state, **at_hand)
    if state.logged:
        logged = training.returns.read(None, state.logged)
        record_metrics(training.record, state, {name: float(value) for name, value in logged.items()})


def report_unread_overrides(state: RunState) -> None:
    """Say, after the first epoch of a process, which overrides of the command line nothing has read."""
    if "overrides" not in state.reported:
        state.reported.add("overrides")
        for key in state.config.unread_overrides():
            state.warn(f"nothing has read {key!r}, which the command line sets; does the script use another name?")


def should_go_on(state: RunState) -> bool:
    """Whether there is more to train."""
    if state.stop_reason is not None or state.interruption is not None:
        return False
    if state.options.max_steps is not None and state.step >= state.options.max_steps:
        return False
    if state.max_epochs is None:
        return True
    return state.epoch < state.max_epochs or (state.epoch == state.max_epochs and not state.is_epoch_done)


def restore_streams(training: Training) -> None:
    """Put the random streams of a checkpoint back, if the run continues from one and has not yet done so."""
    if training.random_state is not None:
        restore_random_state(training.random_state)
        training.random_state = None


def start_batches(training: Training, state: RunState) -> Iterator[Any]:
    """The batches of the epoch from where it stands; skipping those before it may have drawn from random streams."""
    batches = training.batches.start(state.epoch, state.batch)
    restore_streams(training)
    plan_next_event(training, state)
    return batches


def train_epoch(training: Training, state: RunState) -> bool:
    """Train from where the epoch stands; say whether its end was reached."""
    batches = start_batches(training, state)
    function, schedules, take = training.function, training.schedules, training.returns.take
    step, arguments = function.function, function.arguments
    optimizers = [] if "optimizers" in function.asks_for else list(state.optimizers.values())
    step_end, last_step, loss, logged = training.callbacks.step_end, state.options.max_steps, "", state.logged
    wants_counts, wants_schedules = function.wants_counts, schedules.wants_steps
    for batch in batches:
        for optimizer in optimizers:
            optimizer.zero_grad()
        arguments["batch"] = batch
        if wants_counts:
            function.count()
        metrics, samples = take(step(**arguments), logged, batch)
        if optimizers:  # else the step has driven itself
            if loss not in metrics:
                loss = training.loss.choose(metrics)
            metrics[loss].backward()
            for optimizer in optimizers:
                optimizer.step()
        state.step += 1
        state.batch += 1
        state.samples += samples
        if wants_schedules:
            schedules.after_step(state)
        for notify_step_end in step_end:
            notify_step_end(state, batch, metrics)
        if logged:
            training.returns.add(None, logged, samples)
        if state.step >= state.next_event:
            after_step(training, state)
        is_last = state.step == last_step and state.batch != training.batches.num_batches
        if is_last or state.interruption is not None or state.stop_reason is not None:
            return False
    return True


def drive_epoch(training: Training, state: RunState) -> bool:
    """Let the user's function train the whole epoch; it is never cut short."""
    batches, num_batches = start_batches(training, state), training.batches.num_batches
    loader = EpochLoader(batches, num_batches, lambda batch: count_batch(training, state, batch))
    returned = training.function.function(**training.function.given(data_loader=loader))
    loader.finish_batch()
    if state.batch == 0 and state.max_epochs is None:
        raise ScriptError(
            f"{training.function.name} took no batch of its data_loader, so max_steps is never reached; iterate it, or "
            f"set max_epochs"
        )
    training.returns.add({} if returned is None else returned, state.logged, 1)
    return True


class EpochLoader:
    """The `data_loader` of a function that drives an epoch: iterable once, with a length where that is known.

    `done` is called with each batch once the next is asked for, and with the last one by `finish_batch`.
    """

    def __init__(
        self, batches: Iterator[Any], num_batches: int | None, done: Callable[[Any], None] = lambda batch: None
    ) -> None:
        self._batches = batches
        self._num_batches = num_batches
        self._done = done
        self._given: list[Any] = []  # the batch that the function works on

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            self.finish_batch()  # a function may begin to iterate again where it broke off
            self._given.append(batch)
            yield batch
            self.finish_batch()

    def finish_batch(self) -> None:
        """The function is done with the batch that it was given last."""
        if self._given:
            self._done(self._given.pop())

    def __len__(self) -> int:
        if self._num_batches is None:
            raise TypeError("this loader does not know how many batches it has")
        return self._num_batches


def count_batch(training: Training, state: RunState, batch: Any) -> None:
    """What happens after each batch of a function that drives a whole epoch; each counts as a step."""
    samples = count_samples(batch)
    state.step += 1
    state.batch += 1
    state.samples += samples
    if state.logged:
        training.returns.add(None, state.logged, samples)
    if training.schedules.wants_steps:
        training.schedules.after_step(state)
    for notify_step_end in training.callbacks.step_end:
        notify_step_end(state, batch, {})
    if state.step >= state.next_event:
        if training.record_trigger.is_due(state.time()):
            record_training(training, state)
        plan_next_event(training, state)


def after_step(training: Training, state: RunState) -> None:
    """Do what is due after a step; what falls on the last step of an epoch waits for the end of that epoch."""
    if training.record_trigger.is_due(state.time()):
        record_training(training, state)
    if state.batch != training.batches.num_batches:
        decide_and_save(training, state, validate_due(training, state))
    plan_next_event(training, state)


def finish_epoch(training: Training, state: RunState) -> None:
    """Do what is due at the end of an epoch."""
    epoch_means = record_training(training, state, closes_epoch=True)
    state.is_epoch_done = True
    measured = validate_due(training, state)
    notify(training, state, "epoch_end", metrics=epoch_means)
    training.schedules.after_metrics(state, epoch_means)
    training.schedules.check_metrics(state, [each.name for each in training.validations])
    training.schedules.after_epoch(state)
    report_missing_metric(state, measured)
    decide_and_save(training, state, {**epoch_means, **measured})


def plan_next_event(training: Training, state: RunState) -> None:
    """Work out the next step after which anything can be due, so that the others need not ask."""
    state.next_event = min([trigger.next_step(state.step) for trigger in training.triggers], default=NEVER)


def record_training(training: Training, state: RunState, closes_epoch: bool = False) -> dict[str, float]:
    """Record the open window, and at the end of an epoch its means too, which are returned."""
    totals = training.returns.window.close()
    training.epoch_window.merge(totals)
    metrics = {f"train/{name}": value for name, value in means(totals).items()}
    if metrics:
        metrics |= training.schedules.rates if training.schedules.wants_steps else training.schedules.read_rates()
    epoch_means = {}
    if closes_epoch:
        epoch_means = {f"train_epoch/{name}": value for name, value in means(training.epoch_window.close()).items()}
    record_metrics(training.record, state, metrics | epoch_means, is_urgent=closes_epoch)
    return epoch_means


def record_metrics(record: Record, state: RunState, metrics: Mapping[str, float], is_urgent: bool = True) -> None:
    """Put metrics into the record, as of now."""
    if not metrics:
        return
    state.metrics.update(metrics)
    state.measured_at.update(dict.fromkeys(metrics, state.step))
    record.append("metrics", is_urgent, step=state.step, epoch=state.epoch, time=time.time(), metrics=dict(metrics))


def validate_due(training: Training, state: RunState) -> dict[str, float]:
    """Do the validations that are due now; returns what was measured."""
    if not training.validations:
        return {}
    now = state.time()
    due = [each for each in training.validations if each.trigger is not None and each.trigger.is_due(now)]
    return validate_all(training, state, due)


def validate_all(training: Training, state: RunState, validations: list[Validation]) -> dict[str, float]:
    """Validate, record, and let callbacks and schedulers know; returns what was measured."""
    measured: dict[str, float] = {}
    for validation in validations:
        metrics = validate(validation, state)
        record_metrics(training.record, state, metrics)
        notify(training, state, "validation_end", name=validation.name, metrics=metrics)
        training.schedules.after_metrics(state, metrics)
        measured |= metrics
    return measured


def validate(validation: Validation, state: RunState) -> dict[str, float]:
    """One validation: the means of what its function returns, by their recorded names.

    The random streams of training are untouched; those of the validation depend on seed, step and name alone.
    """
    modules = list(state.model.modules())
    modes = [module.training for module in modules]
    state.model.eval()
    function, returns, logged = validation.function, validation.returns, state.logged
    # no_grad and not inference_mode: what a module caches here must still be usable in training.
    try:
        with isolated_random(derive_seed(state.seed, state.step, validation.name)), torch.no_grad():
            batches = validation.batches.start(state.step + 1)
            if function.kind == "validate_epoch":
                loader = EpochLoader(batches, validation.batches.num_batches)
                returned = function.function(**function.given(data_loader=loader))
                returns.add({} if returned is None else returned, logged, 1)
            else:
                for batch in batches:
                    returns.take(function.function(**function.given(batch=batch)), logged, batch)
            measured = means(returns.window.close())
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
    return {f"{validation.name}/{name}": value for name, value in measured.items()}


def decide_and_save(training: Training, state: RunState, measured: Mapping[str, float]) -> None:
    """Decide whether this is the best state so far, and make a checkpoint if that or the clock asks for one."""
    is_best = is_new_best(state, measured)
    trigger = training.checkpoint_trigger
    is_due = trigger is not None and trigger.is_due(state.time())
    if is_best or is_due:
        save(training, state, is_best)


def report_missing_metric(state: RunState, measured: Mapping[str, float]) -> None:
    """Say, once, that the validations do not measure what decides on the best checkpoint."""
    option = state.options.checkpoint_metric
    is_measured = option in state.metrics and not option.startswith("train/")  # which is of a few steps only
    if measured and not is_measured and state.options.keep_best and "metric" not in state.reported:
        state.reported.add("metric")
        state.say(
            f"no checkpoint is the best one: checkpoint_metric is {option!r}, and validations measure "
            f"{', '.join(measured)}.{nearest(option, measured)}"
        )


def is_new_best(state: RunState, measured: Mapping[str, float]) -> bool:
    """Whether `checkpoint_metric` was measured and is better than ever."""
    value = measured.get(state.options.checkpoint_metric)
    if value is None or math.isnan(value) or not state.options.keep_best:
        return False
    best = None if state.best is None else state.best.metric
    if best is None:
        return True
    return value < best if state.options.smaller_is_better else value > best


def save(training: Training, state: RunState, is_best: bool) -> None:
    """Save a checkpoint; one that cannot be written is said loudly and tried again at the next occasion."""
    try:
        checkpoint = training.checkpoints.save(state, is_best)
    except CheckpointError as error:
        state.warn(f"{error}; what was saved before is untouched, and it is tried again at the next occasion")
        return
    state.record("checkpoint", name=checkpoint.name, metric=checkpoint.metric, is_best=is_best)
    notify(training, state, "checkpoint_saved", checkpoint=checkpoint, is_best=is_best)
    try:
        training.checkpoints.retain(state)
    except (OSError, BlowtorchError) as error:
        state.warn(f"an old checkpoint could not be deleted: {error}")
