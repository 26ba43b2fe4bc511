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

At one step things always happen in this order: train, record, validate, decide, checkpoint. A checkpoint is copied
there and then, and written while training goes on; `checkpoint_saved` follows once it is published.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from blowtorch.callbacks import Callbacks
from blowtorch.checkpoints import Checkpoints
from blowtorch.clock import NEVER, Trigger
from blowtorch.data import Batches
from blowtorch.errors import BlowtorchError, CheckpointError, NotFiniteError, ScriptError, nearest
from blowtorch.metrics import MeanWindow, count_samples, means
from blowtorch.record import Record
from blowtorch.reproducibility import derive_seed, isolated_random, restore_random_state
from blowtorch.schedules import Schedules
from blowtorch.state import RunState
from blowtorch.steps import Function, Loss, Returns
from blowtorch.tensors import find_not_finite
from blowtorch.validation import EpochLoader, Validation, ValidationCutError, validate


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
        for validation in training.validations:
            if validation.is_at_start:
                record_validation(training, state, validation.name, validate(validation, state))
        decide_and_save(training, state)
    run_epoch = train_epoch if training.function.kind == "train_step" else drive_epoch
    while should_go_on(state):
        if state.is_epoch_done:
            restore_streams(training)  # what takes part in the beginning of an epoch may draw from them
            state.begin_epoch()
        notify(training, state, "epoch_start")
        with contextlib.suppress(ValidationCutError):  # the validation is still due when the run goes on
            is_whole = run_epoch(training, state)
            if is_whole:
                finish_epoch(training, state)
        if state.interruption is None:
            report_unread_overrides(state)
    if state.interruption is not None:
        state.say(f"{state.interruption}: stopping after step {state.step}")
    report_saved(training, state)
    if not training.checkpoints.is_current(state):
        save(training, state, is_best=False)
        report_saved(training, state)
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
    if state.batch:
        after_step(training, state)  # a validation that was cut short is still due
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
    if training.checkpoints.has_news:
        report_saved(training, state)
    if state.batch != training.batches.num_batches:
        validate_due(training, state)
        decide_and_save(training, state)
    plan_next_event(training, state)


def finish_epoch(training: Training, state: RunState) -> None:
    """Do what is due at the end of an epoch."""
    record_training(training, state, closes_epoch=True)
    state.is_epoch_done = True
    try:
        validate_due(training, state)
    except ValidationCutError:
        state.is_epoch_done = False
        raise
    epoch_means = {name: value for name, value in state.measured_now().items() if name.startswith("train_epoch/")}
    notify(training, state, "epoch_end", metrics=epoch_means)
    training.schedules.after_metrics(state, epoch_means)
    training.schedules.check_metrics(state, [each.name for each in training.validations])
    training.schedules.after_epoch(state)
    report_missing_metric(training, state)
    decide_and_save(training, state)


def plan_next_event(training: Training, state: RunState) -> None:
    """Work out the next step after which anything can be due, so that the others need not ask."""
    state.next_event = min([trigger.next_step(state.step) for trigger in training.triggers], default=NEVER)
    if training.checkpoints.has_news:
        state.next_event = 0


def record_training(training: Training, state: RunState, closes_epoch: bool = False) -> None:
    """Record the open window, and at the end of an epoch its means too."""
    totals = training.returns.window.close()
    training.epoch_window.merge(totals)
    metrics = {f"train/{name}": value for name, value in means(totals).items()}
    if metrics:
        metrics |= training.schedules.rates if training.schedules.wants_steps else training.schedules.read_rates()
    if closes_epoch:
        metrics |= {f"train_epoch/{name}": value for name, value in means(training.epoch_window.close()).items()}
    record_metrics(training.record, state, metrics, is_urgent=closes_epoch)
    check_finite(training, state, metrics.get(f"train/{training.loss.name}", 0.0))


def check_finite(training: Training, state: RunState, loss: float) -> None:
    """Do what `on_nan` says if the mean loss of a window is not finite; to look is free, since it was read anyway."""
    if math.isfinite(loss) or state.options.on_nan == "ignore":
        return
    spoiled = find_not_finite(state.model)
    consequence = "the model is still finite" if spoiled is None else f"so is {spoiled!r} in the model"
    text = f"train/{training.loss.name} is {loss} at step {state.step}, and {consequence}"
    if state.options.on_nan == "stop":
        raise NotFiniteError(
            f"{text}; checkpoints from before are untouched. Lower the learning rate, clip the gradients, or look for "
            f"bad data; the option on_nan='warn' goes on"
        )
    if "nan" not in state.reported:
        state.reported.add("nan")
        state.warn(f"{text}; on_nan='warn' goes on, and says so once")


