"""The model of a run: on which device, compiled or not, with which weights."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blowtorch.checkpoint.frozen import load_verified_weights
from blowtorch.checkpoint.tensors import without_compilation
from blowtorch.errors import CheckpointError, OptionError, warn
from blowtorch.folder.manifest import FILE_NAME
from blowtorch.options import RunOptions
from blowtorch.runs.stored import unmasked_backend
from blowtorch.runs.view import open_run
from blowtorch.training.start import find_checkpoint


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
    plain = without_compilation(model)
    if plain is not model:
        if options.compile is not False:
            warn("the script has compiled the model itself, so the option compile is left out")
        return plain, model
    if options.compile is False:
        return model, None
    if isinstance(model, torch.jit.ScriptModule):
        warn(f"torch.compile takes no {type(model).__name__}, so the option compile is left out")
        return model, None
    if "forward" not in vars(model) and type(model).forward is nn.Module.forward:
        name = next((name for name, _ in model.named_children()), "part")
        warn(
            f"{type(model).__name__} has no forward that the option compile could compile, so it is left out; compile "
            f"the parts of the model in the script, such as model.{name} = torch.compile(model.{name})"
        )
        return model, None
    compiled = torch.compile(model, **({} if options.compile is True else options.compile))
    _forward_special_methods(compiled, model)
    return model, compiled


def _forward_special_methods(compiled: Any, model: nn.Module) -> None:
    """Let a compiled model be indexed, iterated and so on like the model: Python looks for such methods in the class.

    What `torch.compile` returns forwards all other attributes by itself.
    """
    kind = type(compiled)
    names = [name for name, _ in inspect.getmembers(type(model), inspect.isfunction) if name.startswith("__")]
    methods = {name: _forwarding(name) for name in names if not hasattr(kind, name)}
    compiled.__class__ = type(kind.__name__, (kind,), methods)


def _forwarding(name: str) -> Callable[..., Any]:
    return lambda self, *arguments, **keywords: getattr(self._orig_mod, name)(*arguments, **keywords)


def load_initial_weights(model: nn.Module, origin: str, backend: Any, asked: str = "initialize_from") -> None:
    """Load the weights of a checkpoint, or of the best or else latest one of a run folder.

    Args:
        model: takes them.
        origin: a path. That of a checkpoint which another backend keeps is `<run folder>/checkpoints/<its name>`.
        backend: the option `checkpoint_backend`, which holds secrets that the folder of an earlier run does not.
        asked: the option or argument that named it.

    Raises:
        CheckpointError: it is no checkpoint, is damaged, or belongs to another model.
    """
    path = Path(origin)
    try:
        folder, which = find_checkpoint(path)
        if folder is not None:
            open_run(folder, unmasked_backend(backend, open_run(folder).info)).load_model(model, which)
        elif (path / FILE_NAME).is_file():
            load_verified_weights(model, path)
        else:
            raise CheckpointError(f"it holds no {FILE_NAME}")
    except CheckpointError as error:
        raise CheckpointError(f"{asked}={origin!r} is no good checkpoint: {error}") from error
