"""When the schedulers of a run are stepped, and by which metric."""

import numpy as np
import pytest
import torch

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
