"""YAML as its version 1.2 reads and writes it: `1e-3` is a number, `no` is a string."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from blowtorch.config.containers import join_path
from blowtorch.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
# Where libyaml and PyYAML read the same text in two ways, or count its lines in two ways: tabs, marks of the byte
# order, explicit keys and tags, and comments behind `|` and `>`.
_READ_IN_TWO_WAYS = re.compile(r"[\t\ufeff?!]|[|>][-+0-9]*#")

_ENDS_LINE = re.compile(r"[ \t]*[\0#\r\n\x85\u2028\u2029]")


class _CoreSchema(SafeConstructor, Resolver):
    """Reads plain scalars as YAML 1.2 does."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError):  # an explicit tag on what it does not fit, such as `!!int many`
            raise _yaml_error(f"{node.value!r:.80} does not fit its tag {node.tag}", node) from None


class _PureLoader(_CoreSchema, yaml.SafeLoader):
    """Reads everywhere, and decides what is an error and what it is called.

    PyYAML takes spaces alone as what separates words; here tabs do so too, but for those in the place of indentation.
    """

    _are_tabs_spaces = False

    def scan_to_next_token(self) -> None:
        super().scan_to_next_token()
        while self.peek() == "\t" and self._is_behind_indentation():
            self._skip_blanks()
            if not self.flow_level:
                self.allow_simple_key = False  # no section begins behind a tab
            super().scan_to_next_token()

    def scan_plain_spaces(self, indent: int, start_mark: yaml.Mark) -> list[str] | None:
        blanks: str = self._skip_blanks()
        if self.peek() not in "\r\n\x85\u2028\u2029":
            return [blanks] if blanks else []
        breaks: list[str] | None = super().scan_plain_spaces(indent, start_mark)
        if breaks and (self.flow_level or self.column >= indent):
            self._skip_blanks()
        return breaks

    def scan_block_scalar_indicators(self, start_mark: yaml.Mark) -> tuple[bool | None, int | None]:
        indicators: tuple[bool | None, int | None] = self._scan_as_spaces(
            super().scan_block_scalar_indicators, start_mark
        )
        self._skip_blanks()
        return indicators

    def scan_tag(self) -> yaml.TagToken:
        tag: yaml.TagToken = self._scan_as_spaces(super().scan_tag)
        return tag

    def peek(self, index: int = 0) -> str:
        character: str = super().peek(index)
        return " " if self._are_tabs_spaces and character == "\t" else character

    def _scan_as_spaces(self, scan: Callable[..., Any], *arguments: Any) -> Any:
        """Scan what may end at a tab, which PyYAML would refuse."""
        self._are_tabs_spaces = True
        try:
            return scan(*arguments)
        finally:
            self._are_tabs_spaces = False

    def _skip_blanks(self) -> str:
        length = 0
        while self.peek(length) in " \t":
            length += 1
        blanks: str = self.prefix(length)
        self.forward(length)
        return blanks

    def _is_behind_indentation(self) -> bool:
        """Return whether something stands before a tab on its line, or nothing but a comment behind it."""
        before = self.buffer[self.pointer - self.column : self.pointer]
        return bool(self.flow_level or before.strip() or _ENDS_LINE.match(self.buffer, self.pointer))


def _construct_int(loader: _CoreSchema, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _construct_float(loader: _CoreSchema, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


def _refuse_tag(_: _CoreSchema | None, node: yaml.Node) -> None:
    raise _yaml_error(f"unknown tag {node.tag}; a configuration holds plain values only", node)


def _yaml_error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem.replace(_TAG, "!!"), node.start_mark)


_CoreSchema.yaml_constructors = {
    **{f"{_TAG}{kind}": yaml.SafeLoader.yaml_constructors[f"{_TAG}{kind}"] for kind in "null bool str seq map".split()},
    f"{_TAG}merge": yaml.SafeLoader.yaml_constructors[f"{_TAG}str"],  # `<<` means something as a key alone
    f"{_TAG}int": _construct_int,
    f"{_TAG}float": _construct_float,
    None: _refuse_tag,
}
_CoreSchema.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?(?:\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _CoreSchema.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"(?:{_pattern})$"), _first)

if yaml.__with_libyaml__:  # it reads and writes several times as fast as Python does

    class _FastLoader(_CoreSchema, Composer, yaml.CSafeLoader):
        """Takes the events of libyaml, and composes them in Python, where deep nesting ends in an error."""

        def __init__(self, text: str) -> None:
            yaml.CSafeLoader.__init__(self, text)
            Composer.__init__(self)


