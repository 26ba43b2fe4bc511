"""What a batch weighs: its samples, what the step says, or nothing; beside loops by hand."""

import signal

import pytest
import torch
from torch import nn

from blowtorch import BlowtorchWarning, Run, ScriptError
from tests.core.small_runs import QUIET, assert_same, weights

VOCABULARY = 7


def texts(*lengths):
    """Token ids and targets of texts, which are padded to the longest."""
    generator = torch.Generator().manual_seed(sum(lengths))
    x, y = (torch.randint(0, VOCABULARY, (len(lengths), max(lengths)), generator=generator) for _ in range(2))
    for row, length in enumerate(lengths):
        y[row, length:] = -100
    return x, y


BATCHES = [texts(3, 9), texts(12, 2, 5), texts(1, 1), texts(6), texts(2, 2, 2)]
SAMPLES, TOKENS = [2, 3, 2, 1, 3], [12, 19, 2, 6, 6]


def language_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY))


def loss_of(model, batch, reduction="mean"):
    x, y = batch
    return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100, reduction=reduction)


def count_tokens(batch):
    return (batch[1] != -100).sum()


def by_hand(batches, accumulate, epochs=2, clip=None, dtype=None):
    """Sums over the tokens of a group, divided by their number."""
    model = language_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(epochs):
        for first in range(0, len(batches), accumulate):
            group = batches[first : first + accumulate]
            optimizer.zero_grad()
            for batch in group:
                with torch.autocast("cpu", dtype, enabled=dtype is not None):
                    loss = loss_of(model, batch, "sum")
                (loss / sum(map(count_tokens, group))).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    return model


def start(step, validates=False):
    run = Run(random_seed=0, command_line=[])
    run.train_step(step)
    if validates:
        run.validate_step(step)
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.5))
    return run


def weighted(batch, model):
    return {"loss": loss_of(model, batch), "weight": count_tokens(batch)}


@pytest.mark.parametrize("accumulate", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize(
    ("options", "hand", "tolerance"),
    [
        ({}, {}, 1e-6),
        ({"clip_grad_norm": 0.1}, {"clip": 0.1}, 1e-6),
        ({"precision": "fp16"}, {"dtype": torch.float16}, 2e-3),
    ],
    ids=str,
)
def test_a_returned_weight_makes_the_gradient_of_a_group_that_of_all_its_tokens(accumulate, options, hand, tolerance):
    model, seen = language_model(), []
    run = start(weighted)
    run.on("run_end")(lambda state: seen.append(state.samples))
    run(model, BATCHES, accumulate=accumulate, max_epochs=2, **options, **QUIET)
    for mine, other in zip(weights(model), weights(by_hand(BATCHES, accumulate, **hand)), strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
    assert seen == [2 * sum(SAMPLES)]


@pytest.mark.parametrize("weight", ["tensor", "number", "fraction"])
def test_means_are_weighted_by_it_in_training_epochs_and_validations(weight, events):
    model, losses = language_model(), [loss_of(language_model(), batch).item() for batch in BATCHES]

    def step(batch, model):
        tokens = count_tokens(batch)
        kinds = {"tensor": tokens, "number": int(tokens), "fraction": int(tokens) / 100}
        return {"loss": loss_of(model, batch), "weight": kinds[weight]}

    run = start(step, validates=True)
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.0))
    result = run(model, BATCHES, BATCHES, log_every="2 steps", **QUIET)

    def mean(first, last):
        group = list(zip(losses, TOKENS, strict=True))[first:last]
        return pytest.approx(
            sum(loss * tokens for loss, tokens in group) / sum(tokens for _, tokens in group), rel=1e-6
        )

    lines = [event["metrics"] for event in events(result, "metrics")]
    assert [line["train/loss"] for line in lines if "train/loss" in line] == [mean(0, 2), mean(2, 4), mean(4, 5)]
    assert result.metrics["train_epoch/loss"] == result.metrics["val/loss"] == mean(0, 5)
    assert run.evaluate(model, BATCHES)["val/loss"] == mean(0, 5)
    assert "train/weight" not in result.metrics


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), torch.ones(2), "ten", None, 10**400])
def test_a_weight_is_a_finite_number(weight):
    run = start(lambda batch, model: {"loss": loss_of(model, batch), "weight": weight})
    with pytest.raises(ScriptError, match="returned 'weight' as .*; it is what the batch weighs in means and in"):
        run(language_model(), BATCHES, **QUIET)


class Counting(torch.optim.Adam):
    """Counts its steps."""

    steps = 0

    def step(self, closure=None):
        self.steps += 1
        return super().step(closure)


def left_out_by_hand(batches, bad, accumulate, epochs):
    model = language_model()
    optimizer, steps = Counting(model.parameters(), lr=0.1), 0
    for _ in range(epochs):
        for first in range(0, len(batches), accumulate):
            places = [place for place in range(first, min(first + accumulate, len(batches))) if place not in bad]
            steps += 1
            if not places:
                continue
            optimizer.zero_grad()
            for place in places:
                total = sum(SAMPLES[place] for place in places)
                (loss_of(model, batches[place]) * SAMPLES[place] / total).backward()
            optimizer.step()
    return model, optimizer.steps, steps


