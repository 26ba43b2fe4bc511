"""What happens between two steps and at the end of an epoch, in this order: record, validate, decide, save."""

import copy
import itertools
import math
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from blowtorch.clock import NEVER
from blowtorch.errors import BlowtorchError, CheckpointError, NotFiniteError, nearest
from blowtorch.parallel.agreement import name_those
from blowtorch.record.metrics import Window
from blowtorch.script.returns import LEFT_OUT, Returns
from blowtorch.streams import derive_seed, isolated_random, random_state, restore_random_state
from blowtorch.training.recording import record_late, record_metrics, record_training
from blowtorch.training.training import Training
from blowtorch.training.validation import ValidationCutError, report_length, validate


class EpochCutError(Exception):
    """The run ends amid an epoch, after a step that was taken for the last of that epoch."""


def until_end(training: Training, batches: Iterator[Any]) -> Iterator[Any]:
    """Return the batches of an epoch, which may be more than their loader says.

    Raises:
        EpochCutError: after the step that was taken for the last, the run ends; more batches would have come.
    """
    said, done = training.steps.batches.num_batches, training.progress.batch
    if said is None or training.steps.batches.has_firm_length:
        return batches
    return itertools.chain(itertools.islice(batches, max(0, said - done)), _beyond_length(training, batches))


def _beyond_length(training: Training, batches: Iterator[Any]) -> Iterator[Any]:
    """Yield what comes after as many batches as the loader says; do before what has waited for the end of the epoch."""
    is_end_awaited, training.is_end_awaited = training.is_end_awaited, False
    if is_end_awaited:
        streams, position = random_state(), copy.deepcopy(training.steps.batches.state_dict())
    following = list(itertools.islice(batches, 1))
    if following and is_end_awaited:
        streams_after = random_state()
        restore_random_state(streams)  # a checkpoint has the streams and the position from before this batch
        with training.steps.batches.kept_as(position):
            goes_on = after_step(training, may_be_last=False)
        restore_random_state(streams_after)
        if not goes_on:
            raise EpochCutError
    while following:
        yield following.pop()
        following += itertools.islice(batches, 1)


def after_step(training: Training, may_be_last: bool = True) -> bool:
    """Do what is due after a step, and say whether the epoch goes on.

    What falls on the last step of an epoch waits for the end of that epoch.
    """
    progress = training.progress
    if training.agreement is not None and progress.step >= training.agreement.next_step:
        training.agreement.meet()
    if training.record.is_behind:
        settle(training)
    if 0 < progress.next_event <= progress.step < training.next_decision:  # there is nothing to do but to record
        record_due(training, may_be_late=training.agreement is None)  # several processes read together
        await_next_event(training)
        return not progress.is_ending  # a signal may have come while metrics were recorded
    training.is_end_awaited = is_last = may_be_last and progress.batch == training.steps.batches.num_batches
    record_due(training)
    report_published(training)
    if not is_last:
        validate_due(training)
        decide_and_save(training)
    plan_next_event(training)
    return not progress.is_ending and (is_last or not is_limit_reached(training))


def end_epoch(training: Training) -> None:
    """Do what is due at the end of an epoch."""
    state, progress, steps = training.state, training.progress, training.steps
    if steps.function.kind == "train_step":
        report_length(steps.batches, progress.batch, state)
    settle(training)
    record_training(training, closes_epoch=True)
    settle(training)
    report_left_out(training)
    progress.is_epoch_done = True
    try:
        validate_due(training)
    except ValidationCutError:
        progress.is_epoch_done = False
        raise
    epoch_means = {name: value for name, value in progress.measured_now().items() if name.startswith("train_epoch/")}
    notify(training, "epoch_end", metrics=epoch_means)
    training.coverage.end_epoch()
    steps.schedules.after_metrics(state, epoch_means)
    steps.schedules.check_metrics(state, [validation.name for validation in training.validations])
    steps.schedules.after_epoch(state)
    report_missing_metric(training)
    decide_and_save(training)


def report_left_out(training: Training) -> None:
    """Warn, once, of an epoch in which nothing was trained, since the step left every batch out."""
    progress = training.progress
    if progress.measured_now().get(f"train_epoch/{LEFT_OUT}") == progress.batch:
        training.workspace.lines.warn_once(
            "nothing is trained",
            f"{training.steps.function.name} left out every batch of epoch {progress.epoch}, so nothing was trained; "
            f"does it forget to return its loss?",
        )


