"""Functions that drive an epoch themselves."""

import pytest
import torch
from torch import nn

from blowtorch import (
    Run,
    ScriptError,
)
from tests.core.small_runs import QUIET, run_by_epoch


def test_a_train_epoch_function_drives_the_epoch(net, loader, events):
    run = Run(random_seed=0, command_line=[])

    @run.train_epoch
    def train_epoch(data_loader, model, optimizers, log):
        optimizer = optimizers["optimizer"]
        for x, y in data_loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            log({"loss": loss})
        return {"passes": 1}

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    result = run(net, loader, max_epochs=2, log_every="4 steps", **QUIET)
    assert (result.step, result.epoch) == (16, 2)
    recorded = [(each["step"], sorted(each["metrics"])) for each in events(result, "metrics")]
    assert recorded == [
        (4, ["lr", "train/loss"]),
        (8, ["lr", "train/loss"]),
        (8, ["lr", "train/passes", "train_epoch/loss", "train_epoch/passes"]),
        (12, ["lr", "train/loss"]),
        (16, ["lr", "train/loss"]),
        (16, ["lr", "train/passes", "train_epoch/loss", "train_epoch/passes"]),
    ]


def test_a_train_epoch_function_that_breaks_off_has_done_the_batch_that_it_was_given(net, loader):
    def train_epoch(data_loader):
        for _ in data_loader:
            break

    assert run_by_epoch(train_epoch)(net, loader, max_steps=3, **QUIET).step == 3


def test_a_train_epoch_function_without_batches_is_an_error_where_it_would_never_end(net, loader):
    run = run_by_epoch(lambda data_loader: None)
    with pytest.raises(ScriptError, match="took no batch of its data_loader, so max_steps is never reached"):
        run(net, loader, max_steps=3, **QUIET)
    assert run(net, loader, max_epochs=2, **QUIET).epoch == 2


def test_a_train_epoch_function_has_no_metric_to_optimize(net, loader, tmp_path):
    with pytest.raises(ScriptError, match="optimize_metric is for a train step; <lambda> drives the whole epoch"):
        run_by_epoch(lambda data_loader: None)(net, loader, optimize_metric="loss", **QUIET)
    assert not (tmp_path / "train_logs").exists()


def test_an_epoch_loader_has_a_length(net, loader):
    run = Run(random_seed=0, command_line=[])
    lengths = []

    @run.train_epoch
    def train_epoch(data_loader):
        lengths.append((len(data_loader), sum(1 for _ in data_loader)))

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    run(net, loader, limit_train_batches=5, **QUIET)
    assert lengths == [(5, 5)]


def test_schedulers_per_step_follow_a_function_that_drives_the_epoch(net, loader):
    run = Run(random_seed=0, command_line=[])

    @run.train_epoch
    def train_epoch(data_loader, optimizers):
        for _ in data_loader:
            optimizers["optimizer"].step()

    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    run.configure_optimizers(lambda model: optimizer)
    run(net, loader, scheduler="linear", **QUIET)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


def test_functions_for_epochs_tell_of_checkpoints_and_log_like_steps(net, loader, events):
    run = Run(random_seed=0, command_line=[])

    @run.train_epoch
    def train_epoch(data_loader, model, optimizers):
        for x, _ in data_loader:
            optimizers["optimizer"].zero_grad()
            model(x).square().mean().backward()
            optimizers["optimizer"].step()

    run.on("train_step_end")(lambda log: log({"steps": 1.0}, reduce="sum"))
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    result = run(net, loader, log_every="4 steps", **QUIET)
    recorded = [event["metrics"].get("train/steps") for event in events(result, "metrics")]
    assert recorded[:2] == [4.0, 4.0]
    assert result.metrics["train_epoch/steps"] == 8.0


def test_a_function_for_epochs_may_not_return_what_it_logs(net, loader):
    run = Run(random_seed=0, command_line=[])

    @run.train_epoch
    def train_epoch(data_loader, model, log):
        for x, _ in data_loader:
            log({"loss": model(x).square().mean().detach()})
        return {"loss": 1.0}

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ScriptError, match="train_epoch returns 'loss' and logs it too"):
        run(net, loader, log_every="3 steps", **QUIET)
