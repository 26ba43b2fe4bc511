"""Several batches for one step: the gradient is that of one large batch."""

import pytest
import torch
from torch import nn

from blowtorch import ScriptError
from tests.core.training.gradient_runs import QUIET, batches, copied, sgd, start, weights


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("sizes", [(8, 8, 8), (8, 8, 3), (1, 7, 4), (8, 8, 8, 8, 2)])
def test_a_group_is_the_large_batch_whatever_the_sizes_of_its_batches(net, sizes, is_known):
    """The weights of 3 and then 2 batches, beside those of the batches joined, and a loader of unknown length."""
    twin, parts = copied(net), batches(*sizes)
    joined = [tuple(map(torch.cat, zip(*parts[start : start + 3], strict=True))) for start in range(0, len(parts), 3)]
    result = start()(net, parts if is_known else Unsized(parts), max_epochs=4, accumulate=3, **QUIET)
    assert start()(twin, joined, max_epochs=4, **QUIET).step == result.step == 4 * len(joined)
    for mine, other in zip(weights(net), weights(twin), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


class Unsized:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_a_returned_batch_size_weighs_within_a_group(net):
    twin, parts = copied(net), batches(6, 2)
    run = start()

    @run.train_step
    def step(batch, model):
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        return {"loss": loss, "batch_size": 3 if len(batch[0]) == 6 else 1}

    run(net, parts, accumulate=2, **QUIET)
    optimizer = sgd(twin)
    (
        sum(weight * nn.functional.mse_loss(twin(x), y) for weight, (x, y) in zip((3, 1), parts, strict=True)) / 4
    ).backward()
    optimizer.step()
    for mine, other in zip(weights(net), weights(twin), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_step_is_one_group_and_its_batches_and_samples_are_all_counted(net, events):
    seen = []
    run = start()
    run.on("train_step_end")(lambda state: seen.append((state.step, state.batch, state.samples)))
    result = run(net, batches(8, 8, 8, 8, 2), accumulate=2, log_every="2 steps", **QUIET)
    assert seen == [(1, 2, 16), (2, 4, 32), (3, 5, 34)]
    assert [event["step"] for event in events(result, "metrics")] == [2, 3]


def test_a_schedule_counts_groups_and_not_batches(net):
    run = start(lambda model: torch.optim.SGD(model.parameters(), lr=1.0))
    totals = []
    run.on("run_start")(lambda state: totals.append((state.steps_per_epoch, state.total_steps)))
    run(net, batches(*[8] * 5), accumulate=2, max_epochs=2, scheduler="cosine", **QUIET)
    assert totals == [(3, 6)]


def test_a_run_ends_at_a_group_and_max_samples_is_a_limit(net):
    result = start()(net, batches(*[8] * 6), accumulate=2, max_samples=20, **QUIET)
    assert (result.status, result.step) == ("finished", 2)
    assert start()(net, batches(*[8] * 6), max_samples=20, **QUIET).step == 3
    assert start()(net, batches(*[8] * 3), max_samples=40, **QUIET).epoch == 2


@pytest.mark.parametrize("kind", ["train_step", "train_epoch"])
def test_what_drives_itself_decides_itself_how_much_it_accumulates(net, kind):
    run = start()
    if kind == "train_step":
        run.train_step(lambda batch, optimizers: None)
    else:
        run.train_epoch(lambda data_loader: None)
    with pytest.raises(
        ScriptError, match=r"accumulate is 2, but <lambda> steps the optimizers itself.*leave the option"
    ):
        run(net, batches(8), accumulate=2, **QUIET)


def test_what_a_group_logs_at_its_end_is_weighted_by_the_group(net, events):
    run = start()
    run.on("train_step_end")(lambda log, step: log({"number": float(step)}))
    result = run(net, batches(8, 8, 5), accumulate=2, log_every="5 steps", **QUIET)
    assert result.metrics["train_epoch/number"] == pytest.approx((16 * 1 + 5 * 2) / 21)
