"""The model of a run: on which device, compiled or not, with which weights."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from blowtorch.checkpoint.frozen import load_verified_weights
from blowtorch.errors import CheckpointError, OptionError
from blowtorch.folder.manifest import FILE_NAME
from blowtorch.options import RunOptions
from blowtorch.training.start import POINTERS, follow_pointer, is_pointer


def choose_device(name: str) -> torch.device:
    """Return the device that an option names; `auto` takes an accelerator if there is one.

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
    """Return the model under whose names weights are saved, and what `torch.compile` made of it, or None.

    A model that the script has compiled itself is taken apart in the same way.
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
    for pointer in (path / "checkpoints" / name for name in POINTERS):
        if is_pointer(pointer):
            path = follow_pointer(pointer)
            break
    if not (path / FILE_NAME).is_file():
        raise CheckpointError(f"{asked}={origin!r} is no good checkpoint: it holds no {FILE_NAME}")
    try:
        load_verified_weights(model, path)
    except CheckpointError as error:
        raise CheckpointError(f"{asked}={origin!r} is no good checkpoint: {error}") from error
