"""A configuration is given as mappings and objects of many kinds."""

import dataclasses
import enum
from argparse import Namespace
from collections import ChainMap, OrderedDict, UserDict, UserList, deque
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from blowtorch import BlowtorchWarning, ConfigError, Run, hookimpl


@dataclasses.dataclass
class Layer:
    units: int
    rates: tuple[float, ...] = (0.1, 0.2)


@dataclasses.dataclass(frozen=True)
class Settings:
    layers: list[Layer]
    name: str = "net"


class Table:
    """It has keys and items, but is no `Mapping`."""

    def keys(self):
        return ["width"]

    def __getitem__(self, key):
        return {"width": 3}[key]


class Pair(NamedTuple):
    first: int
    second: int


def read(config, *overrides):
    return Run(random_seed=0, config=config, command_line=["train.py", "with", *overrides]).config


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (MappingProxyType({"a": MappingProxyType({"b": 1})}), {"a": {"b": 1}}),
        (OrderedDict(a=ChainMap({"b": 1}, {"c": 2})), {"a": {"b": 1, "c": 2}}),
        (UserDict(a=UserList([1, deque([2])])), {"a": [1, [2]]}),
        (Namespace(lr=0.1, layers=(1, 2), inner=Namespace(a=1)), {"lr": 0.1, "layers": [1, 2], "inner": {"a": 1}}),
        (SimpleNamespace(lr=0.1, inner=SimpleNamespace(a=1)), {"lr": 0.1, "inner": {"a": 1}}),
        (Settings([Layer(3)]), {"layers": [{"units": 3, "rates": [0.1, 0.2]}], "name": "net"}),
        ({"model": Layer(3, ())}, {"model": {"units": 3, "rates": []}}),
        (Table(), {"width": 3}),
        ({"a": Pair(1, 2), "b": b"x", "c": "text"}, {"a": [1, 2], "b": b"x", "c": "text"}),
    ],
)
def test_whatever_holds_values_is_a_section_or_a_list(given, expected):
    config = read(given)
    assert config.to_dict() == expected
    assert set(config.origins().values()) == {"script"}


def test_what_is_given_as_an_object_can_be_overridden():
    config = read(Settings([Layer(3)]), "layers.0.units=5", "name=wide")
    assert config["layers.0.units"] == 5 and config.origin("layers.0.units") == "command line"
    assert config.origin("layers.0.rates") == "script"


def test_objects_of_attrs_and_pydantic_are_sections():
    attrs, pydantic = pytest.importorskip("attrs"), pytest.importorskip("pydantic")
    inner = attrs.make_class("Inner", ["width"])
    outer = pydantic.create_model("Outer", rate=(float, 0.1), inner=(dict, {"a": 1}))
    assert read({"model": inner(3)}).to_dict() == {"model": {"width": 3}}
    assert read(inner(outer())).to_dict() == {"width": {"rate": 0.1, "inner": {"a": 1}}}
    assert read(outer(rate=2)).to_dict() == {"rate": 2.0, "inner": {"a": 1}}


def test_objects_that_hold_no_values_stay_as_they_are():
    kind = enum.Enum("kind", "first second")
    values = {"a": kind.first, "b": torch.float32, "c": len, "d": Layer, "e": range(3)}
    config = read(values)
    assert all(config[key] is value for key, value in values.items())


def test_extensions_that_are_dataclasses_stay_objects_among_the_options():
    @dataclasses.dataclass
    class Ear:
        heard: int = 0

        @hookimpl
        def run_start(self):
            self.heard += 1

    ear = Ear()
    run = Run(random_seed=0, config={"run": {"callbacks": [ear], "progress": False}}, command_line=[])
    run.train_step(lambda batch, model: model(batch).square().mean())
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    run(torch.nn.Linear(2, 1), [torch.ones(2, 2)])
    assert ear.heard == 1


def test_values_of_omegaconf_are_resolved():
    omegaconf = pytest.importorskip("omegaconf")
    given = omegaconf.OmegaConf.create({"a": {"b": [1, "${c}"]}, "c": 2, "d": "${a.b}", "e": None, "f": "x${c}"})
    config = read(given, "f=y")
    assert config.to_dict() == {"a": {"b": [1, 2]}, "c": 2, "d": [1, 2], "e": None, "f": "y"}
    assert type(config["a.b"]) is list and config.origin("a.b") == "script"