def record_metrics(record: Record, state: RunState, metrics: Mapping[str, float], is_urgent: bool = True) -> None:
    """Put metrics into the record, as of now."""
    if not metrics:
        return
    state.metrics.update(metrics)
    state.measured_at.update(dict.fromkeys(metrics, state.step))
    record.append("metrics", is_urgent, step=state.step, epoch=state.epoch, time=time.time(), metrics=dict(metrics))


def validate_due(training: Training, state: RunState) -> None:
    """Do the validations that are due now; one that is cut short is due again."""
    for validation in training.validations:
        trigger = validation.trigger
        if trigger is None:
            continue
        before = trigger.count
        if trigger.is_due(state.time()):
            try:
                metrics = validate(validation, state, may_be_cut=training.function.kind == "train_step")
            except ValidationCutError:
                trigger.count = before
                raise
            record_validation(training, state, validation.name, metrics)


def record_validation(training: Training, state: RunState, name: str, metrics: Mapping[str, float]) -> None:
    """Record what a validation measured, and let callbacks and schedulers know."""
    record_metrics(training.record, state, metrics)
    notify(training, state, "validation_end", name=name, metrics=metrics)
    training.schedules.after_metrics(state, metrics)


def decide_and_save(training: Training, state: RunState) -> None:
    """Decide whether this is the best state so far, and make a checkpoint if that or the clock asks for one."""
    trigger = training.checkpoint_trigger
    is_due = trigger is not None and trigger.is_due(state.time())
    if is_new_best(state) or is_due:
        report_saved(training, state)  # a new one waits for the last, which may turn out not to be the best
        save(training, state, is_new_best(state))


def report_missing_metric(training: Training, state: RunState) -> None:
    """Say, once, that the validations do not measure what decides on the best checkpoint."""
    option, names = state.options.checkpoint_metric, tuple(f"{each.name}/" for each in training.validations)
    measured = [name for name in state.measured_now() if name.startswith(names)]
    is_measured = option in state.metrics and not option.startswith("train/")  # which is of a few steps only
    if measured and not is_measured and state.options.keep_best and "metric" not in state.reported:
        state.reported.add("metric")
        state.say(
            f"no checkpoint is the best one: checkpoint_metric is {option!r}, and validations measure "
            f"{', '.join(measured)}.{nearest(option, measured)}"
        )


def is_new_best(state: RunState) -> bool:
    """Whether `checkpoint_metric` was measured now and is better than ever."""
    option = state.options.checkpoint_metric
    if state.measured_at.get(option) != state.step or option.startswith("train/"):  # which is of a few steps only
        return False
    value = state.metrics[option]
    if math.isnan(value) or not state.options.keep_best:
        return False
    best = None if state.best is None else state.best.metric
    if best is None:
        return True
    return value < best if state.options.smaller_is_better else value > best


def save(training: Training, state: RunState, is_best: bool) -> None:
    """Begin to save a checkpoint; one that cannot be written is tried again at the next occasion."""
    try:
        training.checkpoints.begin(state, is_best)
    except NotFiniteError as error:
        if state.options.on_nan == "stop":
            raise
        warn_unsaved(state, error)
    except CheckpointError as error:
        warn_unsaved(state, error)
    if not state.options.checkpoint_async:
        report_saved(training, state)


def report_saved(training: Training, state: RunState) -> None:
    """Wait for the checkpoint on its way, if there is one, and let everybody know what became of it."""
    try:
        saved = training.checkpoints.finish(state)
    except CheckpointError as error:
        warn_unsaved(state, error)
        return
    if saved is None:
        return
    checkpoint = saved.moment.checkpoint
    training.record.append(
        "checkpoint",
        step=checkpoint.step,
        epoch=saved.moment.epoch,
        time=time.time(),
        name=checkpoint.name,
        metric=checkpoint.metric,
        is_best=saved.is_best,
    )
    with isolated_random(derive_seed(state.seed, checkpoint.name)):  # when it comes to this is chance
        notify(training, state, "checkpoint_saved", checkpoint=checkpoint, is_best=saved.is_best)
    problem = saved.outcome.result()
    if problem is not None:
        state.warn(f"an old checkpoint could not be deleted: {problem}")


def warn_unsaved(state: RunState, error: BlowtorchError) -> None:
    """Say loudly that a checkpoint is missing."""
    state.warn(f"{error}; what was saved before is untouched, and it is tried again at the next occasion")
