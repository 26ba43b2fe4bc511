"""Digests of batches, indices and states: two that have the same one are taken for the same."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from blowtorch.data.tree import children_of
from blowtorch.parallel.pieces import own_piece


def digest(value: Any) -> str:
    """Return sixteen digits that differ wherever a bit of a tensor, an array or a plain value inside of `value` does.

    Objects are told apart by their arrays, such as those of pictures, or else by their attributes.

    >>> digest([torch.tensor([0.0]), "x"]) == digest([torch.tensor([-0.0]), "x"])
    False
    """
    hasher = xxhash.xxh3_64()
    _feed(hasher, value, set())
    return str(hasher.hexdigest())


def _feed(hasher: Any, value: Any, inside: set[int]) -> None:
    """Feed a value to a hasher; `inside` are the objects that hold it, by identity."""
    hasher.update(type(value).__name__.encode())
    if isinstance(value, Tensor):
        _feed_tensor(hasher, own_piece(value.detach()), inside)
    elif isinstance(value, np.ndarray):
        hasher.update(f"{value.shape}{value.dtype}".encode())
        if value.dtype.hasobject:
            _feed(hasher, value.tolist(), inside)  # not its text, which may hold addresses
        else:
            hasher.update(value.tobytes())
    elif (children := children_of(value)) is not None:
        for key, child in children:
            hasher.update((repr(key) if isinstance(value, Mapping) else ",").encode())
            _feed(hasher, child, inside)
        hasher.update(b";")  # so that what is in an inner list is not taken for what comes behind it
    elif isinstance(value, str | bytes | int | float | complex | np.generic | None):
        hasher.update(repr(value).encode())
    elif not callable(value) and id(value) not in inside:
        is_array = hasattr(value, "__array_interface__")  # a picture of PIL, among others
        _feed(hasher, np.asarray(value) if is_array else getattr(value, "__dict__", None), {*inside, id(value)})


def _feed_tensor(hasher: Any, value: Tensor, inside: set[int]) -> None:
    if value.is_nested:
        for part in value.unbind():
            _feed(hasher, part, inside)
        return
    dense = value.to_dense() if value.layout is not torch.strided else value
    hasher.update(f"{tuple(value.shape)}{value.dtype}".encode())
    hasher.update(dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