def leaving_out(bad, made=None, stop_at=None, validates=True):
    def step(batch, model):
        place = next(place for place, known in enumerate(BATCHES) if known is batch)
        return None if place in bad else {"loss": loss_of(model, batch)}

    run = start(step, validates)

    @run.configure_optimizers
    def configure_optimizers(model):
        optimizer = Counting(model.parameters(), lr=0.1)
        if made is not None:
            made.append(optimizer)
        return optimizer

    @run.on("train_step_end")
    def stop(state):
        if state.step == stop_at:
            signal.raise_signal(signal.SIGTERM)

    return run


CONSTANT = {"exponential": {"factor": 1 - 1e-9, "every": "1 step"}}


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("bad", [{1}, {0, 1}, {2, 3, 4}, {0, 4}])
@pytest.mark.parametrize("options", [{}, {"clip_grad_norm": 100.0}, {"scheduler": CONSTANT}], ids=str)
def test_a_step_that_returns_none_leaves_its_batch_out(bad, accumulate, options):
    model, made, seen = language_model(), [], []
    run = leaving_out(bad, made, validates=False)
    run.on("run_end")(lambda state: seen.append(state.samples))
    result = run(model, BATCHES, accumulate=accumulate, max_epochs=2, **options, **QUIET)
    twin, num_stepped, num_steps = left_out_by_hand(BATCHES, bad, accumulate, epochs=2)
    for mine, other in zip(weights(model), weights(twin), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert (made[0].steps, result.step) == (num_stepped, num_steps)
    assert result.metrics["train_epoch/left_out_batches"] == len(bad)
    assert seen == [2 * sum(size for place, size in enumerate(SAMPLES) if place not in bad)]


def test_a_validation_leaves_batches_out_too():
    model = language_model()
    metrics = leaving_out({1, 3}).evaluate(model, BATCHES)
    sizes = {0: 2, 2: 2, 4: 3}
    mean = sum(loss_of(model, BATCHES[place]).item() * size for place, size in sizes.items()) / 7
    assert metrics == {"val/loss": pytest.approx(mean, rel=1e-6), "val/left_out_batches": 2.0}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_leaves_batches_out_goes_on_exactly(events, accumulate):
    def train(folder, stop_at=None):
        model = language_model()
        options = {"accumulate": accumulate, "max_epochs": 2, "log_every": "2 steps", "scheduler": "cosine"}
        run = leaving_out({0, 1, 4}, stop_at=stop_at)
        return run(model, BATCHES, BATCHES, resume="auto", save_path=folder, **options, **QUIET), weights(model)

    straight, expected = train("straight")
    lines = [{**event, "time": 0} for event in events(straight, "metrics")]
    for stop_at in (1, 2, 4):
        train(f"stop-{stop_at}", stop_at)
        resumed, trained = train(f"stop-{stop_at}")
        assert_same(trained, expected)
        assert [{**event, "time": 0} for event in events(resumed, "metrics")] == lines


def test_a_batch_that_weighs_nothing_is_left_out():
    """A mean over no tokens is NaN, which would spoil the weights."""
    empty = (torch.zeros(2, 3, dtype=torch.long), torch.full((2, 3), -100))
    for accumulate in (1, 2, 3):
        model = language_model()
        result = start(weighted)(model, [BATCHES[0], empty, BATCHES[1]], accumulate=accumulate, **QUIET)
        groups = {1: ([0], [], [1]), 2: ([0], [1]), 3: ([0, 1],)}[accumulate]
        twin = language_model()
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.5)
        for group in filter(None, groups):
            optimizer.zero_grad()
            total = sum(count_tokens(BATCHES[place]) for place in group)
            (sum(loss_of(twin, BATCHES[place], "sum") for place in group) / total).backward()
            optimizer.step()
        for mine, other in zip(weights(model), weights(twin), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
        assert (result.step, result.metrics["train_epoch/left_out_batches"]) == (len(groups), 1)


def test_what_is_logged_in_a_batch_that_is_left_out_counts_where_no_mean_is_taken():
    run = Run(random_seed=0, command_line=[])

    @run.train_step
    def step(batch, model, log):
        is_bad = batch.sum() > 3
        log({"largest": batch.max()}, reduce="max")
        log({"bad": is_bad}, reduce="sum")
        log({"mean": batch.mean()})
        return None if is_bad else model(batch).mean()

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    batches = [torch.full((2, 1), value) for value in (1.0, 5.0, 1.5)]
    metrics = run(nn.Linear(1, 1), batches, **QUIET).metrics
    assert metrics["train/largest"] == 5 and metrics["train/bad"] == 1 and metrics["train/mean"] == 1.25
    assert metrics["train/left_out_batches"] == 1


def test_a_step_that_forgets_to_return_anything_says_so_at_once():
    def forgetful(batch, model):
        loss_of(model, batch)

    with pytest.raises(ScriptError, match="forgetful returned None; expected a scalar tensor or a dict"):
        start(forgetful)(language_model(), BATCHES, **QUIET)
    with pytest.raises(ScriptError, match="forgetful returned None; expected a scalar tensor or a dict"):
        start(forgetful, validates=True).evaluate(language_model(), BATCHES)


def test_an_epoch_in_which_nothing_is_left_is_warned_of_once():
    run = start(lambda batch, model: loss_of(model, batch) if len(batch) > 2 else None)
    with pytest.warns(BlowtorchWarning, match="left out every batch of epoch 1, so nothing was trained") as caught:
        result = run(language_model(), BATCHES, max_epochs=2, **QUIET)
    assert (len(caught), result.status, result.step) == (1, "finished", 10)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("returns", [lambda loss: loss, lambda loss: {"loss": loss}])
@pytest.mark.parametrize("log_every", ["1 step", "3 steps"])
def test_a_batch_of_no_samples_counts_for_nothing(accumulate, returns, log_every):
    def parts():
        return [(x[:, :1].float(), y[:, :1].float()) for x, y in BATCHES]

    def step(batch, model):
        x, y = batch
        return returns(nn.functional.mse_loss(model(x), y))  # NaN where there are no rows

    empty = (torch.zeros(0, 1), torch.zeros(0, 1))
    options = {"accumulate": accumulate, "log_every": log_every, **QUIET}
    trained = []
    for batches in (parts(), [empty] * accumulate + parts()[:4] + [empty] * accumulate + parts()[4:]):
        torch.manual_seed(0)
        model = nn.Linear(1, 1)
        result = start(step, validates=True)(model, batches, batches, **options)
        assert all(value == value for value in result.metrics.values())
        trained.append((weights(model), result.metrics["train_epoch/loss"], result.metrics["val/loss"]))
        assert "train/left_out_batches" not in result.metrics
    assert_same(trained[0][0], trained[1][0])
    assert trained[0][1:] == trained[1][1:]


def test_a_run_whose_batches_have_no_samples_gives_no_wrong_advice():
    run = start(lambda batch, model: nn.functional.mse_loss(model(batch), batch), validates=True)
    model = nn.Linear(1, 1)
    before = weights(model)
    result = run(model, [torch.zeros(0, 1)] * 3, [torch.zeros(0, 1)], **QUIET)
    assert (result.status, result.step, result.metrics) == ("finished", 3, {})
    assert_same(weights(model), before)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_losses_that_are_sums_add_up_in_a_group_and_are_recorded_for_each_sample(accumulate):
    def step(batch, model):
        loss = (model(batch) - 1).square().sum()
        return {"loss": loss, "largest": batch.max(), "sizes": float(len(batch))}

    def train(batches, **options):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        run = start(step, validates=True)
        run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=1e-3))
        result = run(model, batches, batches, loss_is="sum", max_epochs=2, **options, **QUIET)
        assert run.evaluate(model, batches, loss_is="sum")["val/loss"] == result.metrics["val/loss"]
        return model, result

    parts = [torch.randn(size, 3, generator=torch.Generator().manual_seed(size)) for size in (4, 2, 5, 3, 1)]
    joined = [torch.cat(parts[first : first + accumulate]) for first in range(0, 5, accumulate)]
    (mine, small), (other, large) = train(parts, accumulate=accumulate), train(joined)
    assert small.step == large.step
    for one, another in zip(weights(mine), weights(other), strict=True):
        torch.testing.assert_close(one, another, rtol=1e-5, atol=1e-6)
    for name in ("train_epoch/loss", "val/loss"):
        assert small.metrics[name] == pytest.approx(large.metrics[name], rel=1e-5)
    whole = torch.cat(parts)
    assert small.metrics["val/loss"] == pytest.approx((mine(whole) - 1).square().mean().item(), rel=1e-5)
    assert small.metrics["train_epoch/sizes"] == pytest.approx(sum(len(part) ** 2 for part in parts) / 15)


def test_a_sum_over_tokens_is_recorded_for_each_token():
    def step(batch, model):
        return {"nll": loss_of(model, batch, "sum"), "weight": count_tokens(batch)}

    run, model = start(step, validates=True), language_model()
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.0))
    result = run(model, BATCHES, BATCHES, loss_is="sum", **QUIET)
    mean = sum(loss_of(model, batch, "sum").item() for batch in BATCHES) / sum(TOKENS)
    assert result.metrics["train_epoch/nll"] == pytest.approx(mean, rel=1e-6)
    assert result.metrics["val/nll"] == pytest.approx(mean, rel=1e-6)


def test_a_step_that_returns_a_weight_now_and_then_means_the_samples_where_it_returns_none():
    def train(otherwise):
        model, numbers = language_model(), iter(range(3 * len(BATCHES)))

        def step(batch, model):
            weight = {"weight": count_tokens(batch)} if next(numbers) % 3 else otherwise(batch)
            return {"loss": loss_of(model, batch), **weight}

        start(step)(model, BATCHES, accumulate=2, max_epochs=3, **QUIET)
        return weights(model)

    assert_same(train(lambda batch: {}), train(lambda batch: {"weight": len(batch[0])}))
