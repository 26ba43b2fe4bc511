"""Parameters and buffers that get their shape with the first batch, as those of torch's lazy modules do."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy


@contextlib.contextmanager
def left_uninitialized(*modules: nn.Module) -> Iterator[None]:
    """Have what has no shape yet without one again in the end, so that the first step of training draws its numbers."""
    lazy = [part for module in modules for part in module.modules() if any(map(is_lazy, _tensors_of(part)))]
    parts = [(part, type(part), _members(part)) for part in lazy]
    tensors = [(tensor, type(tensor)) for part in lazy for tensor in _tensors_of(part) if is_lazy(tensor)]
    try:
        yield
    finally:
        for part, part_kind, members in parts:
            part.__class__ = part_kind  # one that has been initialized is of another class
            _restore(part, members)
        for tensor, kind in tensors:
            tensor.grad = None
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            tensor.__class__ = kind


def _tensors_of(module: nn.Module) -> list[torch.Tensor]:
    """Return the parameters and buffers of a module without those of its parts."""
    tensors = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in tensors if tensor is not None]


def _members(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return the attributes of a module, of a mapping with what it holds now."""
    return {name: (value, value.copy() if isinstance(value, dict) else None) for name, value in vars(module).items()}


def _restore(module: nn.Module, members: dict[str, tuple[Any, Any]]) -> None:
    vars(module).clear()
    for name, (value, held) in members.items():
        vars(module)[name] = value
        if held is not None:
            value.clear()
            value.update(held)
