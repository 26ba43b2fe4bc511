"""Values that a checkpoint can hold and that run no code when they are read, and what can be told by such values."""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from blowtorch.tree import Place, walk

Original = tuple[Place, str, Any]  # where a value stood, what it was, and what else its making anew needs

_PLAIN = (type(None), bool, int, float, str, bytes, complex, torch.Size, torch.dtype, torch.device)
_CONTAINERS = (list, tuple, dict, OrderedDict, Counter)  # no subclass of these: to read one back could run its code
_FACTORIES: tuple[Callable[[], Any], ...] = (int, float, bool, str, list, dict, set, tuple, deque)  # of defaultdicts


def is_leaf(value: Any) -> bool:
    """Whether a value of a state is not looked into: all but the few containers that are read back as they are."""
    return type(value) not in _CONTAINERS


def find_unplain(value: Any, place: str) -> str | None:
    """Return a sentence on the first thing in a state that is neither a tensor nor a plain value, or None.

    >>> find_unplain({"rates": [0.1, object]}, "schedulers/main")
    "schedulers/main['rates'][1] is a type"
    """
    for keys, leaf in walk(value, is_leaf):
        path = place + "".join(f"[{key!r}]" for key in keys)
        for key in keys:
            if type(key) not in _PLAIN and not (type(key) is tuple and all(type(part) in _PLAIN for part in key)):
                return f"{path} has a {type(key).__name__} as key"
        if not isinstance(leaf, torch.Tensor) and type(leaf) not in _PLAIN:
            return f"{path} is a {type(leaf).__name__}"
    return None


def make_plain(state: Any) -> tuple[Any, list[Original]]:
    """Return a state in plain values, and what was not plain: numbers and arrays of NumPy, deques, sets, defaultdicts.

    Arrays share their memory with the tensors that stand for them. What cannot be told in plain values stays as it is.

    >>> from collections import deque
    >>> make_plain({"last": deque([1, 2], maxlen=5)})
    ({'last': [1, 2]}, [(('last',), 'deque', 5)])
    """
    originals: list[Original] = []
    return _simplify(state, (), originals), originals


def make_original(state: Any, originals: Sequence[Original]) -> Any:
    """Return a state as it was before `make_plain`.

    >>> make_original({"last": [1, 2]}, [(("last",), "deque", 5)])
    {'last': deque([1, 2], maxlen=5)}
    """
    if not originals:
        return state
    return _revive(state, (), {place: (kind, detail) for place, kind, detail in originals})


def _simplify(value: Any, place: Place, originals: list[Original]) -> Any:
    kind = type(value)
    if kind in (dict, OrderedDict, Counter):
        return kind({key: _simplify(item, (*place, key), originals) for key, item in value.items()})
    if kind in (list, tuple):
        return kind(_simplify(item, (*place, index), originals) for index, item in enumerate(value))
    if kind is deque:
        originals.append((place, "deque", value.maxlen))
    elif kind in (set, frozenset):
        originals.append((place, kind.__name__, None))
    elif kind is defaultdict and value.default_factory in (None, *_FACTORIES):
        factory = value.default_factory
        originals.append((place, "defaultdict", None if factory is None else factory.__name__))
        return _simplify(dict(value), place, originals)
    elif isinstance(value, np.generic) and value.dtype.kind in "biufc" and type(value.item()) in _PLAIN:
        originals.append((place, "number", value.dtype.str))
        return value.item()
    elif kind is np.ndarray and not value.dtype.hasobject:
        originals.append((place, "array", [np.lib.format.dtype_to_descr(value.dtype), list(value.shape)]))
        return _as_tensor(value)
    else:
        return value
    return [_simplify(item, (*place, index), originals) for index, item in enumerate(value)]


def _as_tensor(array: Any) -> torch.Tensor:
    """Return a tensor of the numbers of an array, or of its bytes where torch has no such numbers."""
    array = np.require(array, requirements=["C", "W"])
    try:
        return torch.from_numpy(array)
    except (TypeError, ValueError):  # the order of bytes is not that of this machine
        return torch.from_numpy(array.reshape(-1).view(np.uint8))


def _revive(value: Any, place: Place, originals: dict[Place, tuple[str, Any]]) -> Any:
    if isinstance(value, dict):
        value = type(value)({key: _revive(item, (*place, key), originals) for key, item in value.items()})
    elif type(value) in (list, tuple):
        value = type(value)(_revive(item, (*place, index), originals) for index, item in enumerate(value))
    kind, detail = originals.get(place, ("", None))
    if kind == "deque":
        return deque(value, detail)
    if kind in ("set", "frozenset"):
        return set(value) if kind == "set" else frozenset(value)
    if kind == "defaultdict":
        return defaultdict({factory.__name__: factory for factory in _FACTORIES}.get(detail), value)
    if kind == "number":
        return np.dtype(detail).type(value)
    if kind == "array":
        dtype, shape = np.lib.format.descr_to_dtype(detail[0]), detail[1]
        array = value.numpy()
        return array if array.dtype == dtype else array.view(dtype).reshape(shape)
    return value
