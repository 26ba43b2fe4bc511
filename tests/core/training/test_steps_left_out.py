"""Steps whose gradients are not finite."""

import math

import pytest
import torch
from torch import nn

from blowtorch import BlowtorchWarning, NotFiniteError
from tests.core.training.gradient_runs import QUIET, are_equal, batches, copied, start, weights

LEFT_OUT = pytest.mark.filterwarnings("ignore:step .* is left out:blowtorch.errors.BlowtorchWarning")


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad])
def test_a_step_that_is_left_out_touches_neither_weights_nor_the_optimizer(net, optimizer):
    data, seen = batches(8, 8, 8), []
    data[1][1][0] = math.nan
    made = {}

    def configure(model):
        made["optimizer"] = optimizer(model.parameters(), lr=0.1, weight_decay=0.5)
        return made["optimizer"]

    run = start(configure)

    @run.on("train_step_end")
    def note(model):
        tensors = [value for state in made["optimizer"].state.values() for value in state.values() if value is not None]
        seen.append(weights(model) + [torch.as_tensor(value).clone() for value in tensors])

    with pytest.warns(BlowtorchWarning, match="step 2 is left out, since its gradient is not finite"):
        run(net, data, on_nan="skip", **QUIET)
    assert are_equal(seen[0], seen[1])
    assert not are_equal(seen[1], seen[2])


@LEFT_OUT
def test_skipped_steps_are_counted_and_their_loss_leaves_no_trace_in_the_mean(net, events):
    data = batches(*[8] * 6)
    for place, value in ((1, math.nan), (4, math.inf), (5, -math.inf)):
        data[place][1][0] = value
    result = start()(net, data, on_nan="skip", log_every="2 steps", **QUIET)
    recorded = [event["metrics"] for event in events(result, "metrics")]
    assert [metrics.get("train/skipped_steps") for metrics in recorded[:3]] == [1.0, None, 2.0]
    assert recorded[-1]["train_epoch/skipped_steps"] == 3.0 == result.metrics["train_epoch/skipped_steps"]
    assert math.isfinite(recorded[0]["train/loss"]) and "train/loss" not in recorded[2]
    assert result.step == 6  # a step that is left out counts


@LEFT_OUT
def test_a_group_with_one_bad_batch_is_left_out_whole(net):
    data = batches(*[8] * 4)
    data[1][1][0] = math.nan
    twin = copied(net)
    start()(net, data, on_nan="skip", accumulate=2, **QUIET)
    start()(twin, data[2:], accumulate=2, **QUIET)
    assert are_equal(weights(net), weights(twin))


@LEFT_OUT
def test_of_two_optimizers_the_one_with_good_gradients_is_stepped(net):
    def configure(model):
        return {name: torch.optim.SGD(model[place].parameters(), lr=0.1) for name, place in (("a", 0), ("b", 3))}

    run, before = start(configure), weights(net)

    @run.train_step
    def step(batch, model):
        hidden = model[1](model[0](batch[0]))
        hidden.register_hook(lambda gradient: gradient * math.nan)
        return model[3](hidden).mean()

    result = run(net, batches(8), on_nan="skip", **QUIET)
    assert are_equal(before[:2], weights(net)[:2]) and not are_equal(before[2:], weights(net)[2:])
    assert result.metrics["train/skipped_steps"] == 1.0


@LEFT_OUT
def test_too_many_steps_in_a_row_are_an_error_across_restarts_too(net):
    data = batches(*[8] * 40)
    for _, y in data:
        y[0] = math.nan
    options = {"on_nan": "skip", "max_epochs": 3, **QUIET}
    result = start()(net, data, max_steps=60, **options)
    with pytest.raises(NotFiniteError, match="gradients of the last 100 steps, up to step 100, were not finite"):
        start()(net, data, resume=str(result.folder), **options)


def test_a_bad_step_is_a_reason_to_stop_unless_it_is_to_be_left_out(net):
    data = batches(8)
    data[0][1][0] = math.nan
    with pytest.raises(NotFiniteError, match="train/loss is nan at step 1, and so is '0.weight' in the model"):
        start()(net, data, **QUIET)


def test_a_batch_that_is_left_out_leaves_no_trace_in_running_statistics():
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))
    data = batches(8, 8, 8)
    data[1][0][0, 0] = math.nan
    with pytest.warns(UserWarning, match="step 2 is left out"):
        result = start()(net, data, on_nan="skip", **QUIET)
    assert torch.isfinite(net[0].running_mean).all()
    assert int(net[0].num_batches_tracked) == 2
    assert result.metrics["train/skipped_steps"] == 1


def test_a_validation_that_is_not_finite_is_not_hidden_by_leaving_steps_out(net):
    run = start()
    run.validate_step(lambda batch, model: {"loss": nn.functional.mse_loss(model(batch[0]), batch[1])})
    spoiled = batches(8, 8)
    spoiled[1][1][0] = math.nan
    result = run(net, batches(8), spoiled, on_nan="skip", **QUIET)
    assert math.isnan(result.metrics["val/loss"])
    assert result.best is None
