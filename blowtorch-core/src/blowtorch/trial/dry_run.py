"""A dry run: everything that a run does is done once, on the real thing, and nothing of it is left behind.

Two steps, two batches of each validation, a checkpoint that is written, verified and loaded again, and loggers that are
started, fed and finished. What that took tells what the whole run will take. What works and yet looks wrong is said as
a doubt, and refuses nothing.
"""

import contextlib
import copy
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from blowtorch.clock import Interval, Time
from blowtorch.errors import CheckpointError, ExtensionError, RunFolderError, warn
from blowtorch.folder.folder import check_run_name
from blowtorch.options import RunOptions
from blowtorch.parallel.world import World
from blowtorch.script.script import Script, ValidationRequest
from blowtorch.streams import derive_seed
from blowtorch.training.loop import train
from blowtorch.training.session import Session
from blowtorch.training.start import StartingPoint, find_starting_point
from blowtorch.training.training import Training
from blowtorch.trial.doubts import doubting
from blowtorch.trial.forecast import Findings, Forecast, foresee_end, format_size, most_checkpoints, report
from blowtorch.trial.overlap import find_overlaps
from blowtorch.trial.untouched import left_as_it_was

_TIMES = 2  # steps, and batches of each validation


def do_dry_run(
    script: Script,
    model: nn.Module,
    options: RunOptions,
    loaders: tuple[Any, Any],
    make_session: Callable[[Script, RunOptions], Session],
    world: World,
) -> Session:
    """Do what the option `dry_run` asks for, and print what was found; return the session that did it.

    Args:
        script: whose objects are left as they were.
        model: is left as it was.
        options: of the run that the dry run is for.
        loaders: the train and the validation loader of the call.
        make_session: makes one with a script and options, which deletes what it has kept.
        world: the processes that take part; the first prints.

    Raises:
        BlowtorchError: the run would be refused, or fails.
        CheckpointError: the checkpoint cannot be written or loaded, or the disk has no room for those of the run.
        ExtensionError: a logger did not take all that it was given.
    """
    start = world.decide(lambda: find_starting_point(options, script))
    seed, every_loader = derive_seed(script.seed, "dry_run"), [*loaders, *script.loaders()]
    with left_as_it_was(script, model, seed, every_loader, options.callbacks), _claimed(start, options, world):
        new_folders = missing_folders(options) if world.is_first else []
        session = make_session(dry_run_script(script), dry_run_options(options, start))
        try:
            with session as training, doubting(training, _begins_untrained(options, start)) as doubts:
                findings = try_everything(training, script, start)
                world.gather(None)  # the first deletes what all have read
            check_loggers(session)
        finally:
            remove_empty(new_folders)
        lines: list[str] = []
        if session.status == "finished":
            lines += [*report(session, findings), *_try_to_continue(session, start)]
            lines += [f"  doubt        {text}" for text in (*doubts.sentences(), *_find_overlaps(session.training))]
    for line in lines if world.is_first else ():
        print(line)
    return session


def _begins_untrained(options: RunOptions, start: StartingPoint) -> bool:
    """Return whether the run begins with the weights that the model has now."""
    return start.folder is None and options.initialize_from is None


def _find_overlaps(training: Training) -> Iterator[str]:
    validations = {validation.name: validation.batches.loader for validation in training.validations}
    return find_overlaps(training.steps.batches.loader, validations)


def dry_run_script(script: Script) -> Script:
    """Return the script of a dry run: each validation is done once, at the end of its epoch."""
    validations = {
        name: dataclasses.replace(request, every="1 epoch", at_start=False)
        for name, request in script.validations.items()
    }
    return dataclasses.replace(script, validations=validations)


def dry_run_options(options: RunOptions, start: StartingPoint) -> RunOptions:
    """Return the options of a dry run: a new run beside those that exist; no recording disturbs its steps."""
    trial = dataclasses.replace(options, resume="never", run_name="dry-run", log_every="2 steps", sanity_batches=0)
    if start.folder is None:
        return trial
    return dataclasses.replace(trial, save_path=str(start.folder.path.parent), initialize_from=None)


@contextlib.contextmanager
def _claimed(start: StartingPoint, options: RunOptions, world: World) -> Iterator[None]:
    """Refuse what a run would refuse of its folder: another owner, no right to write there, a name that cannot be."""
    if start.folder is None:
        check_run_name(options.run_name)
        yield
        return
    if world.is_first:
        start.folder.lock.acquire()
    try:
        _check_writable(start.folder.path)
        yield
    finally:
        start.folder.lock.release()


