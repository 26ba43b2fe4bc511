"""What a run records of the metrics of its steps, and when."""

import pytest
import torch

from blowtorch import (
    Run,
    ScriptError,
)
from tests.core.small_runs import QUIET


def test_what_is_recorded_is_the_mean_since_the_last_recording_weighted_by_batch_size(net, events):
    batches = [torch.full((size, 4), float(value)) for value, size in ((1, 2), (2, 6), (3, 4), (5, 4), (9, 1))]
    run = Run(random_seed=0, command_line=[])

    @run.train_step
    def step(batch, model):
        return {"loss": model(batch).mean() * 0 + batch.mean(), "size": len(batch)}

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    result = run(net, batches, log_every="2 steps", **QUIET)
    recorded = [(each["step"], each["metrics"]) for each in events(result, "metrics")]
    assert [(step, metrics["train/loss"]) for step, metrics in recorded] == [(2, 1.75), (4, 4.0), (5, 9.0)]
    assert recorded[-1][1]["train_epoch/loss"] == pytest.approx((2 + 12 + 12 + 20 + 9) / 17)
    assert all(each["epoch"] == 1 and each["time"] > 1e9 for each in events(result, "metrics"))


def test_a_returned_batch_size_weighs_and_is_not_recorded(net, events):
    batches = [{"value": 1.0, "size": 1}, {"value": 4.0, "size": 2}]
    run = Run(random_seed=0, command_line=[])

    @run.train_step
    def step(batch, model):
        return {"loss": next(model.parameters()).sum() * 0 + batch["value"], "batch_size": batch["size"]}

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    result = run(net, batches, **QUIET)
    assert result.metrics["train/loss"] == 3.0
    assert "train/batch_size" not in result.metrics


def test_log_outside_of_a_step_is_recorded_at_once_under_its_own_name(make_run, net, loader, events):
    run = make_run(validates=False)

    @run.on("epoch_end")
    def after(log):
        log({"temperature": 0.5})

    result = run(net, loader, **QUIET)
    assert {"temperature": 0.5} in [each["metrics"] for each in events(result, "metrics")]


def test_logging_when_nothing_runs_is_an_error():
    with pytest.raises(ScriptError, match="while nothing is being trained"):
        Run(random_seed=0, command_line=[]).log({"a": 1.0})


def test_the_record_begins_with_start_and_ends_with_finish(make_run, net, loader, events):
    result = make_run()(net, loader, loader, **QUIET)
    kinds = [event["event"] for event in events(result)]
    assert kinds[0] == "start" and kinds[-1] == "finish" and "checkpoint" in kinds
    finish = events(result, "finish")[0]
    assert finish["status"] == "finished" and finish["summary"]["val/loss"] == result.metrics["val/loss"]


def test_an_evaluation_inside_of_a_training_leaves_log_alone(make_run, net, loader):
    run = make_run()

    @run.train_step
    def step(batch, model):
        run.log({"seen": 1.0})
        return model(batch[0]).pow(2).mean()

    run.on("train_step_end")(lambda model: run.evaluate(model, loader))
    assert run(net, loader, loader, max_steps=2, **QUIET).metrics["train/seen"] == 1.0
    with pytest.raises(ScriptError, match="while nothing is being trained"):
        run.log({"a": 1.0})


def test_a_metric_that_training_logs_with_a_reduction_is_averaged_in_a_validation_that_returns_it(
    make_run, net, loader
):
    run = make_run(validates=False)

    @run.train_step
    def train_step(batch, model, log):
        log({"samples": len(batch[0])}, reduce="sum")
        return model(batch[0]).square().mean()

    run.validate_step(lambda batch, model: {"samples": float(len(batch[0]))})
    result = run(net, loader, loader, progress=False)
    assert (result.metrics["train_epoch/samples"], result.metrics["val/samples"]) == (64, 8)


def test_what_is_logged_does_not_take_the_place_of_what_is_returned(net, loader):
    run = Run(random_seed=0, command_line=[])

    @run.train_step
    def step(batch, model, log):
        loss = model(batch[0]).square().mean()
        log({"loss": -loss})
        return loss

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ScriptError, match="step returns 'loss' and logs it too; give one of them another name"):
        run(net, loader, **QUIET)
