"""The training and validation loops, in plain sight.

    run_start
    for each epoch:
        epoch_start
        for each batch:                       # on the device, in the order of (seed, epoch), from the right position
            train step, backward              # for each batch of an accumulation group
            optimizer step, schedulers per step
            train_step_end
            now and then: record, validate, decide, checkpoint
        record, validate, epoch_end, schedulers per epoch, decide, checkpoint
    checkpoint
    run_end

At one step things always happen in this order: train, record, validate, decide, checkpoint. A checkpoint is copied
there and then, and written while training goes on; `checkpoint_saved` follows once it is published.
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

from blowtorch.clock import NEVER
from blowtorch.errors import CheckpointError, ScriptError
from blowtorch.record.metrics import count_samples
from blowtorch.state import RunState
from blowtorch.streams import restore_random_state
from blowtorch.training.assembly import Training
from blowtorch.training.between_steps import (
    decide_and_save,
    notify,
    record_training,
    record_validation,
    report_missing_metric,
    report_saved,
    save,
    validate_due,
)
from blowtorch.training.gradients import computing
from blowtorch.training.validation import EpochLoader, ValidationCutError, validate


def train(training: Training, state: RunState) -> None:
    """Train until a limit is reached or something wants the run to stop; a checkpoint stands at the end."""
    begin(training, state)
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
    finish(training, state)


def begin(training: Training, state: RunState) -> None:
    """Do what comes before the first step of a process, and of a run."""
    notify(training, state, "run_start")
    for line in training.changes:
        state.say(line)
    if state.options.sanity_batches:
        try_validations(training, state)
    if state.step == 0 and training.random_state is None:  # else a run stopped at step 0 goes on
        for validation in training.validations:
            if validation.is_at_start:
                record_validation(training, state, validation.name, validate(validation, state))
        decide_and_save(training, state)
    if state.batch and not state.is_epoch_done and state.stop_reason is None and not should_go_on(state):
        with contextlib.suppress(ValidationCutError):
            do_what_was_cut(training, state)


def do_what_was_cut(training: Training, state: RunState) -> None:
    """Do what was due when the process before was stopped at the very last step."""
    if state.batch == training.batches.num_batches:
        finish_epoch(training, state)
    else:
        after_step(training, state)


def try_validations(training: Training, state: RunState) -> None:
    """Do a little of each validation, so that a mistake in it shows now and not after an epoch of training."""
    state.is_trying = True
    try:
        for validation in training.validations:
            with training.returns.objects.put_aside():
                validate(validation, state, most_batches=state.options.sanity_batches)
    finally:
        state.is_trying = False


def finish(training: Training, state: RunState) -> None:
    """See to it that a checkpoint stands at the end; the model is left with the weights that were judged."""
    if state.interruption is not None:
        state.say(f"{state.interruption}: stopping after step {state.step}")
    report_saved(training, state)
    if not training.checkpoints.is_current(state):
        save(training, state, is_best=False)
        report_saved(training, state)
    if not training.checkpoints.is_current(state):
        raise CheckpointError("the last checkpoint of the run could not be written; see the warnings above")
    if state.interruption is None and state.averaged:
        state.model.load_state_dict({**state.model.state_dict(), **state.averaged})


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
    if state.options.max_samples is not None and state.samples >= state.options.max_samples:
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
    batches = training.batches.iterate(state.epoch, state.batch)
    restore_streams(training)
    if training.gradients is not None:
        training.gradients.remember()
    if state.batch:
        after_step(training, state)  # a validation that was cut short is still due
    plan_next_event(training, state)
    return batches


def train_epoch(training: Training, state: RunState) -> bool:  # noqa: C901, PLR0912 - the loop is read in one piece
    """Train from where the epoch stands; say whether its end was reached."""
    batches = start_batches(training, state)
    function, schedules, take = training.function, training.schedules, training.returns.take
    step, arguments, gradients = function.function, function.arguments, training.gradients
    optimizers = [] if function.drives_itself else list(state.optimizers.values())
    step_end, loss, logged = training.callbacks.step_end, "", state.logged
    wants_counts, wants_schedules = function.wants_counts, schedules.wants_steps
    last_step, last_sample = state.options.max_steps, state.options.max_samples or NEVER
    more, autocast = state.options.accumulate - 1, None if gradients is None else gradients.autocast
    for first in batches:
        earlier_samples = state.samples
        for optimizer in optimizers:
            optimizer.zero_grad()
        for batch in (first,) if more == 0 else itertools.chain((first,), itertools.islice(batches, more)):
            arguments["batch"] = batch
            if wants_counts:
                function.count()
            if autocast is None:
                returned = step(**arguments)
            else:
                with autocast:
                    returned = step(**arguments)
            metrics, samples = take(returned, logged, batch)
            state.batch += 1
            state.samples += samples
            if optimizers:  # else the step has driven itself
                if loss not in metrics:
                    loss = training.loss.choose(metrics)
                if gradients is None:
                    metrics[loss].backward()
                else:
                    gradients.add(metrics[loss], samples)
        for optimizer in optimizers:
            optimizer.step()
        if gradients is not None:
            gradients.finish_step()
        state.step += 1
        if wants_schedules:
            schedules.after_step(state)
        for notify_step_end in step_end:
            notify_step_end(state, batch, metrics)
        if logged:
            training.returns.add(None, logged, state.samples - earlier_samples)
        if state.step >= state.next_event:
            after_step(training, state)
        is_last = state.step == last_step or state.samples >= last_sample
        is_cut = state.interruption is not None or state.stop_reason is not None
        if is_cut or (is_last and state.batch != training.batches.num_batches):
            return False
    return True


def drive_epoch(training: Training, state: RunState) -> bool:
    """Let the user's function train the whole epoch; it is never cut short."""
    batches, num_batches = start_batches(training, state), training.batches.num_batches
    loader = EpochLoader(batches, num_batches, lambda batch: count_batch(training, state, batch))
    with computing(state):
        returned = training.function.function(**training.function.given(data_loader=loader))
    loader.finish_batch()
    if state.batch == 0 and state.max_epochs is None:
        raise ScriptError(
            f"{training.function.name} took no batch of its data_loader, so max_steps is never reached; iterate it, or "
            f"set max_epochs"
        )
    training.returns.add({} if returned is None else returned, state.logged, 1, training.epoch_window.totals)
    return True


def count_batch(training: Training, state: RunState, batch: Any) -> None:
    """What happens after each batch of a function that drives a whole epoch; each counts as a step."""
    samples = count_samples(batch)
    if training.gradients is not None:
        training.gradients.finish_step()
    state.step += 1
    state.batch += 1
    state.samples += samples
    if training.schedules.wants_steps:
        training.schedules.after_step(state)
    for notify_step_end in training.callbacks.step_end:
        notify_step_end(state, batch, {})
    if state.logged:
        training.returns.add(None, state.logged, samples)
    if state.step >= state.next_event:
        record_and_report(training, state)
        plan_next_event(training, state)


def after_step(training: Training, state: RunState) -> None:
    """Do what is due after a step; what falls on the last step of an epoch waits for the end of that epoch."""
    record_and_report(training, state)
    if state.batch != training.batches.num_batches:
        validate_due(training, state)
        decide_and_save(training, state)
    plan_next_event(training, state)


def record_and_report(training: Training, state: RunState) -> None:
    """Record the metrics if that is due, and tell of a checkpoint that has been published meanwhile."""
    if training.record_trigger.is_due(state.time()):
        record_training(training, state)
    if training.checkpoints.has_news:
        report_saved(training, state)


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
