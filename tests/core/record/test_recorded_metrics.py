"""What a run records of the metrics of its steps, and when."""

import threading

import pytest
import torch
from torch import nn

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


def test_what_two_threads_log_by_one_run_is_recorded_by_the_one_that_logs_it(make_run, loader):
    run, both, results = make_run(validates=False), threading.Barrier(2, timeout=60), {}

    @run.train_step
    def step(batch, model):
        both.wait()
        run.log({"width": model.out_features})
        return model(batch[0]).pow(2).mean()

    def train(width):
        results[width] = run(nn.Linear(4, width), loader, max_steps=3, **QUIET)

    threads = [threading.Thread(target=train, args=[width]) for width in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {width: result.metrics["train/width"] for width, result in results.items()} == {1: 1.0, 2: 2.0}
    with pytest.raises(ScriptError, match="while nothing is being trained"):
        run.log({"a": 1.0})


def test_what_another_thread_logs_belongs_to_the_run_that_is_under_way(make_run, net, loader):
    run = make_run(validates=False)

    @run.train_step
    def step(batch, model):
        thread = threading.Thread(target=run.log, args=[{"beside": 3.0}])
        thread.start()
        thread.join()
        return model(batch[0]).pow(2).mean()

    assert run(net, loader, max_steps=2, **QUIET).metrics["train/beside"] == 3.0


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
