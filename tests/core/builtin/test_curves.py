"""Learning-rate schedules by name: their curves, over whole runs, beside those of torch."""

import math

import pytest
from torch.optim import SGD, Adadelta, Adam, AdamW
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
)

from blowtorch.builtin.curves import Cosine, Linear, OneCycle, Polynomial, Warmup, WarmupStableDecay
from tests.core.builtin.scheduler_steps import TOTAL, first_rates, make_optimizer, rates_used


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_cosine_without_options_is_that_of_torch(make):
    mine, other = make_optimizer((0.1, 0.003), make), make_optimizer((0.1, 0.003), make)
    built = Cosine().scheduler_build(mine, TOTAL, None)
    assert rates_used(mine, built) == rates_used(other, CosineAnnealingLR(other, TOTAL))


def test_cosine_follows_its_formula_with_warm_up_and_floor():
    optimizer = make_optimizer((0.1, 0.02))
    used = rates_used(optimizer, Cosine(warmup="20 steps", floor=0.05).scheduler_build(optimizer, TOTAL, None))
    for step, rates in enumerate(used):
        if step < 20:
            factor = 0.01 + 0.99 * step / 20
        else:
            factor = 0.05 + 0.95 * (1 + math.cos(math.pi * (step - 20) / 80)) / 2
        assert rates == pytest.approx([0.1 * factor, 0.02 * factor], rel=1e-12)
    assert used[20] == [0.1, 0.02]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.001])


def test_cosine_with_a_floor_agrees_with_that_of_torch():
    mine, other = make_optimizer(), make_optimizer()
    built = Cosine(floor=0.1).scheduler_build(mine, TOTAL, None)
    assert first_rates(mine, built) == pytest.approx(first_rates(other, CosineAnnealingLR(other, TOTAL, eta_min=0.01)))


def test_linear_goes_to_nothing():
    optimizer = make_optimizer((0.1, 0.02))
    used = rates_used(optimizer, Linear().scheduler_build(optimizer, TOTAL, None))
    for step, rates in enumerate(used):
        assert rates == pytest.approx([0.1 * (1 - step / TOTAL), 0.02 * (1 - step / TOTAL)], rel=1e-12)
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0]


@pytest.mark.parametrize("floor", [0.0, 0.25, 1.0])
def test_linear_without_a_warm_up_is_that_of_torch(floor):
    mine, other = make_optimizer((0.1, 0.003)), make_optimizer((0.1, 0.003))
    built = Linear(floor=floor).scheduler_build(mine, TOTAL, None)
    theirs = LinearLR(other, start_factor=1.0, end_factor=floor, total_iters=TOTAL)
    assert rates_used(mine, built) == rates_used(other, theirs)


@pytest.mark.parametrize("power", [0.5, 1, 2])
def test_polynomial_without_warm_up_and_floor_is_that_of_torch(power):
    mine, other = make_optimizer((0.1, 0.003), AdamW), make_optimizer((0.1, 0.003), AdamW)
    built = Polynomial(power).scheduler_build(mine, TOTAL, None)
    assert rates_used(mine, built) == rates_used(other, PolynomialLR(other, TOTAL, power))


def test_polynomial_follows_its_formula_with_warm_up_and_floor():
    optimizer = make_optimizer()
    built = Polynomial(2, warmup="20 steps", floor=0.1).scheduler_build(optimizer, TOTAL, None)
    used = first_rates(optimizer, built)
    assert used[:20] == pytest.approx([0.1 * (0.01 + 0.99 * step / 20) for step in range(20)])
    assert used[20:] == pytest.approx([0.1 * (0.1 + 0.9 * (1 - step / 80) ** 2) for step in range(80)])


@pytest.mark.parametrize("decay", [0.2, "20 steps", "4 epochs"])
def test_a_stable_rate_stands_between_warm_up_and_decay(decay):
    optimizer = make_optimizer()
    built = WarmupStableDecay("2 epochs", decay, floor=0.5).scheduler_build(optimizer, TOTAL, 5)
    used = first_rates(optimizer, built)
    assert used[:10] == pytest.approx([0.1 * (0.01 + 0.99 * step / 10) for step in range(10)])
    assert used[10:81] == [0.1] * 71
    assert used[80:] == pytest.approx([0.1 * (1 - 0.5 * step / 20) for step in range(20)])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize(("shape", "half"), [("linear", 0.5), ("cosine", 0.5), ("square_root", 1 - math.sqrt(0.5))])
