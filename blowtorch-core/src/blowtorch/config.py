"""The configuration: sources merged in order, values that know their origin, and which of them were read.

Files merge deeply and later ones win; `with` on the command line comes last. Values are found by dotted keys.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from blowtorch.errors import ConfigError, MissingKeyError, nearest, warn

ReadSource = Callable[[str], Mapping[str, Any]]

_MISSING = object()
_SCHEME = re.compile(r"([A-Za-z_][\w.-]+):(.*)", re.DOTALL)


class _CoreLoader(yaml.SafeLoader):
    """YAML as its version 1.2 reads plain scalars: `1e-3` is a number, `no` is a string."""


_CoreLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?(?:\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


def _construct_int(loader: _CoreLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    base = 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10
    return int(text, base)


def _construct_float(loader: _CoreLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


_CoreLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_CoreLoader.add_constructor("tag:yaml.org,2002:float", _construct_float)


class Lines(dict[str, Any]):
    """A mapping read from a file, with the line of each value by its dotted key."""

    lines: Mapping[str, int]


def parse_yaml(text: str, name: str) -> Any:
    """Read one YAML document by the core schema of YAML 1.2.

    Args:
        text: the document.
        name: what errors call it, such as the path of the file.

    Returns:
        The value; a mapping at the top is a dict that has an attribute `lines`, dotted key to line number.

    Raises:
        ConfigError: it is malformed, or a key stands twice; the message begins with `name:line`.

    >>> parse_yaml("rate: 1e-3\\nanswer: no", "c.yaml")
    {'rate': 0.001, 'answer': 'no'}
    """
    loader = _CoreLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            value: Any = None
        else:
            lines: dict[str, int] = {}
            _note_lines(node, "", lines, name)
            value = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    finally:
        loader.dispose()
    if isinstance(value, dict):
        value = Lines(value)
        value.lines = lines
    return value


def _note_lines(node: yaml.Node, path: str, lines: dict[str, int], name: str) -> None:
    """Note the line of every value, and refuse keys that stand twice."""
    if path:
        lines.setdefault(path, node.start_mark.line + 1)
    prefix = f"{path}." if path else ""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_lines(item, f"{prefix}{index}", lines, name)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            if key.tag.endswith(":merge"):
                continue
            if str(key.value) in seen:
                raise ConfigError(f"{name}:{line}: key {key.value!r} stands here and in line {seen[str(key.value)]}")
            seen[str(key.value)] = line
            lines[f"{prefix}{key.value}"] = line
            _note_lines(item, f"{prefix}{key.value}", lines, name)


class Config(Mapping[str, Any]):
    """A section of the configuration; read-only, found by dotted keys, such as `model.layers.0.width`.

    Nested mappings are sections again. What has been read is remembered, so that overrides which nothing reads can be
    reported.
    """

    def __init__(self, values: dict[str, Any], origins: dict[str, str], read: set[str], path: str = "") -> None:
        self._values = values
        self._origins = origins
        self._read = read
        self._path = path

    def __getitem__(self, key: str) -> Any:
        value, path = self._find(key)
        if value is _MISSING:
            raise MissingKeyError(self._describe_missing(key))
        return self._wrap(value, path)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default` if no source had it."""
        value, path = self._find(key)
        return default if value is _MISSING else self._wrap(value, path)

    def __contains__(self, key: object) -> bool:
        return self._find(key)[0] is not _MISSING

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Config({self._values!r})"

    def origin(self, key: str) -> str:
        """Where a value came from, such as `config/default.yaml:12`, `command line` or `script`.

        Raises:
            MissingKeyError: no source had the key.
        """
        value, path = self._find(key)
        if value is _MISSING:
            raise MissingKeyError(self._describe_missing(key))
        while path not in self._origins and path:  # an element of a list, or a section, asks for what holds it
            inner = sorted(known for known in self._origins if known.startswith(f"{path}."))
            path = inner[0] if inner else path.rpartition(".")[0]
        return self._origins.get(path, "script")

    def origins(self) -> dict[str, str]:
        """The origin of every value, by dotted key."""
        prefix = f"{self._path}." if self._path else ""
        return {
            path.removeprefix(prefix): self.origin(path.removeprefix(prefix))
            for path, _ in _leaves(self._values, self._path)
        }

    def to_dict(self) -> dict[str, Any]:
        """A plain copy; all of it counts as read."""
        self._mark(self._values, self._path)
        return {key: _copy(value) for key, value in self._values.items()}

    def snapshot(self) -> dict[str, Any]:
        """A plain copy for the books; nothing counts as read by it."""
        return {key: _copy(value) for key, value in self._values.items()}

    def unread_overrides(self) -> list[str]:
        """The keys that the command line sets and nothing has read."""
        return [key for key, origin in self._origins.items() if origin == "command line" and key not in self._read]

    def _find(self, key: object) -> tuple[Any, str]:
        """The value of a key and its full path; a key that itself contains dots is found too."""
        if not isinstance(key, str):
            raise TypeError(f"keys of a configuration are strings, got {key!r}")
        return _find(self._values, key.split("."), self._path)

    def _wrap(self, value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return Config(value, self._origins, self._read, path)
        self._mark(value, path)
        return _copy(value)

    def _mark(self, value: Any, path: str) -> None:
        self._read.update(leaf for leaf, _ in _leaves(value, path))
        parts = path.split(".")
        self._read.update(".".join(parts[: count + 1]) for count in range(len(parts)))

    def _describe_missing(self, key: str) -> str:
        path = f"{self._path}.{key}" if self._path else key
        known = [leaf.removeprefix(f"{self._path}.") for leaf in _paths(self._values, self._path)]
        there = f" There are {', '.join(self._values)}" if 0 < len(self._values) <= 10 else ""
        return f"no configuration source has {path!r}.{nearest(key, known)}{there}"


def _find(value: Any, parts: list[str], path: str) -> tuple[Any, str]:
    if not parts:
        return value, path
    if isinstance(value, list):
        if parts[0].isdigit() and int(parts[0]) < len(value):
            return _find(value[int(parts[0])], parts[1:], f"{path}.{parts[0]}")
    elif isinstance(value, dict):
        for count in range(1, len(parts) + 1):
            key = ".".join(parts[:count])
            if key in value:
                found = _find(value[key], parts[count:], f"{path}.{key}" if path else key)
                if found[0] is not _MISSING:
                    return found
    return _MISSING, path


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Path and value of everything that is no mapping with something in it."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    elif path:
        yield path, value


def _paths(value: Any, path: str) -> Iterator[str]:
    """The paths of all sections and values below a path."""
    if isinstance(value, dict):
        for key, item in value.items():
            inner = f"{path}.{key}" if path else key
            yield inner
            yield from _paths(item, inner)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item) for item in value]
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
    _merge(config, base or {}, lambda _: "script", "Run(config=...)")
    for file in files:
        _merge_source(config, str(file), read_source)
    arguments = list(command_line)
    for item in arguments[arguments.index("with") + 1 :] if "with" in arguments else []:
        if "=" in item:
            _override(config, item)
        else:
            _merge_source(config, item, read_source)
    return config


