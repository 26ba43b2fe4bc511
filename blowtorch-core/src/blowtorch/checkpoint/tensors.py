"""Tensors and plain values: how a state is checked, copied, written to a file and read back."""

import contextlib
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from blowtorch.checkpoint.plain import is_leaf
from blowtorch.data.tree import Place, map_leaves, walk
from blowtorch.errors import CheckpointError
from blowtorch.folder.manifest import HashedFile
from blowtorch.parallel.pieces import fit, is_divided

_COMPILED = "_orig_mod"  # what `torch.compile` calls the module inside of what it returns


class WarmCopies:
    """Copies of a state, in memory that is kept for the next one.

    Memory that has been touched before is copied to ten times as fast, and it bounds what checkpoints take: one copy of
    the state. A copy holds until the next is taken.
    """

    def __init__(self) -> None:
        self._buffers: dict[Place, Tensor] = {}

    def take(self, state: Any) -> Any:
        """Copy the state as it is now to the CPU; what two names share, their copies share too."""
        taken: dict[Place, Tensor] = {}
        shared: dict[tuple[Any, ...], Tensor] = {}
        with torch.no_grad():
            copies = [self._copy(leaf, place, taken, shared) for place, leaf in walk(state, is_leaf)]
        for device in {device for device, *_ in shared if device.type == "cuda"}:
            torch.cuda.synchronize(device)  # copies into pinned memory have only been asked for
        self._buffers = taken
        remaining = iter(copies)
        return map_leaves(lambda leaf: next(remaining), state, is_leaf)  # in the order in which `walk` went

    def _copy(self, leaf: Any, place: Place, taken: dict[Place, Tensor], shared: dict[tuple[Any, ...], Tensor]) -> Any:
        if not isinstance(leaf, Tensor) or is_lazy(leaf):
            return leaf
        if leaf.layout is not torch.strided:
            return leaf.detach().cpu().clone()
        key = (leaf.device, leaf.data_ptr(), leaf.shape, leaf.stride(), leaf.dtype)
        if key not in shared or not leaf.numel():
            shared[key] = taken[place] = self._copy_tensor(leaf, place)
        return shared[key]

    def _copy_tensor(self, tensor: Tensor, place: Place) -> Tensor:
        tensor = tensor.detach()
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return buffer.copy_(tensor, non_blocking=tensor.is_cuda)


def write_tensors(value: Any, path: Path) -> dict[str, Any]:
    """Write tensors and plain values to a new file, durably, and return its entry in the manifest.

    Raises:
        OSError: the disk is full, say.
    """
    try:
        with HashedFile(path) as file:
            torch.save(value, cast(IO[bytes], file))
            return file.entry()
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # of which torch only says where in the file it stood
            raise error.__context__ from None
        raise


def read_tensors(path: Path, is_mapped: bool = False) -> Any:
    """Read what `write_tensors` wrote, on the CPU; nothing in the file can run code.

    Args:
        path: of the file.
        is_mapped: read each tensor when it is used, and let the system forget it; the file has to stay meanwhile.

    Raises:
        CheckpointError: the file holds something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except Exception as error:  # torch raises whatever its unpickler does
        named = re.search(r"Unsupported (?:global|class|operand).*?([\w.]+\.[\w.]+) was not", str(error))
        # What torch says at length ends with how to load such a file all the same.
        cause = f"it names {named[1]}, and could run code" if named else str(error).partition("\n")[0]
        raise CheckpointError(f"{path} cannot be read as tensors and plain values: {cause}") from error


def without_compilation(module: nn.Module) -> nn.Module:
    """Return the module of which `torch.compile` made this one, or the module itself."""
    return dict(module.named_children()).get(_COMPILED, module)


def plain_name(name: str) -> str:
    """Return the name that a tensor of a model has where no module is compiled.

    >>> plain_name("encoder._orig_mod.weight")
    'encoder.weight'
    """
    return ".".join(part for part in name.split(".") if part != _COMPILED) if _COMPILED in name else name


def read_weights(model: nn.Module, keep_vars: bool = False) -> dict[str, Any]:
    """Return the state of a model by the names that its tensors have where no module is compiled.

    Args:
        model: compiled or not, whole or in parts.
        keep_vars: give the parameters themselves, not detached.
    """
    state = model.state_dict(keep_vars=keep_vars)
    weights = OrderedDict((plain_name(name), value) for name, value in state.items())
    _set_versions(weights, {plain_name(prefix): version for prefix, version in _versions(state).items()})
    return weights


def read_shaped_weights(model: nn.Module) -> dict[str, Any]:
    """Return the state of a model as checkpoints hold it, without what gets its shape only with the first batch."""
    weights = read_weights(model)
    for name in [name for name, value in weights.items() if is_lazy(value)]:
        del weights[name]
    return weights


def by_own_names(model: nn.Module, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return weights by the names that a model has for them, some of whose modules may be compiled.

    What the model has divided among processes is divided like that, and the rest copied from the files that are mapped
    then. What they lack stays as it is: it had no shape yet when they were saved.
    """
    state, versions = model.state_dict(), _versions(weights)
    is_mapped = any(map(is_divided, state.values()))
    given = ((name, weights.get(plain_name(name), value), value) for name, value in state.items())
    own = OrderedDict((name, fit(value, target, is_mapped)) for name, value, target in given)
    _set_versions(own, {prefix: versions.get(plain_name(prefix), {}) for prefix in _versions(state)})
    return own


def _versions(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the versions of the modules whose state this is, by their names; torch mends what an older one saved."""
    return getattr(state, "_metadata", {})


def _set_versions(state: Any, versions: dict[str, Any]) -> None:
    state._metadata = versions


def load_weights(model: nn.Module, weights: Mapping[str, Any], origin: str) -> None:
    """Load a state into a model that must have just the same names and shapes, whatever of it is compiled.

    Raises:
        CheckpointError: naming the first tensor that differs.
    """
    mine = read_weights(model)
    advice = "is it a checkpoint of another model or configuration?"
    for name, value in mine.items():
        if is_lazy(value):
            continue  # it takes the shape that was saved
        if name not in weights:
            raise CheckpointError(f"{origin} has no tensor {name!r}, which the model has; {advice}")
        if isinstance(value, torch.Tensor) and value.shape != weights[name].shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {tuple(weights[name].shape)} in {origin} and {tuple(value.shape)} in the "
                f"model; {advice}"
            )
    for name in weights:
        if name not in mine:
            raise CheckpointError(f"{origin} has a tensor {name!r}, which the model has not; {advice}")
    model.load_state_dict(by_own_names(model, weights))


class KeptModule:
    """A module that is kept beside the model, and is saved and loaded like that."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def state_dict(self) -> dict[str, Any]:
        """Return its weights."""
        return read_shaped_weights(self._module)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load weights."""
        load_weights(self._module, state, "it")


@contextlib.contextmanager
def swapped_in(model: nn.Module, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Have other weights in a model, by the names of its `state_dict`; None for its own."""
    if weights is None:
        yield
        return
    own = model.state_dict()
    kept = {name: own[name].clone() for name in weights}
    try:
        for name, value in weights.items():
            own[name].copy_(value)
        yield
    finally:
        for name, value in kept.items():
            own[name].copy_(value)
