"""Digests of batches, indices and states: two that have the same one are taken for the same."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from blowtorch.tree import children_of


def digest(value: Any) -> str:
    """Return sixteen digits that differ wherever a bit of a tensor, an array or a plain value inside of `value` does.

    >>> digest([torch.tensor([0.0]), "x"]) == digest([torch.tensor([-0.0]), "x"])
    False
    """
    hasher = xxhash.xxh3_64()
    _feed(hasher, value)
    return str(hasher.hexdigest())


def _feed(hasher: Any, value: Any) -> None:
    hasher.update(type(value).__name__.encode())
    if isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
        hasher.update(f"{tuple(value.shape)}{value.dtype}".encode())
        hasher.update(dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, np.ndarray):
        hasher.update(f"{value.shape}{value.dtype}".encode())
        hasher.update(value.tobytes() if value.dtype != object else repr(value.tolist()).encode())
    elif (children := children_of(value)) is not None:
        for key, child in children:
            if isinstance(value, Mapping):
                hasher.update(repr(key).encode())
            _feed(hasher, child)
    elif isinstance(value, str | bytes | int | float | complex | np.generic | None):
        hasher.update(repr(value).encode())