def test_values_of_omegaconf_that_are_missing_are_named_unless_somebody_sets_them():
    omegaconf = pytest.importorskip("omegaconf")
    given = omegaconf.OmegaConf.create({"data": {"path": "???"}, "lr": "???", "width": 3})
    with pytest.raises(ConfigError, match=r"'data.path', 'lr' must be set, .* such as `with data.path=\.\.\.`"):
        read(given)
    with pytest.raises(ConfigError, match="^Run.*: 'lr' must be set"):
        read(given, "data.path=digits")
    assert read(given, "data={path: digits}", "lr=null") == {"data": {"path": "digits"}, "lr": None, "width": 3}


def test_values_that_cannot_be_read_are_all_named():
    omegaconf = pytest.importorskip("omegaconf")
    given = omegaconf.OmegaConf.create({"a": "${nothing}", "b": {"c": ["${b.d}"]}})
    with pytest.raises(ConfigError, match=r"Run\(config=\.\.\.\): .*'a' \(Interpolation.*'b\.c\.0' \(Interpolation"):
        read(given)


def test_arrays_and_tensors_can_be_read_overridden_and_are_written_down_as_numbers():
    mean, scale = np.array([0.5, 0.25]), torch.tensor([[1, 2]])
    config = read({"mean": mean, "inner": {"scale": scale}})
    assert config["mean"] is mean and config["inner"]["scale"] is scale
    assert config.get("mean") is mean and "mean" in config and config.origin("mean") == "script"
    assert read({"mean": mean, "lr": 1}, "mean=[1, 2]")["mean"] == [1, 2]
    run = Run(random_seed=0, config={"mean": mean, "scale": scale, "long": np.zeros(2000)}, command_line=[])
    run.train_step(lambda batch, model: model(batch).square().mean())
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    folder = run(torch.nn.Linear(2, 1), [torch.ones(2, 2)], progress=False).folder
    lines = (folder / "config.yaml").read_text().splitlines()
    assert lines == ["mean:", "- 0.5", "- 0.25", "scale:", "- - 1", "  - 2", "long: '[0. 0. 0. ... 0. 0. 0.]'"]


def test_a_class_is_no_configuration():
    with pytest.raises(ConfigError, match="expected a mapping at the top, got <class"):
        read(Settings)


@pytest.mark.parametrize("base", [{"a.b": 1, "a": {"b": 2}}, {"a.b": 1, "a": {"b": {"c": 2}}}, {"a.0": 1, "a": [2]}])
def test_one_path_to_two_values_is_an_error(base):
    with pytest.raises(
        ConfigError, match=r"^'a\.\w' is set twice \(script and script|^'a\.\w' is set twice \(script\)"
    ):
        read(base)


def test_a_key_with_a_dot_beside_a_section_is_an_error_that_says_who_set_them(load):
    with pytest.raises(ConfigError, match=r"'optimizer\.lr' is set twice \(script and a\.yaml:1\), by a key that"):
        load("optimizer: {lr: 0.5}", base={"optimizer.lr": 0.1})
    config = load("optimizer: {momentum: 0.5}", base={"optimizer.lr": 0.1}, overrides=["optimizer.lr=7"])
    assert config == {"optimizer.lr": 7, "optimizer": {"momentum": 0.5}}
    assert config.origin("optimizer.lr") == "command line" and config.origin("optimizer.momentum") == "a.yaml:1"


def test_a_section_of_comments_alone_can_be_overridden(load):
    config = load("run:\n  # max_epochs: 5\nmodel: {a:}\nlayers: [null]", overrides=["run.max_epochs=2"])
    assert config["run"] == {"max_epochs": 2} and config.origin("run") == "command line"
    with pytest.warns(BlowtorchWarning, match="no source has"):
        config = load("model: {a:}\nlayers: [null]", overrides=["model.a.b.c=2", "layers.0.units=3"])
    assert config == {"model": {"a": {"b": {"c": 2}}}, "layers": [{"units": 3}]}


def test_many_values_are_merged_and_every_one_has_its_origin(load):
    """It takes minutes where the work for a value grows with the number of the others."""
    names = [f"key{number}" for number in range(20_000)]
    base = {"a": dict.fromkeys(names, 1), "b": [{"c": 1} for _ in range(5_000)]}
    text = "a:\n" + "".join(f"  {name}: 2\n" for name in names)
    config = load(text, base=base, overrides=[f"b.{index}.c=3" for index in range(500)])
    assert set(config["a"].values()) == {2} and config.origin("a.key19999") == "a.yaml:20001"
    assert [config.origin(f"b.{index}.c") for index in (499, 500)] == ["command line", "script"]
