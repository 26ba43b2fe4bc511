"""The model of a run: on which device, compiled or not, with which weights."""

import contextlib
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blowtorch.checkpoint.frozen import load_verified_weights
from blowtorch.checkpoint.tensors import without_compilation
from blowtorch.errors import CheckpointError, OptionError, ScriptError, warn
from blowtorch.folder.manifest import FILE_NAME
from blowtorch.options import RunOptions
from blowtorch.parallel.devices import compare_devices
from blowtorch.parallel.pieces import own_piece
from blowtorch.parallel.sharding import Sharding, divide_in_all, drawing_alike, is_sharded, sum_gradients
from blowtorch.parallel.world import World
from blowtorch.runs.stored import unmasked_backend
from blowtorch.runs.view import open_run
from blowtorch.script.script import Script
from blowtorch.streams import find_accelerator
from blowtorch.training.precision import refuse_missing_precision
from blowtorch.training.start import find_checkpoint
from blowtorch.training.workspace import Surroundings, Workspace


def choose_device(options: RunOptions, world: World) -> torch.device:
    """Return the device that the options name; `auto` takes an accelerator if there is one.

    Raises:
        OptionError: torch knows no such device, it is not there, or it lacks the precision that is asked for.
        ScriptError: another process has the same one, or one of another kind.
    """
    name = options.device
    if name == "auto":
        device = find_accelerator() or torch.device("cpu")
    else:
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
            raise OptionError(
                f"option device: expected 'auto' or a device that is there, got {name!r}: {_first_sentence(error)}; "
                f"torch {torch.__version__} sees {find_accelerator() or 'no accelerator'} on this machine"
            ) from error
    refuse_missing_precision(options, device)
    compare_devices(world, device)
    return device


def set_up_model(
    model: nn.Module, options: RunOptions, surroundings: Surroundings
) -> tuple[tuple[nn.Module, Any], bool]:
    """Put a model on its device, and compile it if that is asked for.

    Returns:
        What `compile_model` does, and whether the model had no memory before.

    Raises:
        OptionError: the device has no tensors of a type that the model is made of.
    """
    had_no_memory = make_room(model, surroundings)
    place_model(model, surroundings.device)
    return compile_model(model, options), had_no_memory


def place_model(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device.

    Raises:
        OptionError: the device has no tensors of a type that the model is made of; the model is then where it was.
    """
    tensors = [*model.named_buffers(), *model.named_parameters()]
    to_move = {tensor.dtype: name for name, tensor in tensors if tensor.device.type != device.type}
    for dtype, name in to_move.items():
        try:
            torch.empty(0, dtype=dtype, device=device)
        except (RuntimeError, TypeError) as error:
            raise OptionError(
                f"option device: the model is in part made of {dtype}, such as {name!r}, and {device} is not: "
                f"{_first_sentence(error)}. Convert it before the run, such as by model.float(), or take another device"
            ) from error
    model.to(device)


def make_room(model: nn.Module, surroundings: Surroundings) -> bool:
    """Give a model that was built on the device `meta` memory on its own device, and return whether it was one.

    Where it is to be divided among processes, each gets memory for its pieces alone. All numbers are NaN, or the
    largest whole ones, until the script, a checkpoint or `initialize_from` fills them.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if not any(tensor.is_meta for tensor in tensors):
        return False
    if surroundings.sharding is not None and not is_sharded(model):
        divide_in_all(model, surroundings.sharding, surroundings.world, surroundings.device)
    tied = [(name, parameter) for name, parameter in model.named_parameters(remove_duplicate=False)]
    model.to_empty(device=surroundings.device)
    _tie_again(model, tied)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            own_piece(tensor).fill_(_unfilled(tensor.dtype))
    return True


def _tie_again(model: nn.Module, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
    """Have the parameters be one again that were so before, by their names; torch gives each name memory of its own."""
    firsts: dict[int, str] = {}
    for name, parameter in parameters:
        first = firsts.setdefault(id(parameter), name)
        if first != name:
            module, _, own = name.rpartition(".")
            setattr(model.get_submodule(module), own, model.get_parameter(first))


def _unfilled(dtype: torch.dtype) -> float | int | bool:
    """Return what stands in tensors that nothing has filled; of truth values, none can be told from another."""
    if dtype is torch.bool:
        return False
    return math.nan if dtype.is_floating_point or dtype.is_complex else torch.iinfo(dtype).max


def refuse_unfilled(model: nn.Module, world: World) -> None:
    """Raise a `ScriptError` if a model that was built on the device `meta` has tensors that nothing has filled."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    pieces = {name: own_piece(tensor.detach()) for name, tensor in tensors.items()}
    own = [name for name, piece in pieces.items() if piece.numel() and _is_unfilled(piece)]
    unfilled = list(dict.fromkeys(name for names in world.gather(own) for name in names))
    if unfilled:
        world.refuse(
            ScriptError(
                f"the model was built on the device 'meta', and nothing has filled "
                f"{', '.join(map(repr, unfilled[:5]))}; do it in a function with @run.init, or give weights by "
                f"initialize_from"
            )
        )


def _is_unfilled(piece: torch.Tensor) -> bool:
    value = _unfilled(piece.dtype)
    return value is not False and bool((piece.isnan() if math.isnan(value) else piece == value).all())


def prepare_model(script: Script, workspace: Workspace, sharding: Sharding | None) -> None:
    """Let the script prepare the model, and then divide it among the processes, if that is asked for.

    One that is divided already, since it was built on the device `meta` or trained before, draws as a whole one would.
    """
    model = workspace.state.model
    with drawing_alike(workspace.world) if is_sharded(model) else contextlib.nullcontext():
        script.prepare(workspace.state)
    if is_sharded(model):
        sum_gradients(model)
    elif sharding is not None:
        workspace.share_weights()
        divide_in_all(model, sharding, workspace.world, workspace.state.device)


def _first_sentence(error: Exception) -> str:
    """Return what torch says first; it may go on for 130 lines."""
    return str(error).partition("\n")[0].partition(". ")[0].removesuffix(".")


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
