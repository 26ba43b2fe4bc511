import random

import pytest

from blowtorch import Interval, OptionError
from blowtorch.clock import NEVER, Time, Trigger


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("500 steps", 500, "steps"),
        ("1 step", 1, "steps"),
        ("2 epochs", 2, "epochs"),
        ("1M samples", 1_000_000, "samples"),
        ("1 M samples", 1_000_000, "samples"),
        ("2G samples", 2_000_000_000, "samples"),
        ("1.5k steps", 1500, "steps"),
        ("1K steps", 1000, "steps"),
        (".5k steps", 500, "steps"),
        ("0.1k steps", 100, "steps"),
        ("0.29k steps", 290, "steps"),
        ("1 second", 1, "seconds"),
        ("0.25 seconds", 0.25, "seconds"),
        ("30 minutes", 1800, "seconds"),
        ("1.5 hours", 5400, "seconds"),
        ("2 days", 172_800, "seconds"),
        ("  3   Epochs ", 3, "epochs"),
    ],
)
def test_an_interval_is_an_amount_and_a_unit(text, amount, unit):
    interval = Interval.parse(text)
    assert interval == Interval(amount, unit)
    assert unit == "seconds" or isinstance(interval.amount, int)


@pytest.mark.parametrize(
    "value",
    [
        None,
        500,
        2.5,
        True,
        "",
        "steps",
        "500",
        "500steps",
        "-1 steps",
        "1e3 steps",
        "1m samples",
        "1 step 2",
        "9" * 400 + " steps",
    ],
)
def test_what_is_no_amount_and_unit_is_an_error_with_examples(value):
    with pytest.raises(OptionError, match=r"expected an amount and a unit, such as '500 steps', .*, got "):
        Interval.parse(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2 epcohs", r"unknown unit 'epcohs' in '2 epcohs'\. Did you mean 'epochs'\? Units are steps, epochs, "),
        ("2 batches", r"unknown unit 'batches' in '2 batches'\. Units are steps"),
        ("1 stepss", "unknown unit 'stepss'"),
        ("0 steps", "expected an amount above zero, got '0 steps'"),
        ("0.0 minutes", "expected an amount above zero"),
        ("1.5 steps", "expected a whole number of steps, got '1.5 steps'"),
        ("0.0005k samples", "expected a whole number of samples"),
        ("0.5 epochs", "expected a whole number of epochs"),
    ],
)
def test_an_interval_that_cannot_be_counted_is_an_error(text, message):
    with pytest.raises(OptionError, match=message):
        Interval.parse(text)


@pytest.mark.parametrize(
    ("text", "written"),
    [("1 steps", "1 step"), ("500 steps", "500 steps"), ("1 hour", "3600 seconds"), ("1M samples", "1000000 samples")],
)
def test_an_interval_is_written_as_it_can_be_read(text, written):
    assert str(Interval.parse(text)) == written


def test_every_interval_can_be_written_and_read_again():
    generator = random.Random(0)
    for _ in range(200):
        unit = generator.choice(["steps", "epochs", "samples", "seconds"])
        amount = generator.randint(1, 10 ** generator.randint(1, 12))
        interval = Interval(amount / 8 if unit == "seconds" else amount, unit)
        assert Interval.parse(str(interval)) == interval


def test_an_interval_counts_how_often_it_has_passed():
    time = Time(steps=1000, epochs=3, samples=32_000, seconds=95.5)
    assert Interval.parse("300 steps").count(time) == 3
    assert Interval.parse("3 epochs").count(time) == 1
    assert Interval.parse("1M samples").count(time) == 0
    assert Interval.parse("30 seconds").count(time) == 3


def at(steps):
    return Time(steps=steps, epochs=steps // 10, samples=steps * 32, seconds=steps * 0.5)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ("4 steps", [4, 8, 12, 16, 20]),
        ("1 epoch", [10, 20]),
        ("100 samples", [4, 7, 10, 13, 16, 19]),
        ("3 seconds", [6, 12, 18]),
        ("50 samples", [2, 4, 5, 7, 8, 10, 11, 13, 15, 16, 18, 19]),
    ],
)
def test_a_trigger_is_due_once_for_each_multiple_it_passes(interval, expected):
    trigger = Trigger(Interval.parse(interval))
    trigger.mark_done(at(0))
    due = [step for step in range(1, 21) if trigger.fire(at(step))]
    assert due == expected


def test_to_ask_whether_it_is_due_changes_nothing():
    trigger = Trigger(Interval.parse("2 steps"))
    assert trigger.is_due(at(2)) and trigger.is_due(at(2))
    trigger.mark_done(at(2))
    assert not trigger.is_due(at(3)) and trigger.is_due(at(4))


def test_a_step_that_passes_several_multiples_is_due_once():
    trigger = Trigger(Interval.parse("10 samples"))
    assert trigger.fire(at(1)) and not trigger.fire(at(1))


@pytest.mark.parametrize("interval", ["3 steps", "1 epoch", "100 samples", "2.5 seconds"])
@pytest.mark.parametrize("stop", range(0, 40, 3))
def test_a_restart_repeats_and_skips_nothing(interval, stop):
    """A trigger that is made anew at any step is due at the same later steps as one that has run all the time."""
    whole, restarted = Trigger(Interval.parse(interval)), Trigger(Interval.parse(interval))
    whole.mark_done(at(0))
    due = [step for step in range(1, 41) if whole.fire(at(step))]
    restarted.mark_done(at(stop))
    assert [step for step in range(stop + 1, 41) if restarted.fire(at(step))] == [step for step in due if step > stop]


@pytest.mark.parametrize("interval", ["1 step", "7 steps", "100 samples", "2 seconds"])
def test_asking_only_at_the_steps_that_are_worth_it_misses_nothing(interval):
    always, seldom = Trigger(Interval.parse(interval)), Trigger(Interval.parse(interval))
    due = [step for step in range(1, 51) if always.fire(at(step))]
    asked, step = [], seldom.next_step(0)
    while step <= 50:
        if seldom.fire(at(step)):
            asked.append(step)
        step = seldom.next_step(step)
    assert asked == due


def test_epochs_are_asked_for_at_their_end_and_at_no_step():
    assert Trigger(Interval.parse("2 epochs")).next_step(5) == NEVER
    assert Trigger(Interval.parse("50 steps")).next_step(50) == 100
