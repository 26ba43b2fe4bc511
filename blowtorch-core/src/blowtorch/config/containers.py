"""What may be given as a configuration: mappings, lists and objects of many kinds, unpacked into dicts and lists."""

import dataclasses
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from blowtorch.errors import ConfigError, describe

_MAX_DEPTH = 100  # far below what Python's own stack carries, here and where the configuration is written
_PLAIN = (str, int, float, bool, type(None))
_TEXTS = (str, bytes, bytearray, memoryview, range)  # sequences, and one value each
_OPTIONS = "run"  # the section whose values may be objects that are meant as they are, such as callbacks


class Unpacked:
    """A configuration in which whatever holds values is a dict or a list.

    Mappings, namespaces, dataclasses, and objects of attrs and pydantic become dicts; sequences become lists. What they
    compute is computed, such as the interpolations of omegaconf. Any other object is a value, and stays as it is.

    Args:
        value: what is unpacked.
        source: what errors call it.
        depth: how many levels there are above it.

    Attributes:
        value: the dicts and lists.
        missing: the dotted keys that have no value yet, `???` in omegaconf; `value` has None there.

    Raises:
        ConfigError: it is nested too deeply, or values of it cannot be read; they are named.
    """

    def __init__(self, value: Any, source: str, depth: int = 0) -> None:
        self.missing: list[str] = []
        self._source = source
        self._unreadable: list[str] = []
        self.value = self._unpack(value, "", depth)
        if self._unreadable:
            raise ConfigError(f"{source}: expected values that can be read; got {'; '.join(self._unreadable)}")

    def _unpack(self, value: Any, path: str, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ConfigError(f"{self._source}: nested more than {_MAX_DEPTH} levels deep, or contains itself")
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Sequence) and not isinstance(value, _TEXTS):
            read, names = value.__getitem__, range(len(value))
            return [self._unpack(self._read(read, name, path), join_path(path, str(name)), depth + 1) for name in names]
        holder = _names_and_reader(value, is_option=path.partition(".")[0] == _OPTIONS)
        if holder is None:
            return value
        return {
            str(name): self._unpack(self._read(holder[1], name, path), join_path(path, str(name)), depth + 1)
            for name in holder[0]
        }

    def _read(self, read: Callable[[Any], Any], name: Any, path: str) -> Any:
        try:
            return read(name)
        except Exception as error:  # of a library that is not imported here, or of the script's own
            if type(error).__name__ == "MissingMandatoryValue" and isinstance(name, str):
                self.missing.append(join_path(path, name))
            else:
                reason = describe(error).splitlines()[0]
                self._unreadable.append(f"{join_path(path, str(name))!r} ({reason})")
            return None


def unpack(value: Any) -> Any:
    """Return a mapping or list of another library as dicts and lists, and anything else as it is.

    >>> from types import MappingProxyType
    >>> unpack(MappingProxyType({"names": ("a", "b")}))
    {'names': ('a', 'b')}
    """
    if isinstance(value, Mapping):
        return {name: unpack(item) for name, item in value.items()}
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(unpack(item) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, _TEXTS):
        return [unpack(item) for item in value]
    return value


def _names_and_reader(value: Any, *, is_option: bool) -> tuple[Iterable[Any], Callable[[Any], Any]] | None:
    """Return the names of what an object holds and what reads one of them; None for an object that is a value."""
    kind = type(value)
    if isinstance(value, Mapping):
        return value, value.__getitem__
    if isinstance(value, type) or is_option:
        return None
    if isinstance(value, Namespace | SimpleNamespace):
        return vars(value), vars(value).__getitem__
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)], lambda name: getattr(value, name)
    if hasattr(kind, "__attrs_attrs__"):
        return [attribute.name for attribute in kind.__attrs_attrs__], lambda name: getattr(value, name)
    if hasattr(kind, "__pydantic_fields__"):
        fields = dict(value)
        return fields, fields.__getitem__
    if hasattr(kind, "keys") and hasattr(kind, "__getitem__") and not hasattr(kind, "ndim"):  # but no table
        return value.keys(), value.__getitem__
    return None


def join_path(path: str, name: str) -> str:
    """Return the dotted key of a name in the section at a path."""
    return f"{path}.{name}" if path else name
