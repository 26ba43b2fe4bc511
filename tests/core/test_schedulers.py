"""Learning-rate schedules by name: their curves, over whole runs, and what a restart does to them."""

import io
import math

import pytest
import torch
from torch.optim import SGD, Adadelta, Adam, AdamW
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

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


DROPS = {
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


# ---------------------------------------------------------------- restarts

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


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "build",
    [
        lambda optimizer: Cosine().scheduler_build(optimizer, None, 10),
        lambda optimizer: Linear().scheduler_build(optimizer, None, 10),
        lambda optimizer: OneCycle().scheduler_build(optimizer, None),
        lambda optimizer: Polynomial().scheduler_build(optimizer, None, 10),
        lambda optimizer: WarmupStableDecay().scheduler_build(optimizer, None, 10),
    ],
    ids=["cosine", "linear", "one_cycle", "polynomial", "warmup_stable_decay"],
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
    with pytest.warns(BlowtorchWarning, match=r"a warm-up of 500 steps \(500 steps\) fills all of its 5 steps"):
        built = Cosine(warmup="500 steps").scheduler_build(optimizer, 5, None)
    assert first_rates(optimizer, built, 5)[-1] == pytest.approx(0.1 * (0.01 + 0.99 * 4 / 500))


def test_a_warm_up_that_ends_with_the_run_is_nothing_to_tell_of():
    optimizer = make_optimizer()
    assert len(first_rates(optimizer, Warmup("5 steps").scheduler_build(optimizer, 5, None), 5)) == 5
    with pytest.warns(BlowtorchWarning, match=r"a warm-up of 6 steps \(6 steps\) fills all of its 5 steps"):
        Warmup("6 steps").scheduler_build(make_optimizer(), 5, None)


def test_a_decay_that_does_not_fit_is_shortened_and_told():
    optimizer = make_optimizer()
    with pytest.warns(BlowtorchWarning, match="a warm-up of 4 steps and a decay of 8 do not fit into its 10 steps"):
        built = WarmupStableDecay("4 steps", "8 steps").scheduler_build(optimizer, 10, None)
    assert first_rates(optimizer, built, 10)[4:] == pytest.approx([0.1 * (1 - step / 6) for step in range(6)])


@pytest.mark.parametrize("decay", [0, 1.5, -0.1, None, True, math.nan, ["1 epoch"]])
def test_a_decay_is_an_interval_or_a_fraction(decay):
    with pytest.raises(OptionError, match="option decay: expected an interval such as '2k steps', or a fraction"):
        WarmupStableDecay(decay=decay)


@pytest.mark.parametrize("decay", ["0.2", "1k samples", "3 epoch s"])
def test_a_decay_that_cannot_be_read_names_its_option(decay):
    with pytest.raises(OptionError, match="scheduler 'warmup_stable_decay', option decay: expected "):
        WarmupStableDecay(decay=decay)


def test_a_decay_in_epochs_of_unknown_length_is_refused():
    with pytest.raises(OptionError, match="option decay: '1 epoch' cannot be counted in steps.* write it in steps"):
        WarmupStableDecay(decay="1 epoch").scheduler_build(make_optimizer(), 100, None)


@pytest.mark.parametrize("shape", ["straight", None, ["linear"]])
def test_a_shape_is_one_of_three(shape):
    with pytest.raises(OptionError, match="option shape: expected 'linear', 'cosine', 'square_root', got "):
        WarmupStableDecay(shape=shape)


@pytest.mark.parametrize("value", [0, -1, "2", None, math.nan, math.inf])
def test_a_power_is_above_0(value):
    with pytest.raises(OptionError, match="'polynomial', option power: expected a number above 0, got "):
        Polynomial(power=value)


@pytest.mark.parametrize("every", ["1k samples", "5 minutes", 30, "30", None])
def test_drops_come_every_so_many_steps_or_epochs(every):
    for make, name in ((lambda: Exponential(0.9, every), "exponential"), (lambda: Step(every), "step")):
        with pytest.raises(OptionError, match=f"scheduler '{name}', option every: expected "):
            make()


@pytest.mark.parametrize("at", ["30 epochs", [], None, 30])
def test_milestones_are_a_list(at):
    with pytest.raises(OptionError, match=r"option at: expected a list such as \['30 epochs', '60 epochs'\], got "):
        Milestones(at)


def test_milestones_are_all_in_steps_or_all_in_epochs():
    with pytest.raises(OptionError, match="'milestones', option at: expected all in steps or all in epochs, got "):
        Milestones(["30 epochs", "500 steps"])
    with pytest.raises(OptionError, match="'milestones', option at: expected steps or epochs, got '5 minutes'"):
        Milestones(["5 minutes"])


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
    with pytest.raises(OptionError, match="'exponential', option factor: expected more than 0 and less than 1, got "):
        Exponential(value)


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
