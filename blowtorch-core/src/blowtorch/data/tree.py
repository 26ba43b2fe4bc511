"""Nested values: the one place that knows what a container is, how it is walked, and how it is copied.

Containers are mappings, lists, tuples and dataclasses. Everything else is a leaf.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import torch

from blowtorch.errors import ScriptError

Place = tuple[Any, ...]  # the keys, indices and field names that lead to a leaf

_SIMPLE = frozenset({int, float, str, bool, type(None)})  # leaves by far the most often; Python's random state has 625


def children_of(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Return what a container holds, each with its key, index or field name; None for a leaf.

    >>> list(children_of(["a", "b"]))
    [(0, 'a'), (1, 'b')]
    """
    kind = type(value)
    if isinstance(value, list | tuple):
        return enumerate(value)
    if isinstance(value, dict | Mapping):  # a look at `Mapping` alone takes ten times as long
        items: Iterable[tuple[Any, Any]] = value.items()
        return items
    if dataclasses.is_dataclass(kind):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(kind)]
    return None


def walk(
    value: Any, is_leaf: Callable[[Any], bool] = lambda value: False, place: Place = ()
) -> Iterator[tuple[Place, Any]]:
    """Yield each leaf with its place, in the order in which `map_leaves` comes to them.

    Args:
        value: nested or not.
        is_leaf: true for a container that is not looked into.
        place: where `value` itself lies.

    >>> list(walk({"rates": [0.1, 0.2], "name": "main"}))
    [(('rates', 0), 0.1), (('rates', 1), 0.2), (('name',), 'main')]
    """
    children = None if is_leaf(value) else children_of(value)
    if children is None:
        yield place, value
    else:
        for key, child in children:
            if type(child) in _SIMPLE:
                yield (*place, key), child
            else:
                yield from walk(child, is_leaf, (*place, key))


def map_leaves(function: Callable[[Any], Any], value: Any, is_leaf: Callable[[Any], bool] = lambda value: False) -> Any:
    """Return a copy of a nested value with `function(leaf)` in the place of each leaf; containers keep their types.

    Args:
        function: called once for each leaf.
        value: nested or not.
        is_leaf: true for a container that is not looked into, but given to `function` whole.

    >>> map_leaves(str, {"rates": [0.1, 0.2], "name": "main"})
    {'rates': ['0.1', '0.2'], 'name': 'main'}
    """
    children = None if is_leaf(value) else children_of(value)
    if children is None:
        return function(value)
    return _rebuild(
        value,
        [function(child) if type(child) in _SIMPLE else map_leaves(function, child, is_leaf) for _, child in children],
    )


def move(batch: Any, device: torch.device) -> Any:
    """Return a batch whose tensors are on a device; an object that has a method `to` moves itself.

    The host waits for the copies, since a device may read the memory of a tensor when that holds something else
    already. To one of CUDA, `transfer` sends batches without that.

    Raises:
        ScriptError: the device has no tensors of such a type.
    """

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            try:
                return leaf.to(device)
            except TypeError as error:
                raise ScriptError(
                    f"a batch has a tensor of {leaf.dtype}, of shape {tuple(leaf.shape)}, which cannot be moved to "
                    f"{device}: {error} Convert it in the dataset, such as by .float()"
                ) from error
        return leaf.to(device) if moves_itself(leaf) else leaf

    return map_leaves(moved, batch, moves_itself)


def moves_itself(value: Any) -> bool:
    """Return whether a value has a method `to`, so that a container is moved whole."""
    return callable(getattr(value, "to", None))


def _rebuild(container: Any, values: list[Any]) -> Any:
    """Return a container like another one, with `values` in the order of `children_of` instead of what that holds."""
    kind = type(container)
    if isinstance(container, list | tuple):
        return kind(*values) if hasattr(kind, "_fields") else kind(values)
    if kind is dict:
        return dict(zip(container, values, strict=True))
    if isinstance(container, Mapping) and not isinstance(container, MutableMapping):
        return kind(dict(zip(container, values, strict=True)))
    twin = copy.copy(container)  # it may hold more, such as the default of a defaultdict
    if isinstance(container, Mapping):
        for key, value in zip(container, values, strict=True):
            twin[key] = value  # not `update`, which counts in a Counter
    else:
        for field, value in zip(dataclasses.fields(kind), values, strict=True):
            object.__setattr__(twin, field.name, value)  # it may be frozen, or have an `__init__` of its own
    return twin
