"""The built-in extensions pass the contract suites."""

import pytest
import torch

from blowtorch import hookimpl
from blowtorch.builtin.console import Console
from blowtorch.builtin.curves import Cosine, Linear, OneCycle, Polynomial, Warmup, WarmupStableDecay
from blowtorch.builtin.drops import Exponential, Milestones, Plateau, Step
from blowtorch.builtin.early_stopping import EarlyStopping
from blowtorch.builtin.env_source import EnvSource
from blowtorch.builtin.local import LocalBackend
from blowtorch.builtin.progress_bar import ProgressBar
from blowtorch.builtin.toml_source import TomlSource
from blowtorch.builtin.weight_averages import ExponentialMovingAverage, StochasticWeightAveraging
from blowtorch.builtin.yaml_source import YamlSource
from blowtorch.plugins import Plugins
from blowtorch.schedule.option import read_scheduler_option
from blowtorch.testing import (
    CallbackContract,
    CheckpointBackendContract,
    ConfigSourceContract,
    SchedulerContract,
)
from tests.core.testing.checking import FileSourceContract


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


class TestLinearWithoutWarmup(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Linear(floor=0.1)


class TestPolynomial(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Polynomial(power=0.9)


class TestPolynomialWithWarmup(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Polynomial(power=2, warmup="5 steps", floor=0.1)


class TestWarmupStableDecay(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return WarmupStableDecay(warmup="1 epoch", shape="square_root")


class TestExponential(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Exponential(factor=0.9)


class TestStep(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Step("7 steps")


class TestMilestones(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Milestones(["10 steps", "40 steps"])


class TestSequence(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return SequenceOfTwo()


class SequenceOfTwo:
    """What the option makes of a list, as one extension."""

    plan = read_scheduler_option([{"warmup": {"warmup": "10 steps"}, "for": "1 epoch"}, "cosine"], Plugins())

    @hookimpl
    def scheduler_build(self, optimizer, total_steps, steps_per_epoch):
        return self.plan.build(optimizer, total_steps, steps_per_epoch)


class TestWarmup(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Warmup("1 epoch")


class TestOneCycle(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return OneCycle()


class TestPlateau(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Plateau()


class TestYamlSource(FileSourceContract):
    text = "model:\n  width: 3\n  rate: 1e-3\n  layers: [1, {a: x}]\nname: größe\non: true\n"

    def make_config_source(self, tmp_path):
        return YamlSource()


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


class TestExponentialMovingAverage(CallbackContract):
    changes_training = True  # the model is left with the average when the run is over

    def make_callback(self, tmp_path):
        return ExponentialMovingAverage(decay=0.5)


class TestStochasticWeightAveraging(CallbackContract):
    changes_training = True

    def make_callback(self, tmp_path):
        return StochasticWeightAveraging(start="1 step", every="2 steps")


class TestConsole(CallbackContract):
    def make_callback(self, tmp_path):
        return Console()


class TestProgressBar(CallbackContract):
    def make_callback(self, tmp_path):
        return ProgressBar()


def test_the_random_streams_around_a_check_stay_as_they_are(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    TestEarlyStopping().test_it_takes_part_in_a_run(tmp_path)
    assert torch.equal(torch.rand(1), expected)
