"""What follows `with` on the command line."""

from pathlib import Path

import pytest

from blowtorch import BlowtorchWarning, ConfigError
from blowtorch.config.config import load_config
from tests.core.config.reading import read


def test_overrides_are_yaml_and_beat_the_files(load):
    config = load(
        "model: {width: 1, dropout: true, name: x}\nrate: 0.1\nlayers: [1]",
        overrides=["model.width=4", "model.dropout=false", "model.name=no", "rate=1e-3", "layers=[2, {a: 3}]"],
    )
    assert config == {
        "model": {"width": 4, "dropout": False, "name": "no"},
        "rate": 0.001,
        "layers": [2, {"a": 3}],
    }


def test_an_override_may_be_empty_or_contain_more_equal_signs(load):
    config = load("a: 1\nb: 2", overrides=["a=", "b=x=y"])
    assert config == {"a": None, "b": "x=y"}


def test_sources_and_overrides_apply_in_the_order_of_the_command_line(load):
    Path("extra.yaml").write_text("a: file\nb: file")
    config = load("a: 0\nb: 0\nconstant: 0", overrides=["a=1", "extra.yaml", "b=2", "constant:x"])
    assert config == {"a": "file", "b": 2, "constant": "x"}
    assert config.origins() == {"a": "extra.yaml:1", "b": "command line", "constant": "constant:x"}


def test_only_what_stands_behind_the_first_bare_with_counts():
    assert load_config({"a": 0}, [], ["train.py", "a=1", "--with", "b"], read) == {"a": 0}
    assert load_config({"a": 0}, [], ["train.py", "b=1", "with", "a=2"], read) == {"a": 2}
    assert load_config({"a": 0}, [], ["with"], read) == {"a": 0}
    with pytest.raises(ConfigError, match="got 'with'"):
        load_config({"a": 0}, [], ["with", "a=2", "with", "a=3"], read)


def test_an_override_that_is_a_mapping_merges_as_a_file_does(load):
    config = load("model: {a: 0, b: {c: 1, d: 2}}", overrides=["model={a: 1, b: {c: 3}}"])
    assert config == {"model": {"a": 1, "b": {"c": 3, "d": 2}}}
    assert config.origin("model.b.d") == "a.yaml:1" and config.origin("model.b.c") == "command line"


def test_an_override_sets_an_element_of_a_list_by_its_index(load):
    config = load(
        "layers:\n  - width: 1\n  - width: 2\nbetas: [0.9, 0.99]\ngrid: [[1, 2], [3, 4]]",
        overrides=["layers.1.width=5", "betas.0=0.8", "grid.1.0=9"],
    )
    assert config == {"layers": [{"width": 1}, {"width": 5}], "betas": [0.8, 0.99], "grid": [[1, 2], [9, 4]]}
    assert config.origin("layers.1.width") == "command line" and config.origin("layers.0.width") == "a.yaml:2"
    assert config.origin("betas.0") == "command line" and config.origin("betas.1") == "a.yaml:4"


def test_an_element_that_is_a_section_merges_and_takes_new_keys_with_a_warning(load):
    with pytest.warns(BlowtorchWarning, match="no source has 'layers.0.depth'"):
        config = load("layers: [{width: 1}]", overrides=["layers.0={width: 2}", "layers.0.depth=3"])
    assert config["layers"] == [{"width": 2, "depth": 3}]


@pytest.mark.parametrize("index", ["2", "-1", "x", "01"])
def test_an_index_that_is_not_there_is_an_error_with_the_length_of_the_list(load, index):
    with pytest.raises(ConfigError, match=rf"'layers' is a list of 2, so '{index}' is no element of it"):
        load("layers: [1, 2]", overrides=[f"layers.{index}.width=3"])


def test_an_override_through_a_plain_value_is_an_error(load):
    with pytest.raises(ConfigError, match=r"'a\.b\.c\.d' cannot be set, since 'a\.b' is 3, not a section"):
        load("a: {b: 3}", overrides=["a.b.c.d=1"])
    with pytest.raises(ConfigError, match=r"'a\.0\.b' cannot be set, since 'a\.0' is 'x', not a section"):
        load("a: [x]", overrides=["a.0.b=1"])


@pytest.mark.parametrize("item", ["=1", ".=1", "a..b=1", ".a=1", "a.=1"])
def test_an_override_with_an_empty_key_is_an_error(load, item):
    with pytest.raises(ConfigError, match=r"expected key=value with a dotted key, got '.*=1'"):
        load("a: 1", overrides=[item])


def test_an_override_that_is_no_yaml_is_an_error_that_names_the_key(load):
    with pytest.raises(ConfigError, match=r"command line, model\.width:1: not valid YAML: .*expected ',' or '\]'"):
        load("model: {width: 1}", overrides=["model.width=[1"])


def test_a_new_key_is_accepted_with_a_warning_that_names_the_nearest(load):
    with pytest.warns(BlowtorchWarning, match=r"no source has 'model\.widht', .* Did you mean 'model\.width'\?"):
        config = load("model: {width: 1}", overrides=["model.widht=4"])
    assert config["model"] == {"width": 1, "widht": 4}


def test_options_of_the_run_are_new_without_a_warning(load):
    config = load("a: 1", overrides=["run.max_epochs=1", "run={max_steps: 2}"])
    assert config["run"] == {"max_epochs": 1, "max_steps": 2}
    assert load("a: 1", overrides=["run={max_steps: 2}"])["run"] == {"max_steps": 2}


def test_a_key_that_only_begins_like_the_section_run_is_new(load):
    with pytest.warns(BlowtorchWarning, match="no source has 'running'"):
        load("a: 1", overrides=["running=1"])
