"""A configuration is read by dotted keys, sections and indices."""

import copy
import pickle

import pytest
import yaml

from blowtorch import MissingKeyError


def test_values_are_found_by_dotted_keys_sections_and_indices(load):
    config = load("model:\n  layers:\n    - width: 3\n    - [4, 5]\n")
    assert (
        config["model.layers.0.width"]
        == config["model"]["layers.0.width"]
        == config["model"]["layers"][0]["width"]
        == 3
    )
    assert config["model.layers.1.1"] == config["model"].get("layers.1")[1] == 5
    assert "model.layers.0" in config and "layers.1.0" in config["model"]
    assert config["model.layers.0"] == {"width": 3}


def test_what_is_not_there_is_not_contained_and_get_gives_the_default(load):
    config = load("a: {b: 1, c: null}\nd: [1]")
    for key in ("x", "a.x", "a.b.x", "d.1", "d.-1", "d.x", "", "a.", ".a", "a..b", "d.²"):
        assert key not in config and config.get(key, 7) == 7
    assert config.get("x") is None
    assert "a.c" in config and config.get("a.c", 7) is None


def test_keys_that_contain_dots_are_found_as_they_are_written(load):
    config = load("'a.b': 1\na: {'c.d': {e: 3}}", overrides=["a.c.d.e=4", "a.b=5"])
    assert config["a.b"] == 5 and "b" not in config["a"]
    assert config["a.c.d.e"] == config["a"]["c.d"]["e"] == 4
    assert dict(config) == {"a.b": 5, "a": {"c.d": {"e": 4}}}
    assert config.origin("a.b") == config.origin("a.c.d.e") == "command line"


def test_a_missing_key_names_its_path_the_nearest_one_and_those_that_are_there(load):
    config = load("model: {num_layers: 1, width: 2}\nlayers: [{width: 1}]\nseed: 1")
    message = r"^no configuration source has 'model\.num_layer'\. Did you mean 'model\.num_layers'\?"
    with pytest.raises(MissingKeyError, match=message + r" In 'model' there are num_layers, width\.$"):
        config["model.num_layer"]
    with pytest.raises(MissingKeyError, match=r"has 'model\.widht'\. Did you mean 'width'\?"):
        config["model"]["widht"]
    with pytest.raises(MissingKeyError, match=r"has 'sed'\. Did you mean 'seed'\? There are model, layers, seed\.$"):
        config["sed"]
    with pytest.raises(MissingKeyError, match=r"has 'modle\.width'\. Did you mean 'model\.width'\?"):
        config["modle.width"]
    with pytest.raises(MissingKeyError, match=r"'layers\.0\.widht'\. Did you mean 'layers\.0\.width'\?"):
        config["layers.0.widht"]
    with pytest.raises(MissingKeyError, match=r"'layers\.3\.zzzzzzzzzz'\. 'layers' is a list of 1\.$"):
        config["layers.3.zzzzzzzzzz"]
    with pytest.raises(MissingKeyError, match=r"'seed\.zzzzzzzzzz'\. 'seed' is 1, not a section\.$"):
        config["seed.zzzzzzzzzz"]


def test_a_missing_key_is_a_key_error_too(load):
    with pytest.raises(KeyError, match="no configuration source has 'b'"):
        load("a: 1")["b"]


def test_a_key_that_is_no_string_is_a_type_error(load):
    with pytest.raises(TypeError, match="keys of a configuration are strings, got 0"):
        load("a: 1")[0]


def test_a_section_is_a_mapping(load):
    config = load("model: {a: 1, b: {c: 2}}\nempty: {}")
    assert {**config["model"]} == {"a": 1, "b": {"c": 2}}
    assert dict(config["model"].items())["b"] == {"c": 2}
    assert list(config) == ["model", "empty"] and len(config) == 2
    assert config["empty"] == {} and config["model"] != {"a": 1}
    assert repr(config["model"]) == "Config({'a': 1, 'b': {'c': 2}})"


def test_a_configuration_cannot_be_assigned_to(load):
    with pytest.raises(TypeError, match="does not support item assignment"):
        load("a: 1")["a"] = 2


def test_a_plain_copy_can_be_written_as_yaml_and_shares_nothing(load):
    config = load("a: {b: [1, {c: 2}]}", base={"t": (1, 2), "n": {3: 4}})
    plain = config.to_dict()
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain == {"t": [1, 2], "n": {"3": 4}, "a": {"b": [1, {"c": 2}]}}
    plain["a"]["b"][1]["c"] = 3
    assert config["a.b.1.c"] == 2


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_copies_and_pickles_are_the_same_configuration(load, duplicate):
    config = load("model: {a: [1]}", overrides=["model.a.0=2"])
    assert duplicate(config) == config and duplicate(config).origins() == config.origins()
    assert duplicate(config["model"])["a"] == [2]