class Lines(dict[str, Any]):
    """A mapping read from a file, with the line of each value by its dotted key."""

    lines: Mapping[str, int]


def parse_yaml(text: str, name: str) -> Any:
    """Read one YAML document by the core schema of YAML 1.2; keys are strings, as they are written.

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
    if yaml.__with_libyaml__ and not _READ_IN_TWO_WAYS.search(text):
        try:
            return _read(_FastLoader(text), name)
        except (yaml.YAMLError, ConfigError, ValueError, OverflowError, RecursionError):
            pass  # the other reader says what is wrong, in the same words everywhere
    try:
        loader = _PureLoader(text)
        return _read(loader, name)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = ", ".join(filter(None, [error.context, error.problem]))
        raise ConfigError(f"{name}{line}: not valid YAML: {problem}") from None
    except yaml.reader.ReaderError as error:
        line = f":{text.count(chr(10), 0, error.position) + 1}"
        raise ConfigError(f"{name}{line}: not valid YAML: the character {chr(error.character)!r}") from None
    except (ValueError, OverflowError):
        raise ConfigError(f"{name}:{loader.line + 1}: not valid YAML: an escape that is no character") from None
    except RecursionError:
        raise ConfigError(f"{name}: not valid YAML: it is nested too deeply, or contains itself") from None


def _read(loader: Any, name: str) -> Any:
    """Return the value of the one document that a loader holds, a mapping as `Lines`."""
    lines: dict[str, int] = {}
    node = loader.get_single_node()
    if node is None:
        return None
    _read_keys(node, "", lines, name)
    value = loader.construct_document(node)
    if isinstance(value, dict):
        value = Lines(value)
        value.lines = {path: line for path, line in lines.items() if path}
    return value


def _read_keys(node: yaml.Node, path: str, lines: dict[str, int], name: str) -> None:
    """Make every key a string, note its line, and refuse one that stands twice."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _read_keys(item, join_path(path, str(index)), lines, name)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for position, (key, item) in enumerate(node.value):
            if not isinstance(key, yaml.ScalarNode):
                raise _yaml_error("expected a word as a key, got a list or a mapping", key)
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ConfigError(f"{name}:{line}: key {key.value!r} stands here and in line {seen[key.value]}")
            seen[key.value] = line
            if key.tag == f"{_TAG}merge":
                merged = item.value if isinstance(item, yaml.SequenceNode) else [item]
                continue
            if key.tag not in _CoreSchema.yaml_constructors:
                _refuse_tag(None, key)
            lines.setdefault(join_path(path, key.value), line)
            node.value[position] = (yaml.ScalarNode(f"{_TAG}str", key.value, key.start_mark, key.end_mark), item)
            _read_keys(item, join_path(path, key.value), lines, name)
        for other in merged:
            _read_keys(other, path, lines, name)


class _AnyReader(Resolver):
    """Quotes strings that would be numbers in YAML 1.2, so that any reader finds the same values."""


_AnyReader.yaml_implicit_resolvers = {key: list(value) for key, value in Resolver.yaml_implicit_resolvers.items()}
_AnyReader.add_implicit_resolver(
    f"{_TAG}float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), list("-+.0123456789")
)
_AnyReader.add_implicit_resolver(f"{_TAG}int", re.compile(r"0o[0-7]+"), ["0"])


class _PureDumper(_AnyReader, yaml.SafeDumper):
    """Writes everywhere."""


if yaml.__with_libyaml__:

    class _FastDumper(_AnyReader, yaml.CSafeDumper):
        """Writes by libyaml."""


def dump_yaml(value: Any, *, default_flow_style: bool = False, width: int = 120) -> str:
    """Write plain values so that any reader of YAML finds the same ones.

    Args:
        value: what is written.
        default_flow_style: write in the manner of JSON, on as few lines as possible.
        width: break longer lines where that is possible.
    """
    style: dict[str, Any] = {"default_flow_style": default_flow_style, "width": width}
    style |= {"sort_keys": False, "allow_unicode": True}
    if yaml.__with_libyaml__:
        try:
            text = str(yaml.dump(value, Dumper=_FastDumper, **style))
        except UnicodeEncodeError:  # half a surrogate pair, which only the other one can write
            pass
        else:
            if "\\U" not in text:  # libyaml writes an emoji as a number, which nobody can read
                return text
    return str(yaml.dump(value, Dumper=_PureDumper, **style))
