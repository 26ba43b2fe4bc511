"""Where a value came from, and what has been read."""

from pathlib import Path

import pytest

from blowtorch import MissingKeyError


def test_every_value_knows_its_origin(load):
    config = load(
        "# first\nmodel:\n  width: 1\n  depth: 2\n",
        "model:\n  depth: 3\n  layers:\n    - width: 1\n      name: x\n    - width: 2\nbetas:\n  - 1\n",
        base={"seed": 0, "model": {"name": "m"}},
        overrides=["model.width=4"],
    )
    assert config.origins() == {
        "seed": "script",
        "model.name": "script",
        "model.depth": "b.yaml:2",
        "model.layers.0.width": "b.yaml:4",
        "model.layers.0.name": "b.yaml:5",
        "model.layers.1.width": "b.yaml:6",
        "betas": "b.yaml:7",
        "model.width": "command line",
    }
    for key, origin in config.origins().items():
        assert config.origin(key) == origin
    assert config["model"].origin("width") == "command line"
    assert config["model.layers.0"].origins() == {"width": "b.yaml:4", "name": "b.yaml:5"}
    assert config.origin("model.layers") == "b.yaml:4" and config.origin("betas.0") == "b.yaml:7"


def test_the_origin_of_a_missing_key_is_an_error(load):
    with pytest.raises(MissingKeyError, match="Did you mean 'model.width'"):
        load("model: {width: 1}").origin("model.widht")


def test_merged_yaml_keys_have_the_line_where_they_stand(load):
    config = load("base: &base\n  width: 1\nmodel:\n  <<: *base\n  depth: 2\n")
    assert config.origin("model.width") == "a.yaml:2" and config.origin("model.depth") == "a.yaml:5"


READERS = {
    "directly": lambda config: config["model.width"],
    "through its section": lambda config: config["model"]["width"],
    "by get": lambda config: config["model"].get("width"),
    "unpacked": lambda config: dict(**config["model"]),
    "by its values": lambda config: list(config["model"].values()),
    "as a plain section": lambda config: config["model"].to_dict(),
    "as a plain whole": lambda config: config.to_dict(),
}


@pytest.mark.parametrize("how", READERS)
def test_an_override_counts_as_read(load, how):
    config = load("model: {width: 1, depth: 2}\nseed: 0", overrides=["model.width=4"])
    assert config.unread_overrides() == ["model.width"]
    READERS[how](config)
    assert config.unread_overrides() == []


@pytest.mark.parametrize(
    "look",
    [
        lambda config: config["model.depth"],
        lambda config: config["model"],
        lambda config: "model.width" in config,
        lambda config: list(config["model"]),
        lambda config: config.get("model.widht"),
        lambda config: config.snapshot(),
        lambda config: config.origins(),
        lambda config: repr(config),
    ],
)
def test_looking_elsewhere_reads_no_override(load, look):
    config = load("model: {width: 1, depth: 2}", overrides=["model.width=4"])
    look(config)
    assert config.unread_overrides() == ["model.width"]


def test_overrides_of_lists_sections_and_elements_are_read_one_by_one(load):
    config = load(
        "layers: [{width: 1}, {width: 2}]\nbetas: [1, 2]\nempty: {}\nmodel: {a: 0}",
        overrides=["layers.0.width=3", "layers.1.width=4", "betas=[3, 4]", "model={a: 1}", "empty={}"],
    )
    assert config.unread_overrides() == ["layers.0.width", "layers.1.width", "betas", "model.a", "empty"]
    assert config["layers.1.width"] == 4
    assert config["betas.0"] == 3
    assert config["empty"] == {}
    assert config.unread_overrides() == ["layers.0.width", "model.a"]
    assert config["layers"][0] == {"width": 3}
    assert config["model"]["a"] == 1
    assert config.unread_overrides() == []


def test_values_of_files_are_never_unread_overrides(load):
    Path("extra.yaml").write_text("b: 1")
    assert load("a: 1", overrides=["extra.yaml"]).unread_overrides() == []
