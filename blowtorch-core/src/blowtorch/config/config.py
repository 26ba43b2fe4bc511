"""The configuration: sources merged in order, values that know their origin, and which of them were read.

Files merge deeply and later ones win; `with` on the command line comes last. Values are found by dotted keys.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from blowtorch.config.containers import Unpacked, join_path
from blowtorch.config.yaml12 import parse_yaml
from blowtorch.errors import ConfigError, MissingKeyError, nearest, warn

ReadSource = Callable[[str], Mapping[str, Any]]
Origin = Callable[[str], str]  # of a value, by its dotted key

_MISSING = object()
_COMMAND_LINE = "command line"
_SCRIPT = "script"
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
        value, path = self._find_present(key)
        leaf = next(filter(self._origins.__contains__, _paths(value, path)), path)
        while leaf not in self._origins:
            leaf = leaf.rpartition(".")[0]
        return self._origins[leaf]

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
        if not isinstance(value, dict) or not value:
            self._read.add(path)
        return Config(value, self._origins, self._read, path) if isinstance(value, dict) else _copy(value)

    def _find_present(self, key: str) -> tuple[Any, str]:
        value, path = self._find(key)
        if value is not _MISSING:
            return value, path
        holder, path, _ = _descend(self._values, key.split("."), self._path)
        keys = [inner.removeprefix(join_path(self._path, "")) for inner in _paths(self._values, self._path)][1:]
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
        is_index = name.isdecimal() and name == str(int(name[:9])) and int(name) < len(holder)
        return holder[int(name)] if is_index else _MISSING
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
    """Yield a path, and those of all sections, elements and values below it."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _paths(item, join_path(path, str(key)))


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def load_config(base: Any, files: Sequence[str | Path], command_line: Sequence[str], read_source: ReadSource) -> Config:
    """Merge a configuration from the script's mapping, its files, and what follows `with` on the command line.

    Args:
        base: the lowest layer; a mapping, or an object of a kind that `Unpacked` names.
        files: sources in order.
        command_line: only what stands behind the first word `with` counts: `key=value` overrides, whose values are
            YAML, and names of further sources.
        read_source: reads one source.

    Raises:
        ConfigError: a source or an override cannot be used.
    """
    config = Config({}, {}, set())
    missing = _merge(config, {} if base is None else base, lambda _: _SCRIPT, "Run(config=...)")
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
    _check_whole(config, missing)
    return config


def _check_whole(config: Config, missing: list[str]) -> None:
    """Raise a `ConfigError` if a value is still missing, or if one path leads to two values."""
    if still := [path for path in missing if config._origins.get(path) == _SCRIPT]:
        raise ConfigError(
            f"Run(config=...): {', '.join(map(repr, still))} must be set, in a file or on the command line, "
            f"such as `with {still[0]}=...`"
        )
    known: set[str] = set()
    for path in _paths(config._values, ""):
        if path in known:
            raise ConfigError(
                f"{path!r} is set twice ({config.origin(path)}), by a key that contains a dot and inside of a section; "
                f"write it in one way"
            )
        known.add(path)


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
    source = os.path.expanduser(source)  # noqa: PTH111 - this one raises nothing, and a scheme has no such letter
    if split_source(source)[1] == source and not os.path.exists(source):  # noqa: PTH110
        names, where = list[str](), "its folder"
        with suppress(OSError, ValueError):  # there is no such folder, or can be none
            where = str(Path(source).absolute().parent)
            names = [str(path) for path in Path(source).parent.iterdir() if path.is_file()]
        raise ConfigError(
            f"expected a file or an override (key=value), got {source!r}, and {where} has no such file."
            f"{nearest(source, names)}"
        )
    values = read_source(source)
    lines: Mapping[str, int | str] = getattr(values, "lines", {})
    ignores_case = getattr(values, "ignores_case", False)
    if ignores_case:
        values = _with_known_keys(values, config._values, source)
        lines = {path.lower(): line for path, line in lines.items()}

    def origin(path: str) -> str:
        path = path.lower() if ignores_case else path
        while path and path not in lines:
            path = path.rpartition(".")[0]
        line = lines.get(path)
        return line if isinstance(line, str) else f"{source}:{line}" if line else source

    _merge(config, values, origin, source)


