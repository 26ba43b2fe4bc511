"""Options and loaders that are otherwise when a run goes on: in use and said, or named as not in use."""

import math
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from blowtorch import CheckpointError, Run, hookimpl
from tests.core.small_runs import QUIET, assert_same, weights

DATA = TensorDataset(torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), torch.arange(64))


class Seen:
    """What the steps of a process were given, and what came of it."""

    def __init__(self):
        self.samples: list[tuple[int, list[int]]] = []
        self.rates: list[float] = []
        self.model: nn.Module = nn.Linear(4, 1)
        self.result: Any = None
        self.console = ""


def train(batch_size=8, command=(), **options):
    run, seen = Run(random_seed=0, command_line=["train.py", *command]), Seen()

    @run.train_step
    def train_step(batch, model, state):
        seen.samples.append((state.epoch, batch[1].tolist()))
        seen.rates.append(state.optimizers["optimizer"].param_groups[0]["lr"])
        return model(batch[0]).square().mean()

    @run.validate_step
    def validate_step(batch, model):
        return {"loss": model(batch[0]).square().mean(), "other": 1.0}

    @run.configure_optimizers
    def configure_optimizers(model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    nn.init.constant_(seen.model.get_parameter("weight"), 0.1)
    nn.init.zeros_(seen.model.get_parameter("bias"))
    loader = DataLoader(DATA, batch_size, shuffle=True)
    seen.result = run(seen.model, loader, DataLoader(DATA, 64), **{"max_epochs": 3, **QUIET, **options})
    seen.console = (seen.result.folder / "console.log").read_text()
    return seen


def continued(first, then, **options):
    """Train by some options, and go on by others."""
    short = train(**options, **first)
    return short, train(**{**options, "resume": str(short.result.folder), **then})


def samples_of(seen, epoch):
    return [index for each, indices in seen.samples if each == epoch for index in indices]


def run_yaml(seen):
    return yaml.safe_load((seen.result.folder / "run.yaml").read_text())


@pytest.mark.parametrize("size", [2, 4, 16, 24, 40])
def test_with_batches_of_another_size_an_epoch_goes_on_where_it_is(size):
    short, seen = continued({"max_steps": 13}, {"batch_size": size})
    done, rest = samples_of(short, 2), samples_of(seen, 2)
    straight = samples_of(train(), 2)
    again = 40 % size
    assert done == straight[:40] and rest == straight[40 - again :]
    assert sorted(samples_of(seen, 3)) == [*range(64)]
    assert (seen.result.epoch, seen.result.step) == (3, 13 + math.ceil((24 + again) / size) + math.ceil(64 / size))
    assert f"the train loader has batches of {size} samples now and had 8 before: epoch 2 goes on" in seen.console
    assert ("samples come again" in seen.console) == bool(again)


@pytest.mark.parametrize("stop", [8, 13, 16])
@pytest.mark.parametrize("change", [{"batch_size": 16}, {"accumulate": 2}, {"limit_train_batches": 4}])
def test_a_schedule_ends_with_the_run_though_its_steps_are_larger_now(stop, change):
    _, seen = continued({"max_steps": stop}, {**change, "max_steps": None}, scheduler={"linear": {"floor": 0.0}})
    total = seen.result.step
    rates = seen.rates[::2] if "accumulate" in change and stop != 13 else seen.rates
    if stop != 13:
        assert rates == pytest.approx([0.1 * (1 - step / total) for step in range(stop, total)])
    assert f"the run has {total} steps now and had {stop} before" in seen.console
    again = train(max_epochs=4, resume=str(seen.result.folder), scheduler={"linear": {"floor": 0.0}}, **change)
    steps_of_epoch = 8 if not change else 4
    assert again.result.step == total + steps_of_epoch
    assert again.rates[0] == pytest.approx(0.1 * steps_of_epoch / (total + steps_of_epoch))


def test_nothing_is_said_of_batches_where_they_are_the_same():
    _, seen = continued({"max_steps": 13}, {})
    assert "batches of" not in seen.console and "goes on behind" not in seen.console


def test_a_name_and_a_place_that_come_too_late_are_named_and_not_written_down():
    first, seen = continued(
        {"run_name": "one", "save_path": "here"},
        {"command": ["with", "run.run_name=two", "run.save_path=there", "run.max_epochs=4"]},
    )
    assert seen.result.folder == first.result.folder
    assert "run.run_name is 'two' now, which is not in effect: the run that goes on is called 'one-1'" in seen.console
    assert "run.save_path is 'there' now, which is not in effect: the run goes on in its folder" in seen.console
    options = run_yaml(seen)["options"]
    assert (options["run_name"], options["save_path"], options["max_epochs"]) == ("one", "here", 4)
    kept = yaml.safe_load((seen.result.folder / "config.yaml").read_text())["run"]
    assert kept == {"run_name": "one", "save_path": "here", "max_epochs": 4}


def test_leaving_out_the_name_and_the_place_changes_nothing_that_is_written_down():
    _, seen = continued({"run_name": "one", "save_path": "here", "max_steps": 3}, {})
    assert "not in effect" not in seen.console
    assert (run_yaml(seen)["options"]["run_name"], run_yaml(seen)["options"]["save_path"]) == ("one", "here")


class Told:
    """A logger that keeps what it is told of the configuration."""

    def __init__(self):
        self.config: dict[str, Any] = {}

    @hookimpl
    def log_start(self, run):
        self.config = run.config


def test_a_validation_at_the_start_that_comes_too_late_is_named_for_loggers_too():
    told = Told()
    late = ["with", "run.validate_at_start=true"]
    _, seen = continued({"max_steps": 3}, {"command": late, "loggers": [told]})
    assert "run.validate_at_start is True now, which is not in effect: the run has started before" in seen.console
    assert told.config["run"] == {"validate_at_start": False}
    assert run_yaml(seen)["options"]["validate_at_start"] is False


def test_weights_to_begin_with_that_come_too_late_are_named():
    other = train(max_steps=2)
    _, seen = continued({"max_steps": 3}, {"initialize_from": str(other.result.folder)})
    assert "which is not in effect: the run goes on with the weights of its own checkpoint" in seen.console
    assert run_yaml(seen)["options"]["initialize_from"] is None
    assert_same(weights(seen.model), weights(train().model))


def test_the_best_by_another_metric_is_said_to_be_forgotten():
    _, seen = continued({"max_epochs": 1}, {"checkpoint_metric": "val/other", "smaller_is_better": False})
    assert "the best checkpoint so far was so by 'val/loss'; from here on 'val/other' decides, larger" in seen.console
    assert seen.result.best.metric == 1.0


class Elsewhere:
    """A backend that has no checkpoints."""

    @hookimpl
    def checkpoint_list(self):
        return []

    @hookimpl
    def checkpoint_publish(self, name, directory):
        raise AssertionError

    @hookimpl
    def checkpoint_fetch(self, name, directory):
        raise AssertionError

    @hookimpl
    def checkpoint_delete(self, name):
        raise AssertionError


def test_a_run_is_not_begun_anew_because_its_checkpoints_are_looked_for_elsewhere():
    short = train(max_steps=3)
    before = (short.result.folder / "record.jsonl").read_text()
    with pytest.raises(CheckpointError, match="are in checkpoint backend 'local', and there are none in 'a Elsewhere'"):
        train(resume=str(short.result.folder), checkpoint_backend=Elsewhere())
    assert (short.result.folder / "record.jsonl").read_text().startswith(before)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("clip_grad_norm", None, 0.01),
        ("clip_grad_value", 0.5, 0.001),
        ("loss_is", "mean", "sum"),
        ("precision", "fp32", "bf16"),
        ("on_nan", "stop", "skip"),
    ],
)
def test_options_of_gradients_hold_from_there_on_and_are_said(name, before, after):
    _, seen = continued({name: before, "max_epochs": 1}, {name: after})
    assert f"changed since the last start: run.{name} was {before!r} and is {after!r}" in seen.console
    assert run_yaml(seen)["options"][name] == after
    is_alike = name in ("on_nan", "loss_is")  # the second counts in groups of batches
    unchanged = weights(train().model)
    assert all(map(torch.equal, weights(seen.model), unchanged)) == is_alike


def test_a_device_and_settings_of_torch_that_are_otherwise_are_said(monkeypatch):
    short = train(max_epochs=1)
    same = train(max_epochs=2, resume=str(short.result.folder))
    assert "the device's" not in same.console
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    other = train(resume=str(short.result.folder))
    assert (
        "changed since the last start: the device's float32_matmul_precision was 'highest' and is 'high'"
        in other.console
    )
    assert run_yaml(other)["device"] == {"name": "cpu", "float32_matmul_precision": "high"}


def test_the_scale_of_fp16_is_refused_by_name_where_it_is_not_used_any_more():
    with pytest.raises(
        CheckpointError, match="holds 'gradients', which the script has not; .*resume_without=gradients"
    ):
        continued({"precision": "fp16", "max_epochs": 1}, {"precision": "fp32"})
