"""Values that a checkpoint can hold and that run no code when they are read, and what can be told by such values."""

import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from blowtorch.data.tree import Place, walk
from blowtorch.errors import CheckpointError

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
        problem = _find_fault(keys, leaf)
        if problem is not None:
            return place + "".join(f"[{key!r}]" for key in keys) + problem
    return None


def _find_fault(keys: Place, leaf: Any) -> str | None:
    for key in keys:
        if not _is_plain_key(key):
            return f" has a {type(key).__name__} as key"
    if isinstance(leaf, torch.Tensor):
        if leaf.is_nested and leaf.layout is torch.strided:  # torch can neither copy nor save its sizes
            return " is a nested tensor whose layout is not torch.jagged"
    elif type(leaf) not in _PLAIN:
        return f" is a {type(leaf).__name__}"
    return None


def _is_plain_key(key: Any) -> bool:
    return type(key) in _PLAIN or (type(key) is tuple and all(map(_is_plain_key, key)))


def make_plain(state: Any) -> tuple[Any, list[Original]]:
    """Return a state in plain values, and what was not: of NumPy, deques, sets, defaultdicts, named tuples.

    Arrays share their memory with the tensors that stand for them. What cannot be told in plain values stays as it is.

    >>> from collections import deque
    >>> make_plain({"last": deque([1, 2], maxlen=5)})
    ({'last': [1, 2]}, [(('last',), 'deque', 5)])
    """
    originals: list[Original] = []
    return _simplify(state, (), originals), originals


def make_original(state: Any, originals: Sequence[Original]) -> Any:
    """Return a state as it was before `make_plain`; a class of named tuples has to be there already, where it was.

    Raises:
        CheckpointError: it is not there.

    >>> make_original({"last": [1, 2]}, [(("last",), "deque", 5)])
    {'last': deque([1, 2], maxlen=5)}
    """
    if not originals:
        return state
    return _revive(state, (), {place: (kind, detail) for place, kind, detail in originals})


def _simplify(value: Any, place: Place, originals: list[Original]) -> Any:
    told = _tell(value)
    if told is not None:
        kind, detail, value = told
        originals.append((place, kind, detail))
    if type(value) in (dict, OrderedDict, Counter):
        items = ((_plain_key(key), item) for key, item in value.items())
        return type(value)({key: _simplify(item, (*place, key), originals) for key, item in items})
    if type(value) in (list, tuple):
        return type(value)(_simplify(item, (*place, index), originals) for index, item in enumerate(value))
    return value


def _tell(value: Any) -> tuple[str, Any, Any] | None:
    """Return what a value that is not plain is, what else its making anew needs, and what stands for it."""
    kind = type(value)
    if kind is defaultdict and value.default_factory in (None, *_FACTORIES):
        factory = value.default_factory
        return "defaultdict", None if factory is None else factory.__name__, dict(value)
    if kind is deque:
        return "deque", value.maxlen, list(value)
    if kind in (set, frozenset):
        return kind.__name__, None, list(value)
    if kind is np.ndarray and not value.dtype.hasobject:
        return "array", [np.lib.format.dtype_to_descr(value.dtype), list(value.shape)], _as_tensor(value)
    if _is_plain_number(value):
        return "number", value.dtype.str, value.item()
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        return "scalar", [np.lib.format.dtype_to_descr(value.dtype), []], _as_tensor(np.array(value))
    if isinstance(value, tuple) and _find_named_tuple(kind.__module__, kind.__qualname__) is kind:
        return "named tuple", [kind.__module__, kind.__qualname__], list(value)
    return None


def _plain_key(key: Any) -> Any:
    """Return a key of NumPy, or a tuple with such inside, as the plain one that is equal to it and is found by it."""
    if type(key) is tuple:
        return tuple(map(_plain_key, key))
    return key.item() if _is_plain_number(key) else key


def _is_plain_number(value: Any) -> bool:
    """Whether a value is a number or a text of NumPy that Python has too."""
    return isinstance(value, np.generic) and value.dtype.kind in "biufcUS" and type(value.item()) in _PLAIN


def _find_named_tuple(module: str, name: str) -> Any:
    """Return a class of named tuples that is there already, or None; nothing is imported for it."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields") else None


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
    make = _MAKERS.get(kind)
    return value if make is None else make(value, detail)


def _make_defaultdict(value: Any, factory: str | None) -> Any:
    return defaultdict({each.__name__: each for each in _FACTORIES}.get(factory or ""), value)


def _make_array(value: Any, detail: Any) -> Any:
    dtype, shape = np.lib.format.descr_to_dtype(detail[0]), detail[1]
    array = value.numpy()
    return array if array.dtype == dtype else array.view(dtype).reshape(shape)


def _make_named_tuple(value: Any, detail: Any) -> Any:
    module, name = detail
    kind = _find_named_tuple(module, name)
    if kind is None or len(kind._fields) != len(value):
        raise CheckpointError(
            f"the checkpoint holds a named tuple {name!r} of the module {module!r} with {len(value)} fields, and there "
            f"is none now; define it there again, or begin what holds it anew by run.resume_without"
        )
    return tuple.__new__(kind, value)  # which calls nothing of the class


_MAKERS: dict[str, Callable[[Any, Any], Any]] = {  # each is given what stands for a value, and what else it needs
    "deque": deque,
    "set": lambda value, _: set(value),
    "frozenset": lambda value, _: frozenset(value),
    "defaultdict": _make_defaultdict,
    "number": lambda value, dtype: np.dtype(dtype).type(value),
    "scalar": lambda value, detail: _make_array(value, detail)[()],
    "array": _make_array,
    "named tuple": _make_named_tuple,
}
