"""The YAML reader and writer: the same with libyaml as without it."""

import random

import pytest
import yaml

from blowtorch import ConfigError, parse_yaml
from blowtorch.config.yaml12 import dump_yaml

TOKENS = [
    "a",
    "b: ",
    "- ",
    "\n",
    "  ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    ":",
    "'",
    '"',
    "|\n",
    ">\n",
    "# c",
    "&x ",
    "*x",
    "<<: ",
]
TOKENS += ["---\n", "...\n", "%YAML 1.2\n", "1e-3", "no", "~", "é", "\u2028", "\x85", "\\n", "@", "|-", "|2\n", "\r\n"]
TOKENS += [
    "\x07",
    "\t",
    "\ufeff",
    "?",
    "? ",
    "!",
    "!!int ",
    "!!float ",
    "!x ",
    "😀",
    "\\ud800",
    "\\U00110000",
    "\ud800",
]
TOKENS += ["c: &y {d: 1}\n", "<<: [*x, *y]\n", "http://a/b", "\x00", "\xa0", "key with spaces: ", "|-#"]
ODD = [
    "",
    "a:\tb",
    "a\t: b",
    "? a\n: b",
    "? [a]\n: b",
    "a: !!int many",
    "a: !!set {b}",
    "a: b: c",
    "a: 'b",
    "a: [",
    "a: ]",
]
ODD += [
    "a: 1\na: 2",
    "a: &x {b: 1}\nc: {<<: *x, b: 2}",
    "a: *x",
    "a: &x 1\nb: &x 2",
    "&x [*x]",
    "[" * 100_000,
    "- " * 5000,
]
ODD += [
    "a: |+\n  b\n\n",
    "a: >-\n  b\n  c",
    "a: 1\n---\nb: 2",
    "%YAML 3.0\n--- a",
    "\ufeffa: 1",
    "a: 1\n\ufeffb: 2",
    "|-#",
]
ODD += [
    "a: '\x85'",
    "a: 12:30\nb: 0o17\nc: 0x1F\nd: .inf\ne: 1_000",
    "{a: 1, b}",
    "[a: 1, b]",
    "a: \x07",
    '"\\x"',
    "{}",
]


def draw_documents(count):
    """Documents of a few tokens, most of which are no YAML."""
    stream = random.Random(0)
    return ["".join(stream.choices(TOKENS, k=stream.randint(1, 10))) for _ in range(count)]


def outcomes(texts):
    """Of each document the value with its types and lines, or the words of the error."""
    for text in texts:
        try:
            value = parse_yaml(text, "file.yaml")
        except ConfigError as error:
            yield str(error)
        else:
            yield repr(value), getattr(value, "lines", None)


@pytest.fixture(params=["libyaml", "Python alone"])
def library(request, monkeypatch):
    if request.param == "Python alone":
        monkeypatch.setattr(yaml, "__with_libyaml__", False)
    elif not yaml.__with_libyaml__:
        pytest.skip("PyYAML came without libyaml")


def test_with_libyaml_every_document_means_what_it_means_without(monkeypatch):
    texts = ODD + draw_documents(2000)
    first = list(outcomes(texts))
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    for text, one, other in zip(texts, first, outcomes(texts), strict=True):
        assert one == other, repr(text)
    assert sum(isinstance(outcome, tuple) for outcome in first) > 200


WRITTEN = {
    "rate": 1e-5,
    "big": [1e30, float("inf"), -0.0, 2**70],
    "text": ["1e-3", "no", "12:30", "0o17", "0x1f", "1_000", "true", "null", "", "~", "1.", ".5", "2024-01-01", "<<"],
    "ünï": "größe\nzwei: # x",
    "odd": [" a", "a ", "a\tb", "\x07", "😀", "C:\\Users", "\ufeff", "- a", "? b", "!x", "word " * 60, "x" * 300],
    "😀": {"a b": {}, "c: d": [], "e": [[], [{}]], "": None},
}


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("style", [{}, {"default_flow_style": True, "width": 2**31 - 1}])
def test_what_is_written_is_read_back_as_it_was_by_any_reader(style):
    text = dump_yaml(WRITTEN, **style)
    assert parse_yaml(text, "file.yaml") == WRITTEN == yaml.safe_load(text)
    assert "😀" in text and "größe" in text


@pytest.mark.usefixtures("library")
def test_half_a_surrogate_pair_can_be_written():
    assert parse_yaml(dump_yaml({"a": "\ud800"}), "file.yaml") == {"a": "\ud800"}
