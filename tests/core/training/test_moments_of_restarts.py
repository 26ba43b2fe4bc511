"""Moments that come once, and those that come again when a run goes on; what a validation is told of itself."""

import signal

import pytest
import torch
from torch import nn

from tests.core.small_runs import QUIET, assert_same, weights

BATCHES = list(torch.randn(10, 4, 3, generator=torch.Generator().manual_seed(1)))


class Hidden:
    """A state of the script's own, which is carried from batch to batch."""

    def __init__(self):
        self.value, self.starts = torch.zeros(()), []

    def state_dict(self):
        return {"value": self.value, "starts": self.starts}

    def load_state_dict(self, state):
        self.value, self.starts = state["value"], list(state["starts"])


def train(make_run, hidden, **options):
    run, heard = make_run(validates=False), []
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    run.keep_state("hidden", hidden)

    @run.on("epoch_start")
    def forget(epoch):
        hidden.value = torch.zeros(())
        hidden.starts.append(epoch)

    @run.train_step
    def step(batch, model):
        hidden.value = (hidden.value * 0.5 + batch.mean()).detach()
        return (model(batch) - hidden.value).square().mean()

    run.on("epoch_resume")(lambda epoch, step: heard.append((epoch, step)))
    return run(net, BATCHES, **options, **QUIET), weights(net), heard


def test_what_is_reset_when_an_epoch_starts_is_kept_by_a_restart_in_the_middle_of_it(make_run):
    hidden = Hidden()
    _, expected, heard = train(make_run, hidden, max_epochs=3, save_path="straight")
    assert heard == []
    folder = {}
    for limit, resumed in [(4, []), (16, [(1, 4)]), (20, [(2, 16)]), (None, [])]:
        continued = Hidden()
        result, found, heard = train(make_run, continued, max_epochs=3, max_steps=limit, save_path="cut", **folder)
        assert heard == resumed
        folder = {"resume": str(result.folder)}
    assert_same(found, expected)
    assert continued.starts == hidden.starts == [1, 2, 3]


def test_a_validation_is_announced_and_draws_there_move_no_stream_of_training(make_run, net, loader):
    def train(draws):
        torch.manual_seed(0)
        run, heard, model = make_run(), [], nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))

        @run.on("validation_start")
        def start(name, step, model):
            heard.append((name, step, model.training))
            if draws:
                torch.rand(3)

        run(model, loader, loader, validate_every="2 steps", validate_at_start=True, max_steps=4, **QUIET)
        return heard, weights(model)

    heard, plain = train(False)
    assert heard == [("val", 0, True), ("val", 2, True), ("val", 4, True)]
    assert_same(train(True)[1], plain)


def test_a_validation_that_was_cut_is_announced_again(make_run, net, loader):
    def train(cuts, **options):
        run, heard = make_run(), []
        run.on("validation_start")(lambda step: heard.append(step))

        @run.validate_step
        def validate(batch, model):
            if cuts:
                signal.raise_signal(signal.SIGTERM)
            return {"loss": model(batch[0]).mean()}

        return run(
            net, loader, loader, validate_every="3 steps", max_steps=3, run_name="cut", **options, **QUIET
        ), heard

    assert (train(True)[1], train(False, resume="auto")[1]) == ([3], [3])


@pytest.mark.parametrize("limit", [None, 2])
def test_a_validation_step_is_told_the_number_of_its_batch(make_run, net, loader, limit):
    run, seen = make_run(), []

    @run.validate_step
    def validate(batch, batch_index):
        seen.append(batch_index)
        return {"loss": 0.0}

    result = run(net, loader, loader, max_epochs=2, limit_validate_batches=limit, **QUIET)
    once = list(range(limit or len(loader)))
    assert result.status == "finished" and seen == once + once
    run.evaluate(net, loader)
    assert seen[2 * len(once) :] == list(range(len(loader)))


def test_a_prediction_step_is_told_the_number_of_its_batch(make_run, net):
    run = make_run()
    run.predict_step(lambda batch, batch_index: torch.tensor([batch_index]))
    assert run.predict(net, BATCHES[:3], gather=True).tolist() == [0, 1, 2]