def _with_known_keys(values: Mapping[str, Any], section: dict[str, Any], source: str) -> dict[str, Any]:
    """Return values under the keys that a section has already, in upper or lower case, and others under their own."""
    known: dict[str, list[str]] = {}
    for name in section:
        known.setdefault(name.lower(), []).append(name)
    renamed = {}
    for name, value in values.items():
        names = [name] if name in section else known.get(name.lower(), [name])
        if len(names) > 1:
            raise ConfigError(
                f"{source}: {name!r} may be any of {', '.join(map(repr, names))}; write it as one of them"
            )
        present = section.get(names[0])
        if isinstance(present, dict) and isinstance(value, Mapping):
            value = _with_known_keys(value, present, source)
        renamed[names[0]] = value
    return renamed


def _merge(config: Config, values: Any, origin: Origin, source: str) -> list[str]:
    """Merge a layer, and return the keys that it names without a value."""
    unpacked = Unpacked(values, source)
    if not isinstance(unpacked.value, dict):
        raise ConfigError(f"{source}: expected a mapping at the top, got {values!r:.80}")
    for name, value in unpacked.value.items():
        _set(config, (config._values, ""), name, value, origin)
    return unpacked.missing


def _set(config: Config, place: tuple[Any, str], name: str, value: Any, origin: Origin) -> None:
    """Set one value of a section or list, given with its path; sections are merged, anything else is replaced."""
    holder, path = place
    inner, present = join_path(path, name), _child(holder, name)
    if isinstance(present, dict) and present and isinstance(value, dict):
        for key, item in value.items():
            _set(config, (present, inner), key, item, origin)
        return
    if present is not _MISSING:
        for replaced in _paths(present, inner):
            config._origins.pop(replaced, None)
    holder[int(name) if isinstance(holder, list) else name] = value
    for leaf in _leaves(value, inner):
        earlier = config._origins.get(leaf)  # by a key with a dot, which `_check_whole` refuses
        config._origins[leaf] = origin(leaf) if earlier is None else f"{earlier} and {origin(leaf)}"


def _override(config: Config, item: str) -> None:
    """Apply `key=value`; an element of a list is set by its index, a mapping merges like a file."""
    key, _, text = item.partition("=")
    if not all(key.split(".")):
        raise ConfigError(f"{_COMMAND_LINE}: expected key=value with a dotted key, got {item!r}")
    value = parse_yaml(text, f"{_COMMAND_LINE}, {key}")
    value = Unpacked(value, f"{_COMMAND_LINE}, {key:.80}", depth=key.count(".") + 1).value
    holder, path, names = _descend(config._values, key.split("."), "")
    if holder is None:  # a section of which every line is a comment
        holder, path, sections = _descend(config._values, path.split("."), "")
        names = [*sections, *names]
    if isinstance(holder, list) and _child(holder, names[0]) is _MISSING:
        raise ConfigError(f"{_COMMAND_LINE}: {path!r} is a list of {len(holder)}, so {names[0]!r} is no element of it")
    if not isinstance(holder, dict | list):
        raise ConfigError(f"{_COMMAND_LINE}: {key!r} cannot be set, since {path!r} is {holder!r}, not a section")
    if key not in config and not _is_within(key, "run"):  # options of a run are checked as such
        warn(f"{_COMMAND_LINE}: no source has {key!r}, which is set now.{nearest(key, _paths(config._values, ''))}")
    for name in reversed(names[1:]):
        value = {name: value}
    _set(config, (holder, path), names[0], value, lambda _: _COMMAND_LINE)
