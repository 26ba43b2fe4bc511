"""Runs whose samplers keep something from epoch to epoch, stopped and continued: the same bits in the end."""

import random
import signal
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from blowtorch.errors import BlowtorchWarning, CheckpointError
from tests.core.small_runs import QUIET, assert_same, weights


class Buckets:
    """Shuffles its own batches in place, as many scripts that sort by length do."""

    def __init__(self, size, group):
        self.batches = [list(range(first, first + group)) for first in range(0, size, group)]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        random.shuffle(self.batches)
        yield from self.batches


class BucketsWithState(Buckets):
    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state):
        self.batches = state["batches"]


def train(make_run, data, kind, stop_at=None, stops_in=None, **options):
    run = make_run(random_seed=5, validates=False)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    @run.validate_step(DataLoader(data, batch_sampler=kind(64, 4)), name="val", every="6 steps")
    def validate(batch, model, step):
        if step == stops_in:
            signal.raise_signal(signal.SIGTERM)
        return {"loss": nn.functional.mse_loss(model(batch[0]), batch[1]), "last": batch[1].sum()}

    @run.on("train_step_end")
    def stop(step):
        if step == stop_at:
            signal.raise_signal(signal.SIGTERM)

    loader = DataLoader(data, batch_sampler=kind(64, 8))
    options = {"max_epochs": 3, "log_every": "3 steps", "limit_validate_batches": 9, **options, **QUIET}
    return run(net, loader, **options), weights(net)


@pytest.mark.parametrize("kind", [Buckets, BucketsWithState])
@pytest.mark.parametrize("stop", [{"stop_at": 3}, {"stop_at": 8}, {"stop_at": 13}, {"stops_in": 12}])
def test_a_stopped_run_goes_on_with_the_batches_and_metrics_that_it_would_have_had(make_run, data, events, kind, stop):
    straight, expected = train(make_run, data, kind, save_path="straight")
    stopped, _ = train(make_run, data, kind, **stop, save_path="stopped")
    assert stopped.status == "stopped"
    with warnings.catch_warnings():
        warnings.simplefilter("error", BlowtorchWarning)
        resumed, found = train(make_run, data, kind, save_path="stopped", resume=str(stopped.folder))
    assert_same(found, expected)
    lines = [{**event, "time": 0} for event in events(straight, "metrics")]
    assert [{**event, "time": 0} for event in events(resumed, "metrics")] == lines


def test_a_state_that_no_checkpoint_can_hold_is_named_before_training(make_run, data):
    class Odd(BucketsWithState):
        def state_dict(self):
            return {"batches": range(3)}

    with pytest.raises(CheckpointError, match=r"data\['train'\]\['order'\]\['now'\]\[0\]\['batches'\] is a range"):
        train(make_run, data, Odd)
