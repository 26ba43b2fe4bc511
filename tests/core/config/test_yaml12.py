"""YAML as configurations read it."""

import math
import random

import pytest

from blowtorch import ConfigError, parse_yaml


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.5e+2", -50.0),
        ("1.", 1.0),
        ("3.25", 3.25),
        ("+1", 1),
        ("-17", -17),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("+.INF", math.inf),
        ("true", True),
        ("False", False),
        ("TRUE", True),
        ("~", None),
        ("null", None),
        ("Null", None),
        ("", None),
        *[(word, word) for word in "yes no on off y n Yes NO tRUE nULL inf nan 2026-01-01 1:30 190:20:30".split()],
        *[
            (word, word)
            for word in "1_000 0b11 0o8 -0x1F 1e . .e3 + - 1.2.3 = 10% 1e-3x /tmp/a a:b".split()
            if word != "-"
        ],
        ("2026-01-01 10:00:00", "2026-01-01 10:00:00"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("[1, a, [2]]", [1, "a", [2]]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_yaml_is_read_by_the_core_schema_of_its_version_1_2(text, expected):
    value = parse_yaml(text, "c.yaml")
    assert value == expected and type(value) in (type(expected), *([type(value)] if isinstance(value, dict) else []))


def test_yaml_reads_nan():
    assert math.isnan(parse_yaml(".nan", "c.yaml")) and math.isnan(parse_yaml(".NaN", "c.yaml"))


def test_numbers_survive_being_written_and_read():
    generator = random.Random(0)
    for _ in range(300):
        number = generator.uniform(-1, 1) * 10 ** generator.randint(-300, 300)
        assert parse_yaml(repr(number), "c.yaml") == number
        whole = generator.randint(-(2**70), 2**70)
        assert parse_yaml(str(whole), "c.yaml") == whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"^c\.yaml:3: key 'a' stands here and in line 1$"),
        ("a:\n  b: 1\n  b: 1", r"^c\.yaml:3: key 'b' stands here and in line 2$"),
        ("1: a\n'1': b", r"^c\.yaml:2: key '1' stands here and in line 1$"),
        ("a: 1\nb: [1,\nc: 2", r"^c\.yaml:3: not valid YAML: while parsing a flow sequence, expected ',' or '\]'"),
        ("a: 1\n\tb: 2", r"^c\.yaml:2: not valid YAML: "),
        ("a: 1\n---\nb: 2", r"^c\.yaml:2: not valid YAML: expected a single document in the stream, but found another"),
        ("\na: !lambda x", r"^c\.yaml:2: not valid YAML: unknown tag !lambda; a configuration holds plain values"),
        ("a: !!python/object/apply:os.getcwd []", r"^c\.yaml:1: .*unknown tag !!python/object/apply:os\.getcwd"),
        ("a: !!timestamp 2026-01-01", r"^c\.yaml:1: .*unknown tag !!timestamp"),
        ("a: !!int many", r"^c\.yaml:1: .*'many' does not fit its tag !!int$"),
        ("a: !!bool perhaps", r"^c\.yaml:1: .*'perhaps' does not fit its tag !!bool$"),
        ("? [a]\n: 1", r"^c\.yaml:1: .*expected a word as a key, got a list or a mapping$"),
        ("a: 1\nb: \x07", r"^c\.yaml:2: not valid YAML: the character '\\x07'$"),
        ("a: *nowhere", r"^c\.yaml:1: .*undefined alias 'nowhere'"),
        ("a: &a [*a]", r"^c\.yaml: .*nested too deeply, or contains itself$"),
        ("!lambda a: 1", r"^c\.yaml:1: .*unknown tag !lambda"),
        ('\na: "\\UFFFFFFFF"', r"^c\.yaml:2: not valid YAML: an escape that is no character$"),
        ("a: " + "9" * 5000, r"^c\.yaml:1: not valid YAML: '9{70,80} does not fit its tag !!int$"),
        ("a: &x 1\nb: &x 2", r"^c\.yaml:2: .*duplicate anchor 'x'"),
        ("x: &x {a: 1}\nz:\n  <<: *x\n  <<: *x", r"^c\.yaml:4: key '<<' stands here and in line 3$"),
        ("<<: 3", r"^c\.yaml:1: .*expected a mapping or list of mappings for merging"),
    ],
)
def test_malformed_yaml_is_an_error_with_file_and_line(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, "c.yaml")


def test_a_key_is_a_string_as_it_is_written():
    value = parse_yaml("1: a\n0x10: b\ntrue: c\n~: d\n1e-3: e\n2026-01-01: f\nno: g", "c.yaml")
    assert list(value) == ["1", "0x10", "true", "~", "1e-3", "2026-01-01", "no"]


def test_an_anchor_on_a_key_keeps_the_value_of_the_key_elsewhere():
    assert parse_yaml("&a 1: x\nb: *a", "c.yaml") == {"1": "x", "b": 1}


def test_merge_keys_give_what_stands_beside_them_precedence():
    value = parse_yaml(
        "base: &base\n  a: 1\n  b: 2\nfirst:\n  <<: *base\n  b: 3\nmany: {<<: [*base, {b: 9, c: 4}]}", "c"
    )
    assert value["first"] == {"a": 1, "b": 3} and value["many"] == {"a": 1, "b": 2, "c": 4}
    assert value.lines["first.a"] == 2 and value.lines["first.b"] == 6


def test_lines_are_those_of_the_keys_and_of_the_elements_of_lists():
    value = parse_yaml("# comment\na:\n  b: >\n    long\n    text\n  c:\n    - 1\n    - d: 2\n", "c.yaml")
    assert value.lines == {"a": 2, "a.b": 3, "a.c": 6, "a.c.0": 7, "a.c.1": 8, "a.c.1.d": 8}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:\t1\t# one\nb: \t 2\t", {"a": 1, "b": 2}),
        ("-\tx\n-\ty z", ["x", "y z"]),
        ("a: x\ty", {"a": "x\ty"}),
        ("a\t: {b:\t1,\tc: [2,\n\t3]\t}", {"a": {"b": 1, "c": [2, 3]}}),
        ("a:\n  b: 1\n\t\n \t# c\n  c: 2", {"a": {"b": 1, "c": 2}}),
        ("a: |\t# text\n  x\nb: >-\t\n  y", {"a": "x\n", "b": "y"}),
        ("a: 'x'\t\nb: \"y\"\t# z", {"a": "x", "b": "y"}),
        ("a: x\n  \ty", {"a": "x y"}),
        ("a:\t!!str\t1\nb: &b\t2\nc: *b\t", {"a": "1", "b": 2, "c": 2}),
        ("a:\t<<\nb: [<<]", {"a": "<<", "b": ["<<"]}),
        ("a: &a {b: <<}\nc:\n  <<:\t*a", {"a": {"b": "<<"}, "c": {"b": "<<"}}),
    ],
)
def test_tabs_separate_words_and_two_brackets_alone_are_a_string(text, expected):
    assert parse_yaml(text, "c.yaml") == expected


@pytest.mark.parametrize("text", ["\ta: 1", "a:\n\tb: 1", "-\ta: 1", "-\t- a", "a:\n  - b\n\t- c"])
def test_tabs_are_no_indentation(text):
    with pytest.raises(ConfigError, match=r"^c\.yaml:\d: not valid YAML"):
        parse_yaml(text, "c.yaml")
