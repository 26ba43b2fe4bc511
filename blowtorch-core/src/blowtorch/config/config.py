"""The configuration: sources merged in order, values that know their origin, and which of them were read.

Files merge deeply and later ones win; `with` on the command line comes last. Values are found by dotted keys.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from blowtorch.config.yaml12 import join_path, parse_yaml
from blowtorch.errors import ConfigError, MissingKeyError, nearest, warn

ReadSource = Callable[[str], Mapping[str, Any]]
Origin = Callable[[str], str]  # of a value, by its dotted key

_MISSING = object()
_COMMAND_LINE = "command line"
_MAX_DEPTH = 100  # far below what Python's own stack carries, here and where the configuration is written
_SCHEME = re.compile(r"([A-Za-z_][\w-]+):(.*)", re.DOTALL)


class Config(Mapping[str, Any]):
    """A section of the configuration; read-only, found by dotted keys, such as `model.layers.0.width`.

    Nested mappings are sections again, and lists are copies. A key that itself contains dots is found as it is
    written, before the same dots are taken as a path. What has been read is remembered, so that overrides which
    nothing reads can be reported.
    """

    def __init__(self, values: dict[str, Any], origins: dict[str, str], read: set[str], path: str = "") -> None:
        self._values = values
        self._origins = origins
        self._read = read
        self._path = path

    def __getitem__(self, key: str) -> Any:
        return self._give(*self._find_present(key))

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or `default` if no source had it."""
        value, path = self._find(key)
        return default if value is _MISSING else self._give(value, path)

    def __contains__(self, key: object) -> bool:
        return self._find(key)[0] is not _MISSING

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Config({self._values!r})"

    def origin(self, key: str) -> str:
        """Return where a value came from, such as `config/default.yaml:12`, `command line` or `script`.

        A section has the origin of its first value, and an element that of its list, unless it was set by itself.

        Raises:
            MissingKeyError: no source had the key.
        """
        path = self._find_present(key)[1]
        while not (keys := [key for key in self._origins if _is_within(key, path)]):
            path = path.rpartition(".")[0]
        return self._origins[keys[0]]

    def origins(self) -> dict[str, str]:
        """Return the origin of every value, by dotted key."""
        prefix = join_path(self._path, "")
        keys = [key for key in self._origins if _is_within(key, self._path)]
        return {key.removeprefix(prefix): self._origins[key] for key in keys}

    def to_dict(self) -> dict[str, Any]:
        """Return a plain copy; all of it counts as read."""
        self._read.add(self._path)
        return self.snapshot()

    def snapshot(self) -> dict[str, Any]:
        """Return a plain copy that is only written down, so that nothing counts as read."""
        return {key: _copy(value) for key, value in self._values.items()}

    def unread_overrides(self) -> list[str]:
        """Return the keys that the command line sets and of which nothing has been read."""
        keys = [key for key, origin in self._origins.items() if origin == _COMMAND_LINE]
        return [key for key in keys if not any(_is_within(key, read) or _is_within(read, key) for read in self._read)]

    def _find(self, key: object) -> tuple[Any, str]:
        if not isinstance(key, str):
            raise TypeError(f"keys of a configuration are strings, got {key!r}")
        holder, path, names = _descend(self._values, key.split("."), self._path)
        return (_child(holder, names[0]) if len(names) == 1 else _MISSING), join_path(path, names[0])

    def _give(self, value: Any, path: str) -> Any:
        if value == {} or not isinstance(value, dict):
            self._read.add(path)
        return Config(value, self._origins, self._read, path) if isinstance(value, dict) else _copy(value)

    def _find_present(self, key: str) -> tuple[Any, str]:
        value, path = self._find(key)
        if value is not _MISSING:
            return value, path
        holder, path, _ = _descend(self._values, key.split("."), self._path)
        keys = [inner.removeprefix(join_path(self._path, "")) for inner in _paths(self._values, self._path)]
        message = f"no configuration source has {join_path(self._path, key)!r}.{nearest(key, keys)}"
        if isinstance(holder, list):
            raise MissingKeyError(f"{message} {path!r} is a list of {len(holder)}.")
        if not isinstance(holder, dict):
            raise MissingKeyError(f"{message} {path!r} is {holder!r}, not a section.")
        where = f"In {path!r} there are" if path else "There are"
        raise MissingKeyError(f"{message} {where} {', '.join(holder)}." if 0 < len(holder) <= 10 else message)


def _is_within(path: str, section: str) -> bool:
    return not section or path == section or path.startswith(f"{section}.")


def _child(holder: Any, name: str) -> Any:
    if isinstance(holder, list):
        holder = {str(index): item for index, item in enumerate(holder)}
    return holder.get(name, _MISSING) if isinstance(holder, dict) else _MISSING


def _descend(holder: Any, names: list[str], path: str) -> tuple[Any, str, list[str]]:
    """Follow names down as far as they exist; return what holds the last, its path, and the names that are left.

    One name is left if it exists, or if nothing but the last is missing; one that contains dots counts as one.
    """
    for count in range(len(names), 0, -1):
        name = ".".join(names[:count])
        child = _child(holder, name)
        if child is not _MISSING:
            return (
                (holder, path, [name]) if count == len(names) else _descend(child, names[count:], join_path(path, name))
            )
    return holder, path, names


def _leaves(value: Any, path: str) -> Iterator[str]:
    """Yield the paths of all values; a list counts as one value unless there are sections or lists in it."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, join_path(path, key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}.{index}")
    else:
        yield path


def _paths(value: Any, path: str) -> Iterator[str]:
    """Yield the paths of all sections and values below a path."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        inner = join_path(path, str(key))
        yield inner
        yield from _paths(item, inner)


