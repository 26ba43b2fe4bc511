"""Schedules that go on after a restart, in a run of another length too."""

import io
import math

import pytest
import torch
from torch.optim import SGD, AdamW

from blowtorch.builtin.curves import Cosine, Linear, OneCycle, Polynomial, Warmup, WarmupStableDecay
from blowtorch.builtin.drops import Exponential, Milestones, Plateau, Step
from tests.core.builtin.scheduler_steps import TOTAL, first_rates, make_optimizer, rates_used


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


BUILT = {
    "cosine": lambda optimizer, total: Cosine().scheduler_build(optimizer, total, None),
    "cosine with options": lambda optimizer, total: Cosine("10 steps", 0.1).scheduler_build(optimizer, total, None),
    "linear": lambda optimizer, total: Linear("10 steps", 0.1).scheduler_build(optimizer, total, None),
    "warmup": lambda optimizer, total: Warmup("60 steps").scheduler_build(optimizer, total, None),
    "one_cycle": lambda optimizer, total: OneCycle().scheduler_build(optimizer, total),
    "linear without options": lambda optimizer, total: Linear().scheduler_build(optimizer, total, None),
    "polynomial": lambda optimizer, total: Polynomial(0.9).scheduler_build(optimizer, total, None),
    "polynomial with options": (
        lambda optimizer, total: Polynomial(2, "10 steps", 0.1).scheduler_build(optimizer, total, None)
    ),
    "warmup_stable_decay": lambda optimizer, total: WarmupStableDecay("10 steps").scheduler_build(
        optimizer, total, None
    ),
    "exponential": lambda optimizer, total: Exponential(0.9).scheduler_build(optimizer).scheduler,
    "step": lambda optimizer, total: Step("30 steps").scheduler_build(optimizer).scheduler,
    "milestones": lambda optimizer, total: Milestones(["10 steps", "38 steps"]).scheduler_build(optimizer).scheduler,
}


def resume(build, total, saved):
    """What a restart does: everything anew, then the state put back, optimizers first."""
    optimizer = make_optimizer((0.1, 0.02), SGD, momentum=0.9)
    scheduler = build(optimizer, total)
    state = through_a_file(saved)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return optimizer, scheduler


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize("step", [0, 1, 37, 99])
def test_a_restart_goes_on_bit_for_bit(name, step):
    whole = make_optimizer((0.1, 0.02), SGD, momentum=0.9)
    expected = rates_used(whole, BUILT[name](whole, TOTAL))
    optimizer = make_optimizer((0.1, 0.02), SGD, momentum=0.9)
    scheduler = BUILT[name](optimizer, TOTAL)
    used = rates_used(optimizer, scheduler, step)
    saved = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    optimizer, scheduler = resume(BUILT[name], TOTAL, saved)
    used += rates_used(optimizer, scheduler, TOTAL - step)
    assert used == expected
    assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in whole.param_groups]


def test_a_restart_keeps_what_plateau_has_seen():
    values = [1.0, 0.9, 0.95, 0.95, 0.95, 0.95, 0.95, 0.8, 0.9, 0.9, 0.9, 0.9]
    whole = make_optimizer()
    schedule = Plateau(patience=1).scheduler_build(whole)
    for value in values:
        schedule.scheduler.step(value)
    for cut in range(len(values)):
        optimizer = make_optimizer()
        first = Plateau(patience=1).scheduler_build(optimizer)
        for value in values[:cut]:
            first.scheduler.step(value)
        state = through_a_file({"optimizer": optimizer.state_dict(), "scheduler": first.scheduler.state_dict()})
        optimizer = make_optimizer()
        second = Plateau(patience=1).scheduler_build(optimizer)
        optimizer.load_state_dict(state["optimizer"])
        second.scheduler.load_state_dict(state["scheduler"])
        for value in values[cut:]:
            second.scheduler.step(value)
        assert optimizer.param_groups[0]["lr"] == whole.param_groups[0]["lr"]
        assert second.scheduler.state_dict() == schedule.scheduler.state_dict()


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize(("step", "length"), [(50, 200), (100, 200), (50, 80)])
def test_a_run_that_is_given_another_length_goes_over_to_the_curve_of_that_length(name, step, length):
    """Without this, torch's cosine would rise again after its old end, and its one-cycle would raise."""
    whole = make_optimizer((0.1, 0.02), SGD, momentum=0.9)
    expected = rates_used(whole, BUILT[name](whole, length), length)
    optimizer = make_optimizer((0.1, 0.02), SGD, momentum=0.9)
    scheduler = BUILT[name](optimizer, TOTAL)
    rates_used(optimizer, scheduler, step)
    saved = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    optimizer, scheduler = resume(BUILT[name], length, saved)
    later = rates_used(optimizer, scheduler, length - step)
    for rates, right in zip(later, expected[step:], strict=True):
        assert rates == pytest.approx(right, rel=1e-9, abs=1e-12)


def test_a_restart_with_other_options_goes_over_to_their_curve():
    optimizer = make_optimizer()
    scheduler = Polynomial(1).scheduler_build(optimizer, TOTAL, None)
    rates_used(optimizer, scheduler, 50)
    saved = scheduler.state_dict()
    again = Polynomial(2).scheduler_build(optimizer, TOTAL, None)
    again.load_state_dict(through_a_file(saved))
    assert first_rates(optimizer, again, 50) == pytest.approx([0.1 * (0.5 - step / 100) ** 2 for step in range(50)])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Exponential(0.5), Exponential(0.9)),
        (Step("10 steps", 0.5), Step("1 step", 0.9)),
        (Milestones(["10 steps"], 0.5), Milestones([f"{step} steps" for step in range(20, 60)], 0.9)),
    ],
    ids=["exponential", "step", "milestones"],
)
def test_a_restart_with_other_drops_goes_on_from_the_rate_that_it_has(before, after):
    optimizer = make_optimizer()
    scheduler = before.scheduler_build(optimizer).scheduler
    rates_used(optimizer, scheduler, 20)
    rate = optimizer.param_groups[0]["lr"]
    saved = through_a_file({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    optimizer = make_optimizer()
    scheduler = after.scheduler_build(optimizer).scheduler
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    assert first_rates(optimizer, scheduler, 10) == pytest.approx([rate * 0.9**step for step in range(10)])


def test_a_rate_that_is_a_tensor_stays_that_tensor_over_a_restart():
    optimizer = make_optimizer((torch.tensor(0.1),), AdamW)
    scheduler = Cosine().scheduler_build(optimizer, TOTAL, None)
    rates_used(optimizer, scheduler, 50)
    again = Cosine().scheduler_build(optimizer, 2 * TOTAL, None)
    rate = optimizer.param_groups[0]["lr"]
    again.load_state_dict(scheduler.state_dict())
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)) / 2)


def test_a_restart_takes_the_options_of_plateau_as_they_are_now():
    optimizer = make_optimizer()
    state = Plateau(patience=50, factor=0.5).scheduler_build(optimizer).scheduler.state_dict()
    again = Plateau(patience=3, factor=0.1, floor=0.5).scheduler_build(optimizer).scheduler
    again.load_state_dict(state)
    assert (again.patience, again.factor, again.min_lrs) == (3, 0.1, [0.05])
