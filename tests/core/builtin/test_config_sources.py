import os
from pathlib import Path
from typing import Any

import pytest

from blowtorch import ConfigError, ExtensionError, MissingKeyError, Run
from blowtorch.builtin.env_source import EnvSource
from blowtorch.builtin.json_source import JsonSource
from blowtorch.builtin.toml_source import TomlSource
from blowtorch.builtin.yaml_source import YamlSource

FILES: dict[str, tuple[type[YamlSource | JsonSource | TomlSource], str]] = {
    "c.yaml": (YamlSource, "model:\n  width: 3\n  rate: 1e-3\nlayers: [1, {a: null}]\n"),
    "c.json": (JsonSource, '{"model": {"width": 3, "rate": 1e-3}, "layers": [1, {"a": null}]}'),
    "c.toml": (TomlSource, 'layers = [1, {a = "x"}]\n[model]\nwidth = 3\nrate = 1e-3\n'),
}
SOURCES = [YamlSource, JsonSource, TomlSource]


def lines_of(values: Any) -> Any:
    """Where values stand, of which a mapping may say nothing."""
    return values.lines


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_its_mapping(name):
    source, text = FILES[name]
    Path(name).write_text(text)
    values = source().config_read(name)
    assert values["model"] == {"width": 3, "rate": 0.001}
    assert values["layers"] == [1, {"a": "x" if name == "c.toml" else None}]


@pytest.mark.parametrize("name", FILES)
def test_a_mark_at_the_beginning_of_a_file_is_no_part_of_it(name):
    source, text = FILES[name]
    Path(name).write_text(text, encoding="utf-8-sig")
    assert source().config_read(name)["model"]["width"] == 3


@pytest.mark.parametrize("source", SOURCES)
def test_what_cannot_be_read_is_an_error_that_names_it(source):
    Path("folder.yaml").mkdir()
    Path("latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read: .*No such file"):
        source().config_read("nowhere.yaml")
    with pytest.raises(ConfigError, match=r"folder\.yaml cannot be read: .*Is a directory"):
        source().config_read("folder.yaml")
    with pytest.raises(ConfigError, match=r"latin\.yaml cannot be read: 'utf-8' codec"):
        source().config_read("latin.yaml")


@pytest.mark.parametrize(
    ("source", "text", "message"),
    [
        (YamlSource, "a: 1\na: 2\n", r"^c:2: key 'a' stands here and in line 1$"),
        (YamlSource, "- 1\n- 2\n", r"^c: expected a mapping at the top, got \[1, 2\]$"),
        (YamlSource, "just words", r"^c: expected a mapping at the top, got 'just words'$"),
        (JsonSource, '{"a": 1,\n "a": 2}', r"^c: key 'a' stands twice in one object$"),
        (JsonSource, '{"b": {"a": 1, "a": 2}}', r"^c: key 'a' stands twice in one object$"),
        (JsonSource, '{"a": 1,\n}', r"^c:2: not valid JSON: "),
        (JsonSource, "", r"^c:1: not valid JSON: "),
        (JsonSource, "[1]", r"^c: expected an object at the top, got \[1\]$"),
        (JsonSource, "[" * 100_000, r"^c: not valid JSON: it is nested too deeply$"),
        (TomlSource, "a = 1\na = 2\n", r"^c: not valid TOML: .*line 2"),
        (JsonSource, '{"a": ' + "9" * 5000 + "}", r"^c: not valid JSON: Exceeds the limit"),
        (TomlSource, "a = " + "9" * 5000, r"^c: not valid TOML: Exceeds the limit"),
        (TomlSource, "a = " + "[" * 5000 + "]" * 5000, r"^c: not valid TOML: it is nested too deeply$"),
        (TomlSource, "a = \n", r"^c: not valid TOML: .*line 1"),
    ],
)
def test_a_malformed_file_is_an_error_that_says_where(source, text, message):
    Path("c").write_text(text)
    with pytest.raises(ConfigError, match=message):
        source().config_read("c")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_yaml_file_is_an_empty_mapping(text):
    Path("c.yaml").write_text(text)
    assert YamlSource().config_read("c.yaml") == {}


def test_yaml_knows_its_lines():
    Path("c.yaml").write_text("a: 1\nb:\n  c: 2\n")
    assert lines_of(YamlSource().config_read("c.yaml")) == {"a": 1, "b": 2, "b.c": 3}


def test_dates_and_times_of_toml_are_strings_as_in_yaml():
    Path("c.toml").write_text("day = 2026-01-01\nat = [07:30:00]\n[x]\nmoment = 2026-01-01T07:30:00Z\n")
    values = TomlSource().config_read("c.toml")
    assert values == {"day": "2026-01-01", "at": ["07:30:00"], "x": {"moment": "2026-01-01T07:30:00+00:00"}}


