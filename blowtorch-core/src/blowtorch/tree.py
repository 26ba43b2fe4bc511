"""Nested values: lists, tuples, mappings and dataclasses, walked in one place."""

import copy
import dataclasses
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch


def move(batch: Any, device: torch.device) -> Any:
    """A batch with every tensor in it on a device; an accelerator is not waited for unless its values are asked for.

    An object with a method `to` moves itself; lists, tuples, mappings and dataclasses are walked and copied.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=device.type != "cpu")
    if callable(getattr(batch, "to", None)):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return _move_mapping(batch, device)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(move(value, device) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        twin: Any = copy.copy(batch)
        for field in dataclasses.fields(batch):  # frozen ones too, and fields that __init__ does not take
            object.__setattr__(twin, field.name, move(getattr(batch, field.name), device))
        return twin
    return batch


def _move_mapping(batch: Mapping[Any, Any], device: torch.device) -> Mapping[Any, Any]:
    moved = {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, MutableMapping):
        twin = copy.copy(batch)  # keeps what else it holds, such as the default of a defaultdict
        twin.update(moved)
        return twin
    return type(batch)(moved)  # type: ignore[call-arg]
