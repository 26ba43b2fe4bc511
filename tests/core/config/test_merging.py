"""Several sources are one configuration."""

import random
from pathlib import Path

import pytest
import yaml

from blowtorch import ConfigError
from blowtorch.config.config import load_config
from tests.core.config.reading import read


def test_files_merge_deeply_and_later_ones_win(load):
    config = load(
        "model:\n  width: 1\n  depth: 2\nseed: 0", "model:\n  width: 3\nextra: [1]", base={"model": {"name": "m"}}
    )
    assert config == {"model": {"name": "m", "width": 3, "depth": 2}, "seed": 0, "extra": [1]}
    assert list(config["model"]) == ["name", "width", "depth"]


def test_a_list_is_replaced_whole_by_a_later_file(load):
    config = load("layers: [{width: 1}, {width: 2}]", "layers: [{depth: 3}]")
    assert config["layers"] == [{"depth": 3}]
    assert config.origins() == {"layers.0.depth": "b.yaml:1"}


def test_a_section_and_a_value_replace_each_other(load):
    config = load("a: {b: 1}\nc: 2", "a: 3\nc: {d: 4}")
    assert config == {"a": 3, "c": {"d": 4}}
    assert config.origins() == {"a": "b.yaml:1", "c.d": "b.yaml:2"}


def test_an_empty_mapping_takes_nothing_away_and_is_filled_by_later_sources(load):
    config = load("a: {b: 1}\nc: {}", "a: {}\nc: {d: 2}")
    assert config == {"a": {"b": 1}, "c": {"d": 2}}
    assert config.origins() == {"a.b": "a.yaml:1", "c.d": "b.yaml:2"}


def test_the_mapping_of_the_script_is_not_changed(load):
    base = {"model": {"width": 1, "layers": [1, 2]}}
    config = load(base=base, overrides=["model.width=2", "model.layers.0=5"])
    config["model.layers"].append(3)
    assert base == {"model": {"width": 1, "layers": [1, 2]}}
    assert config["model.layers"] == [5, 2]


def test_merging_agrees_with_merging_plain_dicts(load):
    """Random layers, merged one by one, against the rule written down in three lines; every leaf has its winner."""

    def layer(generator, depth=0):
        keys = generator.sample("abcd", generator.randint(1, 3))
        return {
            key: layer(generator, depth + 1) if depth < 3 and generator.random() < 0.6 else generator.randint(0, 9)
            for key in keys
        }

    def merged(first, second):
        both = (
            {key: merged(first[key], second[key]) for key in first if key in second} if are_dicts(first, second) else {}
        )
        return {**first, **second, **both} if are_dicts(first, second) else second

    def are_dicts(*values):
        return all(isinstance(value, dict) for value in values)

    for seed in range(60):
        generator = random.Random(seed)
        layers = [layer(generator) for _ in range(4)]
        config = load(*[yaml.safe_dump(each) for each in layers])
        expected = {}
        for each in layers:
            expected = merged(expected, each)
        assert config == expected
        for path, origin in config.origins().items():
            winner = layers["abcd".index(origin[0])]
            for name in path.split("."):
                winner = winner[name]
            assert winner == config[path]


def test_what_is_no_mapping_at_the_top_is_an_error(load):
    with pytest.raises(ConfigError, match=r"a\.yaml: expected a mapping at the top, got \[1, 2\]"):
        load("[1, 2]")
    with pytest.raises(ConfigError, match=r"Run\(config=\.\.\.\): expected a mapping at the top, got 'a\.yaml'"):
        load(base="a.yaml")
    with pytest.raises(ConfigError, match=r"Run\(config=\.\.\.\): expected a mapping at the top, got \[\]"):
        load(base=[])


def test_a_missing_file_is_an_error_that_names_the_nearest_one():
    Path("config").mkdir()
    Path("config/default.yaml").write_text("a: 1")
    with pytest.raises(
        ConfigError,
        match=r"got 'config/defualt\.yaml', and .*config has no such file\. Did you mean 'config/default\.yaml'\?",
    ):
        load_config(None, ["config/defualt.yaml"], [], read)
    with pytest.raises(
        ConfigError, match=r"expected a file or an override \(key=value\), got 'model\.width', and .+ has no such"
    ):
        load_config(None, [], ["with", "model.width"], read)
    with pytest.raises(ConfigError, match=r"got 'nowhere/a\.yaml', and .*nowhere has no such file\.$"):
        load_config(None, ["nowhere/a.yaml"], [], read)


def test_only_files_are_named_as_the_nearest():
    Path("default.yml").mkdir()
    with pytest.raises(ConfigError, match=r"got 'default\.yaml', and .* has no such file\.$"):
        load_config(None, ["default.yaml"], [], read)


@pytest.mark.parametrize("source", [f"{'x' * 300}/a.yaml", "nul\0l/a.yaml", "file/a.yaml"])
def test_a_file_in_a_folder_that_cannot_be_is_missing_too(source):
    Path("file").touch()
    with pytest.raises(ConfigError, match="expected a file or an override"):
        load_config(None, [source], [], read)


def test_a_configuration_is_at_most_a_hundred_levels_deep(load):
    def nested(depth):
        return 1 if depth == 0 else {"a": nested(depth - 1)}

    assert load(base=nested(100)).to_dict() == nested(100)
    endless = {}
    endless["a"] = endless
    for base in (nested(101), endless):
        with pytest.raises(ConfigError, match=r"^Run\(config=\.\.\.\): nested more than 100 levels deep, or contains"):
            load(base=base)
    with pytest.raises(ConfigError, match=r"^command line, a\.b: nested more than 100 levels deep"):
        load(overrides=["a.b=" + "[" * 100 + "]" * 100])
    with pytest.raises(ConfigError, match=r"^command line, a\.a\..*: nested more than 100 levels deep"):
        load(overrides=[".".join("a" * 5000) + "=1"])
