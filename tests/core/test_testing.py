"""The contract suites: ours pass them, and each check fails on what breaks it."""

import pytest

from blowtorch.builtin.console import Console
from blowtorch.builtin.early_stopping import EarlyStopping
from blowtorch.builtin.env_source import EnvSource
from blowtorch.builtin.json_source import JsonSource
from blowtorch.builtin.local import LocalBackend
from blowtorch.builtin.progress_bar import ProgressBar
from blowtorch.builtin.schedulers import Cosine, Linear, OneCycle, Plateau, Warmup
from blowtorch.builtin.toml_source import TomlSource
from blowtorch.builtin.yaml_source import YamlSource
from blowtorch.testing import (
    CallbackContract,
    CheckpointBackendContract,
    ConfigSourceContract,
    SchedulerContract,
)

VALUES = {"model": {"width": 3, "rate": 0.001, "layers": [1, {"a": "x"}]}, "name": "größe", "on": True}


class TestLocalBackend(CheckpointBackendContract):
    def make_checkpoint_backend(self, tmp_path):
        return LocalBackend()


class TestCosine(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Cosine()


class TestCosineWithWarmup(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Cosine(warmup="5 steps", floor=0.1)


class TestLinear(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Linear(warmup="1 epoch")


class TestWarmup(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Warmup("1 epoch")


class TestOneCycle(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return OneCycle()


class TestPlateau(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Plateau()


class FileSourceContract(ConfigSourceContract):
    def make_source(self, tmp_path):
        path = tmp_path / "config"
        path.write_text(self.text)
        return str(path), VALUES


class TestYamlSource(FileSourceContract):
    text = "model:\n  width: 3\n  rate: 1e-3\n  layers: [1, {a: x}]\nname: größe\non: true\n"

    def make_config_source(self, tmp_path):
        return YamlSource()


class TestJsonSource(FileSourceContract):
    text = '{"model": {"width": 3, "rate": 1e-3, "layers": [1, {"a": "x"}]}, "name": "größe", "on": true}'

    def make_config_source(self, tmp_path):
        return JsonSource()


class TestTomlSource(FileSourceContract):
    text = 'name = "größe"\non = true\n[model]\nwidth = 3\nrate = 1e-3\nlayers = [1, {a = "x"}]\n'

    def make_config_source(self, tmp_path):
        return TomlSource()


class TestEnvSource(ConfigSourceContract):
    @pytest.fixture(autouse=True)
    def variables(self, monkeypatch):
        monkeypatch.setenv("CONTRACT_MODEL__WIDTH", "3")
        monkeypatch.setenv("CONTRACT_RATES", "[1e-3, {a: null}]")

    def make_config_source(self, tmp_path):
        return EnvSource()

    def make_source(self, tmp_path):
        return "CONTRACT_", {"model": {"width": 3}, "rates": [0.001, {"a": None}]}

    def make_missing_source(self, tmp_path):
        """A prefix that no variable has is a mapping without values."""


class TestEarlyStopping(CallbackContract):
    def make_callback(self, tmp_path):
        return EarlyStopping(patience=2)


class TestImpatientEarlyStopping(CallbackContract):
    """One that ends the run after its first epoch, since nothing can be better by so much."""

    def make_callback(self, tmp_path):
        return EarlyStopping(patience=1, min_change=1000.0)


class TestConsole(CallbackContract):
    def make_callback(self, tmp_path):
        return Console()


class TestProgressBar(CallbackContract):
    def make_callback(self, tmp_path):
        return ProgressBar()
