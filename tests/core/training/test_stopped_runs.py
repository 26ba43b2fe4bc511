"""Runs that are stopped at an awkward instant, and continued as if nothing had been."""

import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.core.small_runs import QUIET, assert_same, weights


@pytest.mark.parametrize(
    "more", [{}, {"accumulate": 3}, {"clip_grad_norm": 0.1}, {"on_nan": "skip", "accumulate": 2}], ids=str
)
def test_a_stopped_run_goes_on_and_ends_with_the_same_bits(make_run, data, events, more):
    """Dropout, shuffling, a schedule, groups of batches: everything that could differ after a restart."""

    def train(stop_at=None, **options):
        run = make_run(random_seed=5)
        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        loader = DataLoader(data, batch_size=8, shuffle=True)

        @run.on("train_step_end")
        def stop(state):
            if state.step == stop_at:
                signal.raise_signal(signal.SIGTERM)

        options = {"max_epochs": 3, "scheduler": "cosine", "log_every": "3 steps", **more, **options, **QUIET}
        result = run(net, loader, loader, **options)
        return result, weights(net)

    straight, expected = train(save_path="straight")
    lines = [{**event, "time": 0} for event in events(straight, "metrics")]
    for stop_at in (3, 8, 11) if straight.step > 11 else (2, 3, 5):
        options = {"save_path": f"stop-{stop_at}", "resume": "auto"}
        stopped, _ = train(stop_at, **options)
        assert stopped.status == "stopped"
        resumed, trained = train(**options)
        assert resumed.status == "finished" and resumed.folder == stopped.folder
        assert_same(trained, expected)
        assert [{**event, "time": 0} for event in events(resumed, "metrics")] == lines
        assert len(events(resumed, "resume")) == 1
        assert resumed.best.metric == straight.best.metric


def test_a_run_stopped_in_the_last_step_of_an_epoch_still_does_what_was_due(make_run, data, events):
    """The validation by steps falls on that step, and a plateau scheduler is stepped by it."""

    def train(stop_at=None, **options):
        run = make_run(random_seed=5)
        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        run.on("epoch_start")(lambda: torch.rand(3))

        @run.configure_optimizers
        def configure_optimizers(model):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)

        @run.on("train_step_end")
        def stop(state):
            if state.step == stop_at:
                signal.raise_signal(signal.SIGTERM)

        loader = DataLoader(data, batch_size=8, shuffle=True)
        options = {"max_epochs": 4, "validate_every": "4 steps", "validate_at_start": True, **options, **QUIET}
        return run(net, loader, loader, **options), weights(net)

    straight, expected = train(save_path="straight")
    lines = [{**event, "time": 0} for event in events(straight, "metrics")]
    for stop_at in (8, 16):
        options = {"save_path": f"stop-{stop_at}", "resume": "auto"}
        train(stop_at, **options)
        resumed, trained = train(**options)
        assert_same(trained, expected)
        assert [{**event, "time": 0} for event in events(resumed, "metrics")] == lines


@pytest.mark.parametrize(
    "options", [{"max_steps": 16}, {"max_samples": 128}, {"max_steps": 10, "validate_every": "5 steps"}]
)
def test_a_validation_cut_at_the_very_last_step_is_done_when_the_run_goes_on(net, loader, make_run, events, options):
    def train(interrupts, **more):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
        run, ended = make_run(), []

        @run.validate_step
        def validate(batch, model, state):
            if interrupts and state.step == options.get("max_steps", 16):
                signal.raise_signal(signal.SIGTERM)
            return nn.functional.mse_loss(model(batch[0]), batch[1])

        run.on("epoch_end")(lambda state: ended.append(state.epoch))
        return run(net, loader, loader, **options, **more, **QUIET), ended

    straight, _ = train(False)
    stopped, before = train(True, run_name="cut")
    continued, after = train(False, run_name="cut", resume="auto")
    assert (stopped.status, continued.status) == ("stopped", "finished")
    assert continued.metrics == straight.metrics
    assert continued.best.step == straight.best.step
    assert before + after == ([1, 2] if straight.step == 16 else [1])
