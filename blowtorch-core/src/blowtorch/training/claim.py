"""The folder of a run while a process trains it: taken with its lock, and given back with how the run ended."""

import shutil
from pathlib import Path

from blowtorch.errors import BlowtorchError, RunFolderError, warn
from blowtorch.folder.folder import RunFolder
from blowtorch.options import RunOptions
from blowtorch.parallel.world import World
from blowtorch.script.script import Script
from blowtorch.training.assembly import Plan


def take_folder(plan: Plan, script: Script, options: RunOptions) -> RunFolder:
    """Take the folder of a new run, or that of the run that goes on.

    Raises:
        RunFolderError: it cannot be made, or another process has it.
    """
    folder = plan.start.folder
    if folder is None:
        seed = plan.surroundings.seed
        folder = RunFolder.create(options.save_path, options.run_name, script=script.path, seed=seed)
    folder.lock.acquire()
    return folder


def refuse_unreached(world: World, path: Path) -> None:
    """Raise a `RunFolderError` in all processes if one does not reach the run folder, where each writes its pieces."""
    reach = world.gather(path.is_dir())
    if not all(reach):
        world.refuse(
            RunFolderError(
                f"process {reach.index(False)} does not reach the run folder {path}, in which each process writes its "
                f"pieces of a divided model; set run.save_path to a folder that all of them share"
            )
        )


def give_back(folder: RunFolder, status: str | None, is_kept: bool) -> None:
    """Write down how the run ended, and let others have the folder.

    Args:
        folder: of the run.
        status: how it ended; None for a run that could not be continued, which stays as it was.
        is_kept: whether the folder stays.
    """
    try:
        if status is not None:
            _note_end(folder, status)
    finally:
        folder.lock.release()
        if not is_kept:
            shutil.rmtree(folder.path, ignore_errors=True)


def _note_end(folder: RunFolder, status: str) -> None:
    """Write down how the run ended, though somebody may lose patience just now."""
    try:
        try:
            folder.end_session(status)
        except KeyboardInterrupt:
            folder.end_session(status)
            raise
    except (OSError, BlowtorchError) as problem:
        warn(f"the status {status} of the run could not be recorded: {problem}")