def _check_writable(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunFolderError(
            f"the run in {folder} cannot be continued, since nothing can be written there: {error}"
        ) from error


def try_everything(training: Training, script: Script, start: StartingPoint) -> Findings:
    """Do everything that a run does, two times at most.

    Args:
        training: of the dry run.
        script: of the run, which says how often it will validate.
        start: where the run will begin.

    Raises:
        CheckpointError: the checkpoint cannot be written or loaded, or the disk has no room for those of the run.
    """
    findings, state = Findings(), training.state
    wholes = [validation.batches.num_batches for validation in training.validations]
    for validation in training.validations:
        validation.batches.limit_to(_TIMES)
    training.steps.batches.limit_to(_TIMES * state.options.accumulate)
    marks = [time.perf_counter()]
    training.steps.callbacks.watch_steps(lambda batch, metrics: marks.append(time.perf_counter()))
    train(training, most_epochs=1)
    findings.num_steps = state.step
    findings.seconds_per_step = marks[-1] - marks[-2] if len(marks) > 1 else None
    end = foresee_end(state, findings.seconds_per_step)
    for validation, whole in zip(training.validations, wholes, strict=True):
        num_times = None if end is None else _count_validations(script.validations[validation.name], state.options, end)
        pace = validation.pace
        findings.validations[validation.name] = Forecast(pace.num_batches, whole, pace.seconds, num_times)
    findings.checkpoint_bytes = training.checkpoints.try_to_load()
    saved_since = max(marks[-1], *(validation.pace.ended for validation in training.validations), 0.0)
    findings.checkpoint_seconds = time.perf_counter() - saved_since
    _check_room(training, start, findings.checkpoint_bytes)
    return findings


def _count_validations(request: ValidationRequest, options: RunOptions, end: Time) -> int:
    every = request.every or options.validate_every
    is_at_start = options.validate_at_start if request.at_start is None else request.at_start
    return (0 if every is None else Interval.parse(every).count(end)) + is_at_start


def missing_folders(options: RunOptions) -> list[Path]:
    """Return the folders that a run would make to have its own in, the innermost first."""
    path = Path(options.save_path).absolute()
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(new_folders: Sequence[Path]) -> None:
    """Delete folders that were made for a dry run, the innermost first."""
    with contextlib.suppress(OSError):  # another run has begun there meanwhile
        for folder in new_folders:
            folder.rmdir()


def check_loggers(session: Session) -> None:
    """Raise an `ExtensionError` for a logger that did not take all that it was given."""
    for feed in session.feeds:
        if not feed.is_finished or feed.skipped:
            raise ExtensionError(
                f"the dry run failed: {feed.trouble or f'{feed.plugin.label} is too slow'}; a run would go on without "
                f"this logger, which could catch up later"
            )


def _check_room(training: Training, start: StartingPoint, size: int) -> None:
    """Raise a `CheckpointError` if the disk has no room for the checkpoints that the run will keep."""
    state, kept = training.state, most_checkpoints(training.state.options)
    are_there = 0 if start.folder is None else len(list(start.folder.checkpoints.glob("step-*")))
    free = shutil.disk_usage(state.folder).free
    if training.checkpoints.are_local and free < max(1, kept - are_there) * size:
        raise CheckpointError(
            f"the run keeps up to {kept} checkpoints of {format_size(size)}, {format_size(kept * size)} in all, and "
            f"{state.folder.parent} has {format_size(free)} left; free some, or lower keep_last or keep_best"
        )


def _try_to_continue(session: Session, start: StartingPoint) -> Iterator[str]:
    """Load what the run would go on from, and yield a line that names it; nothing in the folder of the run changes.

    Raises:
        CheckpointError: it does not fit to the script, or holds not just what this needs.
    """
    if start.folder is None:
        return
    progress = session.training.progress
    earlier = copy.copy(progress)
    try:
        name = session.training.checkpoints.try_to_continue(start.folder, warn, start.at_most)
    finally:
        for field in dataclasses.fields(progress):
            setattr(progress, field.name, getattr(earlier, field.name))
    yield f"  goes on      in {start.folder.path}, {'from its beginning' if name is None else f'from {name}'}"