def split_source(source: str) -> tuple[str, str]:
    """The name of the extension that reads a source, and what it is given.

    Raises:
        ConfigError: there is neither a suffix nor a scheme.

    >>> split_source("config/default.YAML"), split_source("env:APP_")
    (('yaml', 'config/default.YAML'), ('env', 'APP_'))
    """
    match = _SCHEME.fullmatch(source)
    if match and not Path(source).exists():
        return match.group(1), match.group(2)
    suffix = Path(source).suffix.lower().removeprefix(".")
    if not suffix:
        raise ConfigError(
            f"expected a configuration source with a suffix (config.yaml), a scheme (env:APP_), or an override "
            f"(key=value), got {source!r}"
        )
    return suffix, source


def _merge_source(config: Config, source: str, read_source: ReadSource) -> None:
    values = read_source(source)
    lines: Mapping[str, int | str] = getattr(values, "lines", {})

    def origin(path: str) -> str:
        while path and path not in lines:
            path = path.rpartition(".")[0]
        found = lines.get(path)
        return found if isinstance(found, str) else f"{source}:{found}" if found else source

    _merge(config, values, origin, source)


def _merge(config: Config, values: Any, origin: Callable[[str], str], source: str) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: expected a mapping at the top, got {values!r:.80}")
    _merge_into(config._values, _copy(values), "", config, origin)


def _merge_into(
    target: dict[str, Any], values: dict[str, Any], path: str, config: Config, origin: Callable[[str], str]
) -> None:
    for key, value in values.items():
        inner = f"{path}.{key}" if path else key
        present = target.get(key)
        if isinstance(value, dict) and isinstance(present, dict):
            _merge_into(present, value, inner, config, origin)
            continue
        _forget_origins(config, inner)
        target[key] = value
        for leaf, _ in _leaves(value, inner):
            config._origins[leaf] = origin(leaf)


def _forget_origins(config: Config, path: str) -> None:
    for known in [known for known in config._origins if known == path or known.startswith(f"{path}.")]:
        del config._origins[known]


def _override(config: Config, item: str) -> None:
    """Apply `key=value`; an element of a list is set by its index, a mapping merges like a file."""
    key, _, text = item.partition("=")
    if not key.strip(".") or ".." in key:
        raise ConfigError(f"command line: expected key=value with a dotted key, got {item!r}")
    value = _copy(parse_yaml(text, f"command line, {key}"))
    if key not in config and not key.startswith("run."):
        known = list(_paths(config._values, ""))
        warn(f"command line: no source has {key!r}, which is set now.{nearest(key, known)}")
    parts = key.split(".")
    for count in range(1, len(parts)):
        holder, path = _find(config._values, parts[:count], "")
        if isinstance(holder, list):
            _set_element(config, holder, path, parts[count:], value)
            return
        if holder is not _MISSING and not isinstance(holder, dict):
            raise ConfigError(f"command line: {key!r} cannot be set, since {path!r} is {holder!r} and no section")
    nested = value
    for part in reversed(parts):
        nested = {part: nested}
    _merge_into(config._values, nested, "", config, lambda _: "command line")


def _set_element(config: Config, holder: list[Any], path: str, parts: list[str], value: Any) -> None:
    """Set something in a list; the origin of a list is that of its last change."""
    index = parts[0]
    if not index.isdigit() or int(index) >= len(holder):
        raise ConfigError(f"command line: {path!r} is a list of {len(holder)}, so {index!r} is no element of it")
    if len(parts) == 1:
        holder[int(index)] = value
    else:
        inner: Any = holder[int(index)]
        for part in parts[1:-1]:
            inner = inner[int(part)] if isinstance(inner, list) else inner.setdefault(part, {})
        if isinstance(inner, list):
            _set_element(config, inner, f"{path}.{index}", parts[-1:], value)
            return
        if not isinstance(inner, dict):
            raise ConfigError(f"command line: {path}.{'.'.join(parts)} cannot be set, since it is in {inner!r}")
        inner[parts[-1]] = value
    config._origins[path] = "command line"