def test_a_decay_has_a_shape(shape, half):
    optimizer = make_optimizer()
    built = WarmupStableDecay(decay="40 steps", shape=shape).scheduler_build(optimizer, TOTAL, None)
    used = first_rates(optimizer, built)
    assert used[60] == 0.1
    assert used[80] == pytest.approx(0.1 * half)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


def test_a_warm_up_stable_decay_agrees_with_three_schedulers_of_torch_in_a_row():
    mine, other = make_optimizer(), make_optimizer()
    built = WarmupStableDecay("10 steps", "30 steps", floor=0.1).scheduler_build(mine, TOTAL, None)
    parts = [LinearLR(other, 0.01, 1.0, 10), LinearLR(other, 1.0, 1.0, 60), LinearLR(other, 1.0, 0.1, 30)]
    theirs = SequentialLR(other, parts, [10, 70])
    assert first_rates(mine, built) == pytest.approx(first_rates(other, theirs))


def test_linear_rises_first_where_a_warm_up_is_asked_for():
    optimizer = make_optimizer()
    used = first_rates(optimizer, Linear(warmup="2 epochs").scheduler_build(optimizer, TOTAL, 5))
    assert used[:10] == pytest.approx([0.1 * (0.01 + 0.99 * step / 10) for step in range(10)])
    assert used[10:] == pytest.approx([0.1 * (1 - step / 90) for step in range(90)])


def test_warmup_rises_and_stays():
    optimizer = make_optimizer()
    built = Warmup("10 steps", start_factor=0.2).scheduler_build(optimizer, None, None)
    used = first_rates(optimizer, built, 50)
    assert used[:10] == pytest.approx([0.1 * (0.2 + 0.8 * step / 10) for step in range(10)])
    assert used[10:] == [0.1] * 40


def test_warmup_agrees_with_that_of_torch():
    mine, other = make_optimizer(), make_optimizer()
    built = Warmup("10 steps", start_factor=0.3).scheduler_build(mine, TOTAL, None)
    theirs = LinearLR(other, start_factor=0.3, total_iters=10)
    assert first_rates(mine, built) == pytest.approx(first_rates(other, theirs))


def test_the_first_step_may_have_no_rate_at_all():
    optimizer = make_optimizer()
    used = first_rates(optimizer, Warmup("4 steps", start_factor=0).scheduler_build(optimizer, TOTAL, None), 5)
    assert used == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])


@pytest.mark.parametrize(("make", "options"), [(SGD, {"momentum": 0.9}), (Adam, {})])
def test_one_cycle_is_that_of_torch(make, options):
    mine, other = make_optimizer((0.1, 0.02), make, **options), make_optimizer((0.1, 0.02), make, **options)
    built = OneCycle().scheduler_build(mine, TOTAL)
    assert rates_used(mine, built) == rates_used(other, OneCycleLR(other, [0.1, 0.02], total_steps=TOTAL))
    for key in ("momentum", "betas"):
        assert mine.param_groups[0].get(key) == other.param_groups[0].get(key)


def test_one_cycle_takes_its_own_highest_rate():
    optimizer = make_optimizer((0.1, 0.02))
    used = rates_used(optimizer, OneCycle(max_rate=1, rise=0.5).scheduler_build(optimizer, TOTAL))
    assert max(used) == pytest.approx([1, 1], rel=1e-2)
    assert used.index(max(used)) in (49, 50)


@pytest.mark.parametrize("make", [SGD, Adadelta])
def test_one_cycle_gives_no_momentum_to_an_optimizer_without(make):
    optimizer = make_optimizer(make=make)
    rates_used(optimizer, OneCycle().scheduler_build(optimizer, TOTAL))
    assert not optimizer.param_groups[0].get("momentum")


@pytest.mark.parametrize("total", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "scheduler",
    [Cosine(), Cosine(floor=0.1), Linear(), OneCycle(), Polynomial(), WarmupStableDecay()],
    ids=["cosine", "with a floor", "linear", "one cycle", "polynomial", "warm-up, stable, decay"],
)
def test_very_short_runs_can_be_stepped_to_their_end(scheduler, total):
    optimizer = make_optimizer()
    arguments = (total,) if isinstance(scheduler, OneCycle) else (total, None)
    assert len(rates_used(optimizer, scheduler.scheduler_build(optimizer, *arguments), total)) == total


def test_steps_beyond_the_end_keep_the_floor():
    """A loader may turn out longer than it said."""
    optimizer = make_optimizer()
    used = first_rates(optimizer, Linear(floor=0.1).scheduler_build(optimizer, 10, None), 15)
    assert used[10:] == pytest.approx([0.01] * 5)
