"""Options that a scheduler refuses, and what it says."""

import math

import pytest

from blowtorch import BlowtorchWarning, Interval, OptionError
from blowtorch.builtin.curves import Cosine, Linear, OneCycle, Polynomial, Warmup, WarmupStableDecay
from blowtorch.builtin.drops import Exponential, Milestones, Plateau, Step
from tests.core.builtin.scheduler_steps import first_rates, make_optimizer


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