@pytest.fixture
def variables(monkeypatch):
    def set_variables(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_variables_with_the_prefix_are_a_mapping(variables):
    variables(APP_MODEL__WIDTH="3", APP_MODEL__NAME="no", APP_RATE="1e-3", APP_LAYERS="[1, 2]", APP_EMPTY="")
    variables(APPLE="x", OTHER_RATE="2", APP_="nothing")
    values = EnvSource().config_read("APP_")
    assert values == {"model": {"width": 3, "name": "no"}, "rate": 0.001, "layers": [1, 2], "empty": None}
    assert lines_of(values)["model.width"] == "env:APP_MODEL__WIDTH"


def test_a_variable_may_hold_a_section_that_another_one_adds_to(variables):
    variables(APP_MODEL="{width: 1, depth: 2}", APP_MODEL__NAME="x")
    assert EnvSource().config_read("APP_") == {"model": {"width": 1, "depth": 2, "name": "x"}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"APP_A": "1", "APP_A__B": "2"}, "APP_A__B is inside of a value that another variable sets"),
        ({"APP_A__B": "1", "APP_a__b": "2"}, "APP_a__b sets 'a.b', as another variable does"),
        ({"APP_A____B": "1"}, "APP_A____B: expected a name on each side of '__'"),
        ({"APP___A": "1"}, "APP___A: expected a name on each side of '__'"),
        ({"APP_A": "[1"}, r"^APP_A:1: not valid YAML"),
    ],
)
def test_variables_that_make_no_mapping_are_an_error_that_names_one(variables, values, message):
    variables(**values)
    with pytest.raises(ConfigError, match=message):
        EnvSource().config_read("APP_")


def test_a_prefix_is_needed():
    with pytest.raises(ConfigError, match=r"expected a prefix of environment variables, such as env:APP_, got 'env:'"):
        EnvSource().config_read("")


# Named by a script


def test_a_script_mixes_all_sources_and_every_value_says_its_origin(variables):
    variables(APP_D="4")
    Path("config").mkdir()
    for name, text in {"a.YML": "a: 1\nz: 0", "b.json": '{"b": 2}', "c.toml": "c = 3"}.items():
        (Path("config") / name).write_text(text)
    files = [Path("config/a.YML"), "config/b.json", "config/c.toml", "env:APP_"]
    run = Run(files, 1, config={"s": 0}, command_line=["train.py", "with", "z=9"])
    assert run.config == {"s": 0, "a": 1, "z": 9, "b": 2, "c": 3, "d": 4}
    assert run.config.origins() == {
        "s": "script",
        "a": "config/a.YML:1",
        "b": "config/b.json",
        "c": "config/c.toml",
        "d": "env:APP_D",
        "z": "command line",
    }
    assert run["a"] == 1 and "b" in run and run.get("q", 5) == 5
    with pytest.raises(MissingKeyError, match="no configuration source has 'q'"):
        run["q"]


def test_one_file_needs_no_list():
    Path("c.yaml").write_text("a: 1")
    assert Run("c.yaml", 1, command_line=[])["a"] == 1
    assert Run(Path("c.yaml"), 1, command_line=[])["a"] == 1


def test_an_error_of_a_built_in_source_comes_as_it_is():
    Path("c.yaml").write_text("a: 1\na: 2")
    with pytest.raises(ConfigError, match=r"^c\.yaml:2: key 'a' stands here"):
        Run("c.yaml", 1, command_line=[])


def test_variables_find_keys_in_upper_and_lower_case(variables):
    variables(APP_MODEL__NUMLAYERS="3", APP_LR="0.1", APP_MODEL__NEW="5", APP_new__Key="6", APP_NEW__KEY2="7")
    run = Run("env:APP_", 1, config={"Model": {"numLayers": 1}, "LR": 1}, command_line=[])
    new = {"Key": 6, "key2": 7}
    assert run.config == {"Model": {"numLayers": 3, "new": 5}, "LR": 0.1, "new": new}
    assert run.config.origin("Model.numLayers") == "env:APP_MODEL__NUMLAYERS"
    assert run.config.origin("LR") == "env:APP_LR" and run.config.origin("new.Key") == "env:APP_new__Key"


def test_a_variable_that_may_mean_two_keys_is_an_error_unless_it_is_one_of_them(variables):
    variables(APP_LR="0.1")
    assert Run("env:APP_", 1, config={"LR": 1, "lr": 2}, command_line=[]).config == {"LR": 1, "lr": 0.1}
    with pytest.raises(ConfigError, match="'lr' may be any of 'LR', 'Lr'; write it as one of them"):
        Run("env:APP_", 1, config={"LR": 1, "Lr": 2}, command_line=[])


def test_a_file_may_be_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    Path("a.yaml").write_text("a: 1\nb: 2")
    run = Run("~/a.yaml", 1, command_line=["train.py", "with", "a=2", "~/a.yaml"])
    assert run["a"] == 1 and run.config.origin("b") == f"{Path.cwd()}/a.yaml:2"


@pytest.mark.parametrize("source", ["c.yamll", "envv:APP_"])
def test_a_suffix_or_scheme_that_nothing_reads_is_an_error_that_names_the_nearest(source):
    Path("c.yamll").write_text("a: 1")
    with pytest.raises(ExtensionError, match=r"(yamll|envv)'.*Did you mean '(yaml|env)'"):
        Run(source, 1, command_line=[])


def test_sources_leave_the_environment_as_it_is(variables):
    variables(APP_A="1")
    before = dict(os.environ)
    EnvSource().config_read("APP_")
    assert dict(os.environ) == before
