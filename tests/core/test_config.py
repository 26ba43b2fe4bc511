import copy
import math
import pickle
import random
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pytest
import yaml

from blowtorch import BlowtorchWarning, ConfigError, MissingKeyError, parse_yaml
from blowtorch.config.config import load_config, split_source


def read(source):
    """Files are YAML here, whatever their suffix; a scheme gives a mapping of its own."""
    if source.startswith("constant:"):
        return {"constant": source.removeprefix("constant:")}
    return parse_yaml(Path(source).read_text(), source)


@pytest.fixture
def load():
    """Load a configuration from texts of files (a.yaml, b.yaml, ...) and what follows `with`."""

    def make(*texts, base=None, overrides=()):
        names = [f"{letter}.yaml" for letter in "abcdef"[: len(texts)]]
        for name, text in zip(names, texts, strict=True):
            Path(name).write_text(text)
        return load_config(base, names, ["train.py", "with", *overrides], read)

    return make


# YAML


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


# Merging


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
    with pytest.raises(ConfigError, match=r"got 'config/defualt\.yaml'\. Did you mean 'config/default\.yaml'\?"):
        load_config(None, ["config/defualt.yaml"], [], read)
    with pytest.raises(ConfigError, match=r"expected a file or an override \(key=value\), got 'model\.width'\.$"):
        load_config(None, [], ["with", "model.width"], read)
    with pytest.raises(ConfigError, match=r"got 'nowhere/a\.yaml'\.$"):
        load_config(None, ["nowhere/a.yaml"], [], read)


def test_only_files_are_named_as_the_nearest():
    Path("default.yml").mkdir()
    with pytest.raises(ConfigError, match=r"got 'default\.yaml'\.$"):
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


# The command line


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


# Looking up


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
    config = load("'a.b': 1\na: {b: 2, 'c.d': {e: 3}}", overrides=["a.c.d.e=4", "a.b=5"])
    assert config["a.b"] == 5 and config["a"]["b"] == 2
    assert config["a.c.d.e"] == config["a"]["c.d"]["e"] == 4
    assert dict(config) == {"a.b": 5, "a": {"b": 2, "c.d": {"e": 4}}}


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


# Origins and what has been read


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


# Sources


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("config/a.yaml", ("yaml", "config/a.yaml")),
        ("A.YAML", ("yaml", "A.YAML")),
        ("a.b.Toml", ("toml", "a.b.Toml")),
        ("env:APP_", ("env", "APP_")),
        ("env:", ("env", "")),
        ("s3://bucket/a.yaml", ("s3", "//bucket/a.yaml")),
        (r"C:\config\a.yaml", ("yaml", r"C:\config\a.yaml")),
        ("c:/config/a.json", ("json", "c:/config/a.json")),
        ("runs/12:30/a.yaml", ("yaml", "runs/12:30/a.yaml")),
    ],
)
def test_a_source_is_read_by_its_suffix_or_scheme(source, expected):
    assert split_source(source) == expected


def test_a_file_whose_name_looks_like_a_scheme_is_a_file():
    Path("night:late.yaml").write_text("a: 1")
    assert split_source("night:late.yaml") == ("yaml", "night:late.yaml")
    assert split_source("night:early.yaml") == ("night", "early.yaml")


@pytest.mark.parametrize("source", ["default", "config/default", ".yaml", "a.", "", "--verbose", "x.y/default"])
def test_a_source_with_neither_suffix_nor_scheme_is_an_error(source):
    with pytest.raises(ConfigError, match=r"expected a file \(config\.yaml\), a scheme .* or an override .*, got '"):
        split_source(source)


def test_origins_of_a_source_that_names_them_itself_are_kept():
    class Values(dict):
        lines = MappingProxyType({"a": "vault:a", "b": 3})

    config = load_config(None, [], ["with", "vault:x"], lambda source: Values(a={"c": 1}, b=2, d=3))
    assert config.origins() == {"a.c": "vault:a", "b": "vault:x:3", "d": "vault:x"}


def test_a_warning_about_an_override_points_at_the_script(load):
    with pytest.warns(BlowtorchWarning, match="no source has 'new'") as caught:
        load("a: 1", overrides=["new=1"])
    assert caught[0].filename == __file__


def test_importing_the_configuration_imports_neither_torch_nor_numpy():
    code = "import sys, blowtorch.config; print(sorted({'torch', 'numpy', 'pluggy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
