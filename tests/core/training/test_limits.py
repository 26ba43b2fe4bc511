"""Limits of time, losses that are not a number, and stops that do not wait."""

import os
import signal
import time

import pytest
import torch

from blowtorch import NotFiniteError, OptionError, find_runs
from tests.core.checkpoint.comparisons import QUIET, metric_lines, weights


def wait_for_the_end_of_time(run, at_step):
    @run.on("train_step_end")
    def wait(state):
        while state.step == at_step and state.interruption is None:
            time.sleep(0.01)


def test_max_time_stops_a_run_that_goes_on_later(make_run, fresh, loader, events):
    straight, other, again = fresh(), fresh(), fresh()
    expected = make_run()(straight, loader, loader, max_epochs=2, **QUIET)
    run = make_run()
    wait_for_the_end_of_time(run, at_step=11)
    first = run(other, loader, loader, max_epochs=2, max_time="0.5 seconds", **QUIET)
    assert first.status == "stopped" and first.step <= 11
    assert events(first, "finish")[-1]["reason"] == "max_time of 0.5 seconds is over"
    second = make_run()(again, loader, loader, max_epochs=2, resume=str(first.folder), **QUIET)
    assert torch.equal(weights(straight), weights(again))
    assert metric_lines(events, expected) == metric_lines(events, second)


def test_max_time_alone_is_a_limit(make_run, net, loader):
    run = make_run(validates=False)
    wait_for_the_end_of_time(run, at_step=20)  # in the third epoch
    assert run(net, loader, max_time="0.5 seconds", **QUIET).status == "stopped"


@pytest.mark.parametrize("value", ["3 steps", "soon"])
def test_max_time_is_a_time(make_run, net, loader, value):
    with pytest.raises(OptionError, match="option max_time: expected"):
        make_run(validates=False)(net, loader, max_time=value, **QUIET)


@pytest.fixture
def spoiled(make_run):
    """A run whose loss is NaN from the sixth step on, while its model stays finite."""
    run = make_run(validates=False)

    @run.train_step
    def step(batch, model, step):
        loss = model(batch[0]).pow(2).mean()
        return {"loss": loss, "shown": loss * float("nan"), "aside": loss.detach() * float("nan")} if step > 5 else loss

    return run


def test_a_loss_that_is_nan_fails_the_run_when_it_is_recorded(spoiled, fresh, loader):
    options = {"optimize_metric": "loss", "checkpoint_every": "2 steps", "log_every": "4 steps"}

    @spoiled.train_step
    def step(batch, model, step):
        return model(batch[0]).pow(2).mean() * (float("nan") if step > 5 else 1)

    with pytest.raises(NotFiniteError, match=r"(?s)step-00000006 is not written: at step 6 '0.weight' in the model"):
        spoiled(fresh(), loader, **options, **QUIET)
    (view,) = find_runs()
    assert view.status == "failed" and [each.name for each in view.checkpoints][-1] == "step-00000004"
    with pytest.raises(NotFiniteError, match="train/loss is nan at step 8, and so is '0.weight' in the model"):
        spoiled(fresh(), loader, **{**options, "checkpoint_every": None}, **QUIET)


def test_other_metrics_may_be_nan(spoiled, net, loader):
    assert spoiled(net, loader, log_every="1 steps", **QUIET).status == "finished"


def test_a_loss_that_is_nan_may_be_warned_of_or_ignored(make_run, net, loader, recwarn):
    run = make_run(validates=False)

    @run.train_step
    def step(batch, model, step):
        loss = model(batch[0]).pow(2).mean()
        return loss if step < 5 else loss - loss.detach() + float("inf")  # its gradient is that of the loss

    assert run(net, loader, on_nan="ignore", log_every="1 steps", **QUIET).status == "finished"
    assert not [each for each in recwarn if "train/loss" in str(each.message)]
    assert run(net, loader, on_nan="warn", log_every="1 steps", **QUIET).status == "finished"
    (warning,) = [each for each in recwarn if "train/loss" in str(each.message)]
    assert "train/loss is inf at step 5, and the model is still finite" in str(warning.message)


def test_what_on_nan_may_say_is_checked(make_run, net, loader):
    with pytest.raises(
        OptionError, match="option on_nan: expected 'stop', 'warn', 'skip', 'ignore', got 'wran'. Did you mean"
    ):
        make_run(validates=False)(net, loader, on_nan="wran", **QUIET)


@pytest.mark.parametrize("every", ["1 epoch", "3 steps"])
def test_a_stop_does_not_wait_for_a_validation_which_is_then_done_again(make_run, fresh, loader, events, every):
    """Stopped in the middle of each of two validations at one step, and continued; nothing tells it afterwards."""

    def train(net, interrupts, **options):
        run = make_run(validates=False)
        calls = []
        for name in ("val", "ood"):

            @run.validate_step(loader, name=name)
            def validate(batch, model, step, name=name):
                calls.append((name, step))
                if calls.count((name, step)) == 3 and (name, step) in interrupts:
                    os.kill(os.getpid(), signal.SIGTERM)
                return {"loss": model(batch[0]).mean(), "drawn": torch.rand(())}

        result = run(net, loader, max_epochs=2, validate_every=every, **options, **QUIET)
        return result, calls

    straight, other = fresh(), fresh()
    expected, _ = train(straight, [])
    step = 8 if every == "1 epoch" else 6
    stopped, calls = train(other, [("val", step)])
    assert stopped.status == "stopped" and calls.count(("val", step)) == 3 and stopped.step == step
    stopped, calls = train(fresh(), [("ood", step)], resume=str(stopped.folder))
    assert stopped.status == "stopped" and calls.count(("val", step)) == 8 and calls.count(("ood", step)) == 3
    again = fresh()
    finished, calls = train(again, [], resume=str(stopped.folder))
    assert finished.status == "finished" and ("val", step) not in calls and calls.count(("ood", step)) == 8
    assert torch.equal(weights(straight), weights(again))
    assert metric_lines(events, expected) == metric_lines(events, finished)
    assert expected.best.metric == finished.best.metric and expected.best.name == finished.best.name