def plan_next_event(training: Training) -> None:
    """Work out the next steps after which anything can be due, so that the loop need not ask after the others."""
    if training.compilations.is_new:
        training.compilations.report()
    step, options = training.progress.step, training.state.options
    upcoming = [trigger.next_step(step) for trigger in training.step_triggers]
    if options.max_steps is not None and options.max_steps > step:
        upcoming.append(options.max_steps)
    if training.coverage.settle() or options.max_samples is not None:
        upcoming.append(step + 1)
    training.next_decision = min(upcoming, default=NEVER)
    await_next_event(training)


def await_next_event(training: Training) -> None:
    """Have the loop look around when a recording or anything else can be due, or at once if somebody asks for it."""
    progress = training.progress
    progress.next_event = min(training.next_decision, training.record_trigger.next_step(progress.step))
    if training.agreement is not None:
        progress.next_event = min(progress.next_event, training.agreement.next_step)
    if training.record.is_behind:
        progress.next_event = progress.step + 1
    # A signal or a writer that came in between has asked for a look, which the line above has overwritten.
    if progress.interruption is not None or progress.stop_reason is not None or training.teller.has_news:
        progress.next_event = 0


def is_limit_reached(training: Training) -> bool:
    """Return whether a limit of the options ends the training here."""
    progress, options, max_epochs = training.progress, training.state.options, training.state.max_epochs
    if options.max_steps is not None and progress.step >= options.max_steps:
        return True
    if options.max_samples is not None and progress.samples >= options.max_samples:
        return True
    if max_epochs is None:
        return False
    return progress.epoch > max_epochs or (progress.epoch == max_epochs and progress.is_epoch_done)


def notify(training: Training, moment: str, **at_hand: Any) -> None:
    """Call everybody who takes part in a moment outside of the steps; what they log is recorded at once."""
    workspace = training.workspace
    training.steps.callbacks.call(moment, **at_hand)
    window = Window(pool=workspace.pool)
    if workspace.logged.values:
        returns = Returns(f"what takes part in {moment}", workspace.logged, workspace.lines.warn, window=window)
        window.add(returns.as_scalars(None), 1)
    record_metrics(training, window.means())
    if training.agreement is not None:
        training.agreement.meet()


def record_due(training: Training, may_be_late: bool = False) -> None:
    """Record the metrics if that is due; those on an accelerator may be read when the next step is under way."""
    trigger, progress = training.record_trigger, training.progress
    is_in_steps = trigger.interval.unit == "steps"
    if trigger.fire_at(progress.step) if is_in_steps else trigger.fire(progress.time()):
        if may_be_late and training.steps.returns.window.is_waiting:
            record_late(training)
        else:
            record_training(training)
    if training.lost_loss is not None:
        heed_lost_loss(training, *training.lost_loss)


def report_published(training: Training) -> None:
    """Tell of a checkpoint that has been published meanwhile."""
    if training.teller.has_news:
        wait_for_checkpoint(training)


def settle(training: Training) -> None:
    """Write down what was recorded and left to be read later, and heed a loss that is not finite."""
    training.record.catch_up()
    if training.lost_loss is not None:
        heed_lost_loss(training, *training.lost_loss)


def heed_lost_loss(training: Training, loss: float, step: int) -> None:
    """Do what `on_nan` says of the mean loss of a step that is not finite."""
    training.lost_loss = None
    state, lines = training.state, training.workspace.lines
    if state.options.on_nan == "ignore":
        return
    spoiled = training.checkpoints.find_spoiled_weight()
    consequence = "the model is still finite" if spoiled is None else f"so is {spoiled!r} in the model"
    name, world = training.steps.loss.name, training.workspace.world
    place = name_those(world, name in training.steps.returns.window.lost)
    text = f"train/{name} is {loss} at step {step}{place}, and {consequence}"
    if state.options.on_nan == "stop":
        wait_for_checkpoint(training)  # the last good checkpoint may be on its way
        text = f"{text}; {training.checkpoints.describe_last_good()}. Lower the learning rate, clip the gradients, or"
        world.refuse(NotFiniteError(f"{text} look for bad data; the option on_nan='warn' goes on"))
    lines.warn_once("a loss is not finite", f"{text}; on_nan='warn' goes on, and says so once")


def validate_due(training: Training) -> None:
    """Do the validations that are due now; one that is cut short stays due."""
    for validation in training.validations:
        trigger, time = validation.trigger, training.progress.time()
        if trigger is not None and trigger.is_due(time):
            announce_validation(training, validation.name)
            training.workspace.share_buffers()
            with training.steps.returns.objects.put_aside():
                metrics = validate(validation, training.workspace, partial(is_validation_cut, training))
            trigger.mark_done(time)
            record_validation(training, validation.name, metrics)


