"""Learning rates that drop: by steps, by epochs, and where validations bring nothing."""

import math
from typing import Any

import pytest
from torch.optim.lr_scheduler import (
    ExponentialLR,
    MultiStepLR,
    ReduceLROnPlateau,
    StepLR,
)

from blowtorch import Interval, Schedule
from blowtorch.builtin.drops import Exponential, Milestones, Plateau, Step
from tests.core.builtin.scheduler_steps import make_optimizer, rates_used

DROPS: dict[str, tuple[Any, Any, str]] = {
    "exponential by steps": (Exponential(0.9, "1 step"), lambda optimizer: ExponentialLR(optimizer, 0.9), "1 step"),
    "exponential by epochs": (Exponential(0.9), lambda optimizer: ExponentialLR(optimizer, 0.9), "1 epoch"),
    "exponential by two": (Exponential(0.9, "2 epochs"), lambda optimizer: ExponentialLR(optimizer, 0.9), "2 epochs"),
    "step by steps": (Step("1k steps"), lambda optimizer: StepLR(optimizer, 1000), "1 step"),
    "step by epochs": (Step("30 epochs", 0.5), lambda optimizer: StepLR(optimizer, 30, 0.5), "1 epoch"),
    "milestones by steps": (
        Milestones(["5 steps", "50 steps"]), lambda optimizer: MultiStepLR(optimizer, [5, 50]), "1 step"
    ),
    "milestones by epochs": (
        Milestones(["30 epochs", "60 epochs"], 0.3), lambda optimizer: MultiStepLR(optimizer, [30, 60], 0.3), "1 epoch"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DROPS)
def test_drops_are_those_of_torch_and_say_when_they_are_stepped(name):
    scheduler, make_scheduler, every = DROPS[name]
    mine, other = make_optimizer((0.1, 0.003)), make_optimizer((0.1, 0.003))
    schedule = scheduler.scheduler_build(mine)
    assert schedule.every == Interval.parse(every)
    assert schedule.metric is None
    assert rates_used(mine, schedule.scheduler) == rates_used(other, make_scheduler(other))


def test_plateau_lowers_the_rate_after_validations_that_bring_nothing():
    optimizer = make_optimizer((0.1, 0.02))
    schedule = Plateau(factor=0.5, patience=1, floor=0.2).scheduler_build(optimizer)
    assert isinstance(schedule, Schedule)
    assert schedule.metric == "val/loss"
    used = []
    for loss in (1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9):
        used.append([group["lr"] for group in optimizer.param_groups])
        schedule.scheduler.step(loss)
    assert [rates[0] for rates in used] == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.004])


def test_plateau_is_that_of_torch():
    mine, other = make_optimizer(), make_optimizer()
    values = [math.sin(step) + step / 20 for step in range(60)]
    schedule = Plateau("val/accuracy", 0.3, patience=2, smaller_is_better=False).scheduler_build(mine)
    theirs = ReduceLROnPlateau(other, mode="max", factor=0.3, patience=2)
    for value in values:
        schedule.scheduler.step(value)
        theirs.step(value)
        assert mine.param_groups[0]["lr"] == other.param_groups[0]["lr"]
    assert schedule.metric == "val/accuracy"
    assert mine.param_groups[0]["lr"] < 0.1
