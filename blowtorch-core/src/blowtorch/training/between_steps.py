"""What happens now and then, in the order in which it happens at one step: record, validate, decide, save."""

import math
import time
from collections.abc import Mapping
from typing import Any

from blowtorch.checkpoint.tensors import find_not_finite
from blowtorch.errors import BlowtorchError, CheckpointError, NotFiniteError, nearest
from blowtorch.record.metrics import means
from blowtorch.record.record import Record
from blowtorch.script.returns import Returns
from blowtorch.state import RunState
from blowtorch.streams import derive_seed, isolated_random
from blowtorch.training.assembly import Training
from blowtorch.training.validation import ValidationCutError, validate


def notify(training: Training, state: RunState, moment: str, **at_hand: Any) -> None:
    """Call everybody who takes part in a moment outside of the steps; what they log is recorded at once."""
    training.callbacks.call(moment, state, **at_hand)
    if state.logged:
        logged = Returns(f"what takes part in {moment}", state).read(None, state.logged)
        record_metrics(training.record, state, {name: float(value) for name, value in logged.items()})


def record_metrics(record: Record, state: RunState, metrics: Mapping[str, float], is_urgent: bool = True) -> None:
    """Put metrics into the record, as of now."""
    if not metrics:
        return
    state.metrics.update(metrics)
    state.measured_at.update(dict.fromkeys(metrics, state.step))
    record.append("metrics", is_urgent, step=state.step, epoch=state.epoch, time=time.time(), metrics=dict(metrics))


def record_training(training: Training, state: RunState, closes_epoch: bool = False) -> None:
    """Record the open window, and at the end of an epoch its means too."""
    totals = training.returns.window.close()
    training.epoch_window.merge(totals)
    metrics = {f"train/{name}": value for name, value in means(totals).items()}
    if metrics:
        metrics |= training.schedules.rates if training.schedules.wants_steps else training.schedules.read_rates()
    if closes_epoch:
        epoch = means(training.epoch_window.close()) | training.returns.objects.compute()
        training.returns.objects.reset()
        metrics |= {f"train_epoch/{name}": value for name, value in epoch.items()}
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


def validate_due(training: Training, state: RunState) -> None:
    """Do the validations that are due now; one that is cut short is due again."""
    for validation in training.validations:
        trigger = validation.trigger
        if trigger is None:
            continue
        before = trigger.count
        if trigger.is_due(state.time()):
            try:
                with training.returns.objects.put_aside():
                    metrics = validate(validation, state, may_be_cut=training.function.kind == "train_step")
            except ValidationCutError:
                trigger.count = before
                raise
            record_validation(training, state, validation.name, metrics)


def record_validation(training: Training, state: RunState, name: str, metrics: Mapping[str, float]) -> None:
    """Record what a validation measured, and let callbacks and schedulers know."""
    record_metrics(training.record, state, metrics)
    with isolated_random(derive_seed(state.seed, state.step, name, "end")):  # how often one validates changes nothing
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
