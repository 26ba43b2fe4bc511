"""Which run goes on: a new one or one in a folder that exists, from which checkpoint, and with which seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blowtorch.errors import CheckpointError, OptionError, RunFolderError, nearest, warn
from blowtorch.folder.folder import RunFolder, plain
from blowtorch.options import RunOptions
from blowtorch.runs.stored import recorded_backend
from blowtorch.runs.view import RunView, find_newest, read_pointer
from blowtorch.script.script import Script
from blowtorch.streams import derive_seed, seed_everything
from blowtorch.training.workspace import Surroundings


@dataclass(frozen=True)
class StartingPoint:
    """Where a run begins.

    Attributes:
        folder: the folder of the run that is continued; None for a new run.
        at_most: the checkpoint to continue from, or an earlier one; None for the newest.
    """

    folder: RunFolder | None = None
    at_most: str | None = None


@dataclass(frozen=True)
class Restored:
    """Where a run that goes on has come back to.

    Attributes:
        name: of its checkpoint; None where it begins anew.
        rewound: the step, and the length of the record in bytes; None for a new run.
    """

    name: str | None = None
    rewound: tuple[int, int] | None = None


def find_starting_point(options: RunOptions, script: Script) -> StartingPoint:
    """Find the run that the option `resume` means.

    Raises:
        RunFolderError: it names no run.
    """
    if options.resume == "never":
        return StartingPoint()
    if options.resume == "auto":
        if options.run_name is None and not script.path:
            raise OptionError(
                "resume='auto' needs the option run_name here, since no script file tells which run is meant"
            )
        newest = find_newest(options.save_path, options.run_name, script.path)
        return (
            StartingPoint()
            if newest is None or newest.status == "finished"
            else StartingPoint(RunFolder.reopen(newest.path))
        )
    path = Path(options.resume)
    if not path.exists() and (hint := nearest(options.resume, ["auto", "never"])):
        raise OptionError(
            f"option resume: expected 'auto', 'never' or a path that exists, got {options.resume!r}.{hint}"
        )
    folder, which = find_checkpoint(path)
    if folder is None or folder == path:
        return StartingPoint(RunFolder.reopen(path))
    run, name = RunFolder.reopen(folder), read_pointer(folder, which)
    if name is not None and recorded_backend(run.read_info()) == "local" and not (path.parent / name).is_dir():
        raise RunFolderError(f"{path} names {name!r}, which is not there; resume={folder} takes the newest checkpoint")
    return StartingPoint(run, at_most=name or (None if which == "latest" else which))


def find_checkpoint(path: Path) -> tuple[Path | None, str]:
    """Return the run folder and the name of the checkpoint that a path means; None for the folder of no run.

    In a run folder that is the best one, or the latest where none is the best. A checkpoint that another backend keeps
    is meant by the path that it would have in the run folder.
    """
    if (path / "run.yaml").is_file():
        return path, "latest" if read_pointer(path, "best") is None else "best"
    folder = path.parent.parent
    is_inside = path.parent.name == "checkpoints" and (folder / "run.yaml").is_file()
    return (folder, path.name) if is_inside else (None, "")


def refuse_other_backend(folder: RunFolder, given: Any) -> None:
    """Raise a `CheckpointError` for a run that would begin anew only because its checkpoints are looked for elsewhere.

    Args:
        folder: of a run that has no checkpoints in the checkpoint backend of now.
        given: the option `checkpoint_backend`.
    """
    earlier, now = _name_backend(recorded_backend(folder.read_info())), _name_backend(given)
    if earlier != now and any(event["event"] == "checkpoint" for event in RunView(folder.path).events()):
        raise CheckpointError(
            f"the checkpoints of {folder.path} are in checkpoint backend {earlier!r}, and there are none in {now!r}; "
            f"go on with run.checkpoint_backend={earlier}, or start a new run with initialize_from"
        )


def _name_backend(choice: Any) -> str:
    return str(next(iter(choice), "")) if isinstance(choice, Mapping) else str(plain(choice))


def recorded_seed(options: RunOptions, script: Script, own: int | None) -> int | None:
    """Return the seed of the run that would be continued; None where there is none, or where it may be another run.

    A script that makes several runs names each in its call, which is still to come. The newest of them may be another
    one than will be called, so its seed says nothing if the script has one of its `own`.
    """
    folder = find_starting_point(options, script).folder
    if folder is None:
        return None
    info = folder.read_info()
    written = info.get("options")  # not yet, where the process was killed as the run began
    may_be_named = written is None or written.get("run_name") is not None
    is_named_in_call = options.resume == "auto" and options.run_name is None and may_be_named
    return None if is_named_in_call and own is not None else info.get("seed")


def agree_on_seed(folder: RunFolder, seed: int) -> int:
    """Return the recorded seed of a run that is continued, which holds whatever the script has seeded with."""
    recorded = int(folder.read_info().get("seed", seed))
    if recorded != seed:
        warn(
            f"the run that is continued has the seed {recorded}, which holds from here on; what the script drew before "
            f"this call came from the seed {seed} and differs (name `resume`, and `run_name` if the call has one, in "
            f"the configuration or on the command line to avoid it)"
        )
        seed_everything(recorded)
    return recorded


def seed_own_streams(surroundings: Surroundings) -> None:
    """Give a process that begins anew random streams of its own; the first one's are those of a lone process."""
    world = surroundings.world
    if not world.is_first:
        seed_everything(derive_seed(surroundings.seed, "process", world.rank) % 2**32)
