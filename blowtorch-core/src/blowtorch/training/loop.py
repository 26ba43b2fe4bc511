"""The training loop, in plain sight.

    run_start
    for each epoch:
        epoch_start                          # or epoch_resume, after a restart in the middle of it
        for each step:                       # of one batch, or of an accumulation group of them
            fetch a batch                    # on the device, in the order of (seed, epoch), from the right position
            forward, backward
            gradients: unscale, weigh, skip, clip
            optimizers, schedulers per step
            train_step_end
            now and then: record, validate, decide, save
        record, validate, epoch_end, schedulers per epoch, decide, save
    save
    run_end

At one step things always happen in this order: train, record, validate, decide, save. A checkpoint is copied there and
then, and written while training goes on; `checkpoint_saved` follows once it is published. What happens now and then
stands in `between_steps`.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from blowtorch.errors import CheckpointError, ScriptError
from blowtorch.training.between_steps import (
    EpochCutError,
    after_step,
    announce_validation,
    decide_and_save,
    end_epoch,
    is_limit_reached,
    notify,
    plan_next_event,
    record_due,
    record_validation,
    report_published,
    save,
    settle,
    until_end,
    wait_for_checkpoint,
)
from blowtorch.training.gradients import zero_grad_of
from blowtorch.training.precision import computing
from blowtorch.training.snapshot import take_snapshot
from blowtorch.training.training import Steps, Training
from blowtorch.training.validation import EpochLoader, ValidationCutError, validate
from blowtorch.training.writing import report_unread_overrides

_NO_BATCH = object()


def train(training: Training, most_epochs: int | None = None) -> None:
    """Train until a limit is reached or something wants the run to end; a checkpoint stands at the end.

    Args:
        training: what to work with.
        most_epochs: go through so many epochs only, because it is a trial.
    """
    progress = training.progress
    start_run(training)
    is_within_epoch = progress.is_within_epoch  # where the process before was stopped
    while not progress.is_ending and (is_within_epoch or not is_limit_reached(training)) and most_epochs != 0:
        if progress.is_epoch_done:
            training.steps.restore_streams()  # what takes part in the beginning of an epoch may draw from them
            progress.start_epoch()
        notify(training, "epoch_resume" if is_within_epoch else "epoch_start")
        with contextlib.suppress(ValidationCutError, EpochCutError):  # a validation is still due when the run goes on
            batches = training.waiting.watch(start_batches(training.steps))
            goes_on = not is_within_epoch or after_step(training)  # a validation may be due since before a restart
            is_within_epoch = False
            plan_next_event(training)
            if training.steps.function.kind == "train_epoch":
                drive_epoch(training, batches)
                end_epoch(training)
            elif goes_on and train_epoch(training.steps, until_end(training, batches), partial(after_step, training)):
                end_epoch(training)
        if progress.interruption is None:
            report_unread_overrides(training.state.config, training.workspace.lines)
        most_epochs = None if most_epochs is None else most_epochs - 1
    end_run(training)


def start_run(training: Training) -> None:
    """Do what comes before the first step of a process, and of a run."""
    options = training.state.options
    if training.agreement is not None:
        training.workspace.share_weights()
        training.agreement.meet()
    notify(training, "run_start")
    training.workspace.judged.earlier = None  # whoever averages has taken it
    training.checkpoints.remember_finiteness()
    for line in training.news:
        training.workspace.lines.say(line)
    training.coverage.start()
    if options.sanity_batches:
        assert training.workspace.media is not None
        with training.workspace.media.muted():
            try_validations(training, options.sanity_batches)
    is_new = training.steps.random_state is None  # no checkpoint was restored
    if is_new:
        for validation in training.validations:
            if validation.is_at_start:
                announce_validation(training, validation.name)
                record_validation(training, validation.name, validate(validation, training.workspace))
        decide_and_save(training)


def try_validations(training: Training, most_batches: int) -> None:
    """Do a little of each validation, so that a mistake in it shows now and not after an epoch of training.

    What it changes is then as it was before.
    """
    for validation in training.validations:
        holders = validation.batches.holders_of_position
        before = take_snapshot(training.state.model, [validation.function.function], holders, is_trained=False)
        with before, training.steps.returns.objects.put_aside():
            validate(validation, training.workspace, most_batches=most_batches)


def start_batches(steps: Steps) -> Iterator[Any]:
    """Start the batches of the epoch where it stands; to skip those before it may draw from random streams."""
    batches = steps.batches.iterate(steps.progress.epoch, steps.progress.batch)
    steps.restore_streams()
    steps.gradients.remember()
    return batches


def train_epoch(steps: Steps, batches: Iterator[Any], do_what_is_due: Callable[[], bool]) -> bool:
    """Train on batches, step by step, until there are none or `do_what_is_due` says that it is time to leave.

    Args:
        steps: what the loop works with in each step.
        batches: of the epoch, from where it stands.
        do_what_is_due: is called after the steps at which something may be due; does it, and says whether to go on.

    Returns:
        Whether the end of the epoch was reached.
    """
    # Local names, since each look at an attribute costs time on every step.
    progress, function, gradients = steps.progress, steps.function, steps.gradients
    train_step, arguments, wants_counts = function.function, function.arguments, function.wants_counts
    named_optimizers = {} if function.drives_itself else steps.workspace.optimizers
    optimizers = list(named_optimizers.values())
    zero_grads = [zero_grad_of(optimizer) for optimizer in optimizers]
    train_step, read = gradients.share_batches(train_step, steps.returns.reader(steps.loss if optimizers else None))
    autocast, backward, prepare = gradients.autocast, gradients.accumulate if optimizers else None, gradients.prepare
    is_watched, logged, accumulate = steps.is_watched, steps.workspace.logged.values, steps.state.options.accumulate
    for batch in batches:
        samples_before, batches_left = progress.samples, accumulate
        for zero_grad in zero_grads:
            zero_grad()
        while True:  # each batch of an accumulation group, mostly one
            arguments["batch"] = batch
            if wants_counts:
                function.count()
            if autocast is None:
                returned = train_step(**arguments)  # forward: the user's function
            else:
                with autocast:
                    returned = train_step(**arguments)
            loss, samples, metrics = read(returned, batch)
            progress.batch += 1
            progress.samples += samples
            if backward is not None and loss is not None:  # else the step has driven itself, or left the batch out
                backward(loss)
            batches_left -= 1
            if not batches_left or (following := next(batches, _NO_BATCH)) is _NO_BATCH:
                break
            batch = following
        if prepare is not None:
            prepare(named_optimizers)  # gradients: unscale, weigh, skip, clip
        for optimizer in optimizers if progress.samples != samples_before else ():  # else all batches were left out
            optimizer.step()
        progress.step += 1
        if is_watched or logged:
            metrics = {"loss": loss} if metrics is None else metrics
            finish_step(steps, batch, metrics, progress.samples - samples_before)  # schedules, train_step_end
        if progress.step >= progress.next_event and not do_what_is_due():  # record, validate, decide, save
            return False
    return True


def finish_step(steps: Steps, batch: Any, metrics: Mapping[str, Any], samples: int) -> None:
    """Let schedules and callbacks know of a step that is done, and take what was logged since its function returned."""
    steps.gradients.finish_step()
    if steps.schedules.wants_steps:
        steps.schedules.after_step(steps.state, has_stepped=samples > 0)
    for call in steps.callbacks.step_calls:
        call(batch, metrics)
    if steps.workspace.logged.values:
        steps.returns.add(None, samples)


def drive_epoch(training: Training, batches: Iterator[Any]) -> None:
    """Let the user's function train the whole epoch; it is never cut short."""
    function, returns = training.steps.function, training.steps.returns
    loader = EpochLoader(batches, training.steps.batches.num_batches, partial(count_batch, training))
    with computing(training.state):
        returned = function.function(**function.fill(data_loader=loader))
    loader.end_batch()
    if training.progress.batch == 0 and training.state.max_epochs is None:
        raise ScriptError(
            f"{function.name} took no batch of its data_loader, so max_steps is never reached; iterate it, or "
            f"set max_epochs"
        )
    weight = training.steps.batches.weight_of_given
    returns.add({} if returned is None else returned, weight, training.epoch_window.totals)


