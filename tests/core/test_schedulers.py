"""Learning-rate schedules by name: their curves, over whole runs, and what a restart does to them."""

import io
import math

import pytest
import torch
from torch.optim import SGD, Adadelta, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, ReduceLROnPlateau

from blowtorch import BlowtorchWarning, Interval, OptionError, Schedule
from blowtorch.builtin.curves import Cosine, Linear, OneCycle, Polynomial, Warmup, WarmupStableDecay
from blowtorch.builtin.drops import Exponential, Milestones, Plateau, Step

TOTAL = 100


def make_optimizer(rates=(0.1,), make=SGD, **options):
    return make([{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates], **options)


def train_one_step(optimizer):
    optimizer.zero_grad()
    sum((parameter**2).sum() for group in optimizer.param_groups for parameter in group["params"]).backward()
    optimizer.step()


def rates_used(optimizer, scheduler, steps=TOTAL):
    """The rates of each of the steps; the scheduler is stepped after all of them, the last one too."""
    used = []
    for _ in range(steps):
        used.append([float(group["lr"]) for group in optimizer.param_groups])
        train_one_step(optimizer)
        scheduler.step()
    return used


def first_rates(optimizer, scheduler, steps=TOTAL):
    return [rates[0] for rates in rates_used(optimizer, scheduler, steps)]


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---------------------------------------------------------------- curves


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


def test_linear_agrees_with_that_of_torch():
    mine, other = make_optimizer(), make_optimizer()
    built = Linear(floor=0.25).scheduler_build(mine, TOTAL, None)
    theirs = LinearLR(other, start_factor=1.0, end_factor=0.25, total_iters=TOTAL)
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


@pytest.mark.parametrize("total", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "scheduler",
    [Cosine(), Cosine(floor=0.1), Linear(), OneCycle()],
    ids=["cosine", "with a floor", "linear", "one cycle"],
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


# ---------------------------------------------------------------- restarts

BUILT = {
    "cosine": lambda optimizer, total: Cosine().scheduler_build(optimizer, total, None),
    "cosine with options": lambda optimizer, total: Cosine("10 steps", 0.1).scheduler_build(optimizer, total, None),
    "linear": lambda optimizer, total: Linear("10 steps", 0.1).scheduler_build(optimizer, total, None),
    "warmup": lambda optimizer, total: Warmup("60 steps").scheduler_build(optimizer, total, None),
    "one_cycle": lambda optimizer, total: OneCycle().scheduler_build(optimizer, total),
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


@pytest.mark.parametrize("name", ["cosine", "cosine with options", "linear", "one_cycle"])
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
    # The rate of the first step was set before, and comes back with the optimizer.
    for rates, right in zip(later[1:], expected[step + 1 :], strict=True):
        assert rates == pytest.approx(right, rel=1e-9, abs=1e-12)


def test_a_restart_takes_the_options_of_plateau_as_they_are_now():
    optimizer = make_optimizer()
    state = Plateau(patience=50, factor=0.5).scheduler_build(optimizer).scheduler.state_dict()
    again = Plateau(patience=3, factor=0.1, floor=0.5).scheduler_build(optimizer).scheduler
    again.load_state_dict(state)
    assert (again.patience, again.factor, again.min_lrs) == (3, 0.1, [0.05])


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "build",
    [
        lambda optimizer: Cosine().scheduler_build(optimizer, None, 10),
        lambda optimizer: Linear().scheduler_build(optimizer, None, 10),
        lambda optimizer: OneCycle().scheduler_build(optimizer, None),
    ],
    ids=["cosine", "linear", "one_cycle"],
)
def test_a_run_without_a_known_end_is_refused(build, request):
    name = request.node.callspec.id
    with pytest.raises(OptionError, match=f"'{name}' needs to know how many steps .* set max_steps, or max_epochs"):
        build(make_optimizer())


def test_a_warm_up_in_epochs_of_unknown_length_is_refused():
    with pytest.raises(OptionError, match="'1 epoch' cannot be counted in steps.* write it in steps"):
        Cosine(warmup="1 epoch").scheduler_build(make_optimizer(), 100, None)


def test_a_warm_up_in_epochs_counts_their_steps():
    optimizer = make_optimizer()
    assert first_rates(optimizer, Warmup("2 epochs").scheduler_build(optimizer, None, 7), 20).index(0.1) == 14


def test_a_warm_up_longer_than_the_run_is_told():
    """It is no error, since a run is often cut short to try it out."""
    optimizer = make_optimizer()
    with pytest.warns(BlowtorchWarning, match=r"a warm-up of 500 steps \(500 steps\) fills the whole run of 5 steps"):
        built = Cosine(warmup="500 steps").scheduler_build(optimizer, 5, None)
    assert first_rates(optimizer, built, 5)[-1] == pytest.approx(0.1 * (0.01 + 0.99 * 4 / 500))


@pytest.mark.parametrize("warmup", ["1k samples", "5 minutes"])
def test_a_warm_up_has_steps_or_epochs(warmup):
    with pytest.raises(OptionError, match=f"'linear', option warmup: expected steps or epochs, got '{warmup}'"):
        Linear(warmup=warmup)


@pytest.mark.parametrize("warmup", [500, "500", "500 stepps", "0 steps"])
def test_a_warm_up_that_cannot_be_read_names_its_option(warmup):
    with pytest.raises(OptionError, match="scheduler 'cosine', option warmup: "):
        Cosine(warmup=warmup)


@pytest.mark.parametrize("value", [-0.1, 1.5, "0.1", None, True, math.nan])
def test_a_fraction_is_a_number_from_0_to_1(value):
    with pytest.raises(OptionError, match="'cosine', option floor: expected a fraction from 0 to 1, got "):
        Cosine(floor=value)
    with pytest.raises(OptionError, match="'warmup', option start_factor: expected a fraction from 0 to 1, got "):
        Warmup("5 steps", start_factor=value)


@pytest.mark.parametrize("value", [0, 1, -1, "0.1", math.nan])
def test_what_lies_between_0_and_1_is_neither(value):
    with pytest.raises(OptionError, match="'plateau', option factor: expected more than 0 and less than 1, got "):
        Plateau(factor=value)
    with pytest.raises(OptionError, match="'one_cycle', option rise: expected more than 0 and less than 1, got "):
        OneCycle(rise=value)


def test_a_cycle_has_more_than_one_step_to_rise_in():
    with pytest.raises(OptionError, match=r"0\.1 of 10 steps is one step.* choose a larger fraction"):
        OneCycle(rise=0.1).scheduler_build(make_optimizer(), 10)


@pytest.mark.parametrize("value", [0, -1, "1", math.nan])
def test_the_highest_rate_is_above_0(value):
    with pytest.raises(OptionError, match="'one_cycle', option max_rate: expected a number above 0, got "):
        OneCycle(max_rate=value)


@pytest.mark.parametrize("value", [-1, 1.5, "3", None])
def test_patience_is_a_count(value):
    with pytest.raises(OptionError, match="'plateau', option patience: expected a number from 0, got "):
        Plateau(patience=value)


def test_a_plateau_is_looked_at_after_every_validation_of_its_metric():
    assert Plateau().scheduler_build(make_optimizer()).every == Interval(1, "steps")
