"""The configuration that is kept with a run, and what differs from the time before."""

from pathlib import Path

import yaml

from blowtorch.config.yaml12 import parse_yaml
from tests.core.folder.folders import configure

VALUES = {
    "rate": 1e-5,
    "big": 1e30,
    "text": ["1e-3", "no", "12:30", "0o17", "0x1f", "1_000", "true", "null", "", "~", "1.", ".5", "2024-01-01", "<<"],
    "numbers": [0, -1, 2.5, float("inf"), float("-inf"), True, None],
    "ünï": "größe\nzwei: # x",
    "empty": [{}, []],
}


def test_the_configuration_is_read_back_as_it_was_by_any_reader(folder):
    """A string such as 1e-3 is a number in YAML 1.2 unless it is quoted, and 12:30 is one in YAML 1.1."""
    configure(folder, VALUES)
    text = (folder.path / "config.yaml").read_text()
    assert parse_yaml(text, "config.yaml") == VALUES == yaml.safe_load(text)


def test_origins_stand_beside_the_configuration(folder):
    configure(folder, {"model": {"width": 3}})
    assert yaml.safe_load((folder.path / "origins.yaml").read_text()) == {"model.width": "script"}


def test_what_is_neither_a_number_nor_a_string_is_described(folder):
    configure(folder, {"path": Path("a/b")})
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == {"path": "a/b"}
    assert configure(folder, {"path": Path("a/b")}) == {}


def test_differences_to_the_last_time_are_told_by_their_keys(folder):
    first = {"model": {"width": 3, "depth": 2}, "list": [1, 2], "gone": 1, "section": {"a": 1}, "rate": 1e-5}
    assert configure(folder, first) == {}
    assert configure(folder, first) == {}
    second = {"model": {"width": 4, "depth": 2}, "list": [1, 3], "new": "x", "section": 5, "rate": 1e-5}
    assert configure(folder, second) == {
        "model.width": (3, 4),
        "list": ([1, 2], [1, 3]),
        "gone": (1, None),
        "section": ({"a": 1}, 5),
        "new": (None, "x"),
    }
    third = {"model": {"width": 4, "depth": 2}, "list": [1, 3], "new": "x", "section": 5, "other": {"a": {"b": 1}}}
    assert configure(folder, third) == {"rate": (1e-5, None), "other.a.b": (None, 1)}


def test_to_ask_for_a_run_to_be_continued_is_no_difference(folder):
    configure(folder, {"a": 1}, resume="never", max_epochs=None)
    assert configure(folder, {"a": 1, "run": {"resume": "auto"}}, resume="auto", max_epochs=3) == {
        "run.max_epochs": (None, 3)
    }