def _copy(value: Any, source: str = "", depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{source}: nested more than {_MAX_DEPTH} levels deep, or contains itself")
    if isinstance(value, Mapping):
        return {str(key): _copy(item, source, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item, source, depth + 1) for item in value]
    return value


def load_config(
    base: Mapping[str, Any] | None, files: Sequence[str | Path], command_line: Sequence[str], read_source: ReadSource
) -> Config:
    """Merge a configuration from the script's mapping, its files, and what follows `with` on the command line.

    Args:
        base: the lowest layer.
        files: sources in order.
        command_line: only what stands behind the first word `with` counts: `key=value` overrides, whose values are
            YAML, and names of further sources.
        read_source: reads one source.

    Raises:
        ConfigError: a source or an override cannot be used.
    """
    config = Config({}, {}, set())
    _merge(config, {} if base is None else base, lambda _: "script", "Run(config=...)")
    for file in files:
        _merge_source(config, str(file), read_source)
    for item in split_command_line(command_line)[1]:
        if item.startswith("-") and item.partition("=")[0] not in config:
            raise ConfigError(
                f"{_COMMAND_LINE}: expected key=value or a source behind `with`, got {item!r}; the script's own "
                f"arguments stand before `with`"
            )
        if "=" in item:
            _override(config, item)
        else:
            _merge_source(config, item, read_source)
    return config


def split_command_line(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words of a command line at the first bare `with`, into the script's own and those of the configuration.

    >>> split_command_line(["train.py", "--lr", "0.1", "with", "a=1"])
    (['train.py', '--lr', '0.1'], ['a=1'])
    """
    end = words.index("with") if "with" in words else len(words)
    return list(words[:end]), list(words[end + 1 :])


def split_source(source: str) -> tuple[str, str]:
    """Split the name of a source into the extension that reads it, and what that extension is given.

    Raises:
        ConfigError: there is neither a suffix nor a scheme.

    >>> split_source("config/default.YAML"), split_source("env:APP_")
    (('yaml', 'config/default.YAML'), ('env', 'APP_'))
    """
    match = _SCHEME.fullmatch(source)
    if match and not os.path.exists(source):  # noqa: PTH110 - this one never raises, whatever the name
        return match.group(1), match.group(2)
    suffix = Path(source).suffix.lower().removeprefix(".")
    if not suffix:
        raise ConfigError(
            f"expected a file (config.yaml), a scheme (env:APP_) or an override (key=value), got {source!r}"
        )
    return suffix, source


def _merge_source(config: Config, source: str, read_source: ReadSource) -> None:
    if split_source(source)[1] == source and not os.path.exists(source):  # noqa: PTH110
        names: list[str] = []
        with suppress(OSError, ValueError):  # there is no such folder, or can be none
            names = [str(path) for path in Path(source).parent.iterdir() if path.is_file()]
        raise ConfigError(f"expected a file or an override (key=value), got {source!r}.{nearest(source, names)}")
    values = read_source(source)
    lines: Mapping[str, int | str] = getattr(values, "lines", {})

    def origin(path: str) -> str:
        while path and path not in lines:
            path = path.rpartition(".")[0]
        line = lines.get(path)
        return line if isinstance(line, str) else f"{source}:{line}" if line else source

    _merge(config, values, origin, source)


def _merge(config: Config, values: Any, origin: Origin, source: str) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: expected a mapping at the top, got {values!r:.80}")
    for name, value in _copy(values, source).items():
        _set(config, (config._values, ""), name, value, origin)


def _set(config: Config, place: tuple[Any, str], name: str, value: Any, origin: Origin) -> None:
    """Set one value of a section or list, given with its path; sections are merged, anything else is replaced."""
    holder, path = place
    inner, present = join_path(path, name), _child(holder, name)
    if present and isinstance(present, dict) and isinstance(value, dict):
        for key, item in value.items():
            _set(config, (present, inner), key, item, origin)
        return
    if present is not _MISSING:
        for replaced in [key for key in config._origins if _is_within(key, inner)]:
            del config._origins[replaced]
    holder[int(name) if isinstance(holder, list) else name] = value
    config._origins.update((leaf, origin(leaf)) for leaf in _leaves(value, inner))


def _override(config: Config, item: str) -> None:
    """Apply `key=value`; an element of a list is set by its index, a mapping merges like a file."""
    key, _, text = item.partition("=")
    if not all(key.split(".")):
        raise ConfigError(f"{_COMMAND_LINE}: expected key=value with a dotted key, got {item!r}")
    value = _copy(parse_yaml(text, f"{_COMMAND_LINE}, {key}"), f"{_COMMAND_LINE}, {key:.80}", key.count(".") + 1)
    holder, path, names = _descend(config._values, key.split("."), "")
    if isinstance(holder, list) and _child(holder, names[0]) is _MISSING:
        raise ConfigError(f"{_COMMAND_LINE}: {path!r} is a list of {len(holder)}, so {names[0]!r} is no element of it")
    if not isinstance(holder, dict | list):
        raise ConfigError(f"{_COMMAND_LINE}: {key!r} cannot be set, since {path!r} is {holder!r}, not a section")
    if key not in config and not _is_within(key, "run"):  # options of a run are checked as such
        warn(f"{_COMMAND_LINE}: no source has {key!r}, which is set now.{nearest(key, _paths(config._values, ''))}")
    for name in reversed(names[1:]):
        value = {name: value}
    _set(config, (holder, path), names[0], value, lambda _: _COMMAND_LINE)