def is_validation_cut(training: Training) -> bool:
    """Return whether a validation under way is to be cut, since the run is asked to stop; an epoch's own goes on."""
    if training.agreement is not None:
        training.agreement.meet_among_batches()
    return training.progress.interruption is not None and training.steps.function.kind == "train_step"


def announce_validation(training: Training, name: str) -> None:
    """Let callbacks know that a validation is about to begin."""
    with isolated_random(derive_seed(training.state.seed, training.progress.step, name, "start")):
        notify(training, "validation_start", name=name)


def record_validation(training: Training, name: str, metrics: Mapping[str, float]) -> None:
    """Record what a validation measured, and let callbacks and schedules know."""
    state, step = training.state, training.progress.step
    record_metrics(training, metrics)
    with isolated_random(derive_seed(state.seed, step, name, "end")):  # how often one validates changes nothing
        notify(training, "validation_end", name=name, metrics=metrics)
    training.steps.schedules.after_metrics(state, metrics)


def decide_and_save(training: Training) -> None:
    """Decide whether this is the best state so far, and make a checkpoint if that or the clock asks for one."""
    trigger = training.checkpoint_trigger
    is_due = trigger is not None and trigger.fire(training.progress.time())
    if is_new_best(training) or is_due:
        wait_for_checkpoint(training)  # a new one waits for the last, which may turn out not to be the best
        save(training, is_new_best(training))


def is_new_best(training: Training) -> bool:
    """Return whether `checkpoint_metric` was measured now and is better than ever."""
    progress, options = training.progress, training.state.options
    metric = options.checkpoint_metric
    if progress.measured_at.get(metric) != progress.step or not can_decide(metric):
        return False
    value = progress.metrics[metric]
    if math.isnan(value) or not options.keep_best:
        return False
    best = None if progress.best is None else progress.best.metric
    if best is None:
        return True
    return value < best if options.smaller_is_better else value > best


def can_decide(metric: str) -> bool:
    """Return whether a metric can decide on the best checkpoint; `train/...` is a mean of a few steps only."""
    return not metric.startswith("train/")


def save(training: Training, is_best: bool) -> None:
    """Save a checkpoint; one that cannot be written is tried again at the next occasion."""
    options = training.state.options
    if training.agreement is not None:
        training.agreement.meet()  # what others have logged belongs to the record that the checkpoint tells of
    training.workspace.share_buffers()
    try:
        training.checkpoints.save(is_best)
    except CheckpointError as error:
        warn_unsaved(training, error)
    if not options.checkpoint_async:
        wait_for_checkpoint(training)


def wait_for_checkpoint(training: Training) -> None:
    """Wait for the checkpoint on its way, if there is one, and let everybody know what became of it.

    Raises:
        NotFiniteError: training has spoiled it, and `on_nan` says to stop.
    """
    try:
        saved = training.checkpoints.wait()
    except (CheckpointError, NotFiniteError) as error:
        if isinstance(error, NotFiniteError) and training.state.options.on_nan == "stop":
            raise
        warn_unsaved(training, error)
        return
    if saved is None:
        return
    checkpoint = saved.checkpoint
    training.record.append(
        "checkpoint",
        step=checkpoint.step,
        epoch=saved.epoch,
        time=time.time(),
        name=checkpoint.name,
        metric=checkpoint.metric,
        is_best=saved.is_best,
    )
    with isolated_random(derive_seed(training.state.seed, checkpoint.name)):  # when it comes to this is chance
        notify(training, "checkpoint_saved", checkpoint=checkpoint, is_best=saved.is_best)
    problem = saved.outcome.result()
    if problem is not None:
        training.workspace.lines.warn(problem)


def warn_unsaved(training: Training, error: BlowtorchError) -> None:
    """Say loudly that a checkpoint is missing."""
    training.workspace.lines.warn(
        f"{error}; what was saved before is untouched, and it is tried again at the next occasion"
    )


def report_missing_metric(training: Training) -> None:
    """Say, once, that the validations do not measure what decides on the best checkpoint."""
    progress, options, lines = training.progress, training.state.options, training.workspace.lines
    metric, names = options.checkpoint_metric, tuple(f"{validation.name}/" for validation in training.validations)
    measured = [name for name in progress.measured_now() if name.startswith(names)]
    is_measured = metric in progress.metrics and can_decide(metric)
    if measured and not is_measured and options.keep_best:
        lines.say_once(
            "no best checkpoint",
            f"no checkpoint is the best one: checkpoint_metric is {metric!r}, and validations measure "
            f"{', '.join(measured)}.{nearest(metric, measured)}",
        )