def count_batch(training: Training, batch: Any) -> None:
    """Do what happens after each batch of a function that drives a whole epoch; each counts as a step."""
    progress, share = training.progress, training.steps.batches.share
    samples = training.steps.returns.count_samples(batch) if share is None else share.whole
    progress.step += 1
    progress.batch += 1
    progress.samples += samples
    finish_step(training.steps, batch, {}, samples)
    if progress.step >= progress.next_event:
        record_due(training)
        report_published(training)
        plan_next_event(training)


def end_run(training: Training) -> None:
    """See to it that a checkpoint stands at the end; the model is left with the weights that were judged."""
    state, progress, checkpoints = training.state, training.progress, training.checkpoints
    settle(training)
    training.coverage.end_run()
    waited = training.waiting.describe()
    if waited is not None:
        state.say(waited)
    if progress.interruption is not None:
        state.say(f"{progress.interruption}: stopping after step {progress.step}")
    wait_for_checkpoint(training)
    if not checkpoints.is_current():
        save(training, is_best=False)
        wait_for_checkpoint(training)
    if not checkpoints.is_current():
        text = "the last checkpoint of the run could not be written, see the warnings above"
        training.workspace.world.refuse(CheckpointError(f"{text}; {checkpoints.describe_last_good()}"))
    training.workspace.optimizer_modes.end_training()
    if progress.interruption is None and state.averaged:
        state.model.load_state_dict({**state.model.state_dict(), **state.averaged})
