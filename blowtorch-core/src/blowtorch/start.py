"""Where a run begins: anew or in a folder that exists, with which seed, on which device, with which weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blowtorch.config import Config
from blowtorch.errors import CheckpointError, OptionError, nearest, warn
from blowtorch.folder import RunFolder
from blowtorch.hookspecs import RunInfo
from blowtorch.manifest import FILE_NAME
from blowtorch.options import RunOptions
from blowtorch.reproducibility import seed_everything
from blowtorch.script import Script
from blowtorch.state import RunState
from blowtorch.tensors import load_verified_weights
from blowtorch.view import find_newest


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        folder: the folder of the run that is continued; None for a new run.
        at_most: the checkpoint to continue from, or an earlier one; None for the newest.
    """

    folder: RunFolder | None = None
    at_most: str | None = None


def find_start(options: RunOptions, script: Script) -> Start:
    """What the option `resume` means.

    Raises:
        RunFolderError: it names no run.
    """
    if options.resume == "never":
        return Start()
    if options.resume == "auto":
        if options.run_name is None and not script.path:
            raise OptionError(
                "resume='auto' needs the option run_name here, since no script file tells which run is meant"
            )
        newest = find_newest(options.save_path, options.run_name, script.path)
        return Start() if newest is None or newest.status == "finished" else Start(RunFolder.reopen(newest.path))
    path = follow_pointer(Path(options.resume))
    if not path.exists() and (hint := nearest(options.resume, ["auto", "never"])):
        raise OptionError(
            f"option resume: expected 'auto', 'never' or a path that exists, got {options.resume!r}.{hint}"
        )
    if path.parent.name == "checkpoints" and path.is_dir():
        return Start(RunFolder.reopen(path.parent.parent), at_most=path.name)
    return Start(RunFolder.reopen(path))


def follow_pointer(path: Path) -> Path:
    """The checkpoint that a pointer, `checkpoints/best` or `checkpoints/latest`, names; any other path as it is."""
    is_pointer = path.name in ("best", "latest") and path.is_file()
    return path.parent / path.read_text().strip() if is_pointer else path


def recorded_seed(options: RunOptions, script: Script) -> int | None:
    """The seed of the run that would be continued, if one would."""
    folder = find_start(options, script).folder
    return None if folder is None else folder.read_info().get("seed")


def agree_on_seed(folder: RunFolder, seed: int) -> int:
    """The recorded seed of a run that is continued; it holds, whatever the script has seeded with."""
    recorded = int(folder.read_info().get("seed", seed))
    if recorded != seed:
        warn(
            f"the run that is continued has the seed {recorded}, which holds from here on; what the script drew before "
            f"this call came from the seed {seed} and differs (name `resume` in the configuration or on the command "
            f"line to avoid it)"
        )
        seed_everything(recorded)
    return recorded


def choose_device(name: str) -> torch.device:
    """The device that an option names; `auto` takes an accelerator if there is one.

    Raises:
        OptionError: torch knows no such device, or it is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise OptionError(f"option device: expected 'auto' or a device that is there, got {name!r}: {error}") from error
    return device


def compile_model(model: nn.Module, options: RunOptions) -> tuple[nn.Module, Any]:
    """The model under whose names weights are saved, and what `torch.compile` made of it, or None.

    A model that the script has compiled itself is taken apart likewise.
    """
    if hasattr(model, "_orig_mod"):
        plain: nn.Module = model._orig_mod  # type: ignore[assignment]
        return plain, model
    if options.compile is False:
        return model, None
    return model, torch.compile(model, **({} if options.compile is True else options.compile))


def load_initial_weights(model: nn.Module, origin: str, asked: str = "initialize_from") -> None:
    """Load the weights of a checkpoint, or of the best or else latest one of a run folder.

    Args:
        model: takes them.
        origin: a path.
        asked: the option or argument that named it.

    Raises:
        CheckpointError: it is no checkpoint, is damaged, or belongs to another model.
    """
    path = follow_pointer(Path(origin))
    for pointer in ("best", "latest"):
        if (path / "checkpoints" / pointer).is_file():
            path = path / "checkpoints" / (path / "checkpoints" / pointer).read_text().strip()
    if not (path / FILE_NAME).is_file():
        raise CheckpointError(f"{asked}={origin!r} is no good checkpoint: it holds no {FILE_NAME}")
    try:
        load_verified_weights(model, path)
    except CheckpointError as error:
        raise CheckpointError(f"{asked}={origin!r} is no good checkpoint: {error}") from error


def detached_state(model: nn.Module, options: RunOptions, config: Config, seed: int) -> RunState:
    """A state for an evaluation, which belongs to no run and has no folder."""
    info = RunInfo(id="", name="", folder=Path(), logger_folder=None, config={}, resumed=False)
    device = choose_device(options.device)
    plain, compiled = compile_model(model.to(device), options)
    return RunState(info, options, config, Path(), seed, device, plain, compiled)
