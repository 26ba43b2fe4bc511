"""When the schedulers of a run are stepped, and by which metric."""

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import MultiStepLR

from blowtorch import (
    Schedule,
    ScriptError,
)
from tests.core.small_runs import QUIET


def test_a_schedule_follows_the_clock_and_a_step_records_the_rate_that_it_used(net, loader, make_run, events):
    run = make_run(validates=False)

    @run.configure_optimizers
    def configure_optimizers(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        halve = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return optimizer, Schedule(halve, every="2 steps")

    result = run(net, loader, max_steps=6, log_every="1 steps", **QUIET)
    assert [each["metrics"]["lr"] for each in events(result, "metrics")] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_a_bare_torch_scheduler_is_stepped_per_epoch_and_a_named_one_per_step(net, loader, make_run, events):
    run = make_run(validates=False)

    @run.configure_optimizers
    def configure_optimizers(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.1)

    result = run(net, loader, max_epochs=3, log_every="8 steps", **QUIET)
    assert [each["metrics"]["lr"] for each in events(result, "metrics") if "lr" in each["metrics"]] == pytest.approx(
        [1.0, 0.1, 0.01]
    )

    run = make_run(validates=False)
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=1.0))
    result = run(net, loader, max_epochs=1, log_every="1 steps", scheduler="cosine", **QUIET)
    expected = [0.5 * (1 + np.cos(np.pi * step / 8)) for step in range(8)]
    assert [each["metrics"]["lr"] for each in events(result, "metrics") if "lr" in each["metrics"]] == pytest.approx(
        expected
    )


def test_a_scheduler_may_follow_a_mean_of_the_epoch(make_run, net, loader):
    plateau = {"plateau": {"metric": "train_epoch/loss", "patience": 0, "smaller_is_better": False}}
    result = make_run(validates=False)(net, loader, scheduler=plateau, max_epochs=3, **QUIET)
    assert result.metrics["lr"] < 0.1


def test_a_scheduler_may_follow_a_metric_with_a_slash_in_its_name(make_run, net, loader):
    run = make_run(validates=False)
    run.validate_step(lambda batch: {"loss": 1.0, "top/1": 0.5})
    plateau = {"plateau": {"metric": "val/top/1", "patience": 0}}
    assert run(net, loader, loader, scheduler=plateau, max_epochs=3, **QUIET).metrics["lr"] < 0.1


def test_a_scheduler_that_waits_for_a_metric_that_nobody_measures_is_an_error(make_run, net, loader):
    with pytest.raises(ScriptError, match=r"a scheduler waits for 'val/los'.*Did you mean 'val/loss'\?"):
        make_run()(net, loader, loader, scheduler={"plateau": {"metric": "val/los"}}, **QUIET)


class HiddenLayers(torch.nn.Module):
    """Its layer is in a plain list, where torch does not look."""

    def __init__(self):
        super().__init__()
        self.layers = [torch.nn.Linear(4, 1)]


def test_a_model_without_parameters_is_named_with_what_may_be_the_reason(make_run, loader):
    said = "the model, a HiddenLayers, has no parameters to train; modules that it keeps in a plain list"
    with pytest.raises(ScriptError, match=said):
        make_run(validates=False)(HiddenLayers(), loader, **QUIET)


def test_an_error_of_an_optimizer_is_left_as_it_was(make_run, net, loader):
    run = make_run(validates=False)
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=-1.0))
    with pytest.raises(ValueError, match="Invalid learning rate"):
        run(net, loader, **QUIET)


@pytest.mark.parametrize("milestones", [np.array([3, 7]), [np.int64(3), np.int32(7)], [3, 7]], ids=repr)
def test_milestones_of_numpy_are_the_same_numbers_when_a_run_goes_on(make_run, net, loader, milestones):
    def make(milestones):
        run = make_run(validates=False)

        @run.configure_optimizers
        def configure_optimizers(model):
            optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
            return optimizer, Schedule(MultiStepLR(optimizer, milestones), every="1 step")

        return run

    stopped = make(milestones)(net, loader, max_steps=5, **QUIET)
    result = make([3, 7])(net, loader, max_steps=9, resume=str(stopped.folder), **QUIET)
    assert result.metrics["lr"] == pytest.approx(0.01)
    assert "milestones" not in (result.folder / "console.log").read_text()
