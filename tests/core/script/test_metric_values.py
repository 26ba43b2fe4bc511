"""What a value of a metric may be, and what its name."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from blowtorch import BlowtorchWarning, ScriptError
from blowtorch.record.logged import Logged
from blowtorch.script.returns import Returns

NUMBERS = [
    np.float16(0.5),
    np.float32(0.5),
    np.float64(0.5),
    np.longdouble(0.5),
    np.array(0.5),
    np.array(0.5, dtype=np.float32),
    Fraction(1, 2),
    Decimal("0.5"),
    torch.tensor(0.5, dtype=torch.float64),
]
WHOLE = [True, np.bool_(True), np.int64(1), np.uint8(1), np.array(1), np.array(True), Fraction(1), Decimal(1)]
NONE_AT_ALL = ["0.5", [1.0], np.array([1.0, 2.0]), np.array("a"), 1j, np.complex64(1), Decimal("sNaN"), object()]
TOO_LARGE = [10**400, -(10**400), 10**5000, Fraction(10**400), Decimal("1e400"), np.longdouble("1e400")]


def returns(warnings=None, logged=None):
    return Returns("step", logged or Logged(), (warnings if warnings is not None else []).append)


def read_several_times(value, name="a"):
    """The means of a metric that came three times, since the first one is looked at more closely."""
    reader = returns()
    read = reader.reader()
    for _ in range(3):
        read({name: value}, torch.ones(2))
    return reader.window.means()


@pytest.mark.parametrize("value", NUMBERS)
def test_whatever_is_a_number_is_taken_as_the_number_it_is(value):
    assert read_several_times(value) == {"a": 0.5}
    assert returns().as_scalars({"a": value})["a"] == 0.5


@pytest.mark.parametrize("value", WHOLE)
def test_whole_numbers_and_booleans_are_numbers(value):
    assert read_several_times(value) == {"a": 1.0}


@pytest.mark.parametrize("value", [np.float32("nan"), np.array(float("inf")), Decimal("NaN"), Decimal("-Infinity")])
def test_numbers_that_are_not_finite_stay_so(value):
    assert not np.isfinite(read_several_times(value)["a"])


@pytest.mark.parametrize("value", NONE_AT_ALL)
def test_what_is_no_number_is_named_with_its_metric(value):
    with pytest.raises(ScriptError, match=r"step returned 'accuracy' as a .*; a metric is a tensor or a number"):
        returns().as_scalars({"loss": 1.0, "accuracy": value})


@pytest.mark.parametrize("value", TOO_LARGE, ids=range(len(TOO_LARGE)))
def test_what_no_float_can_hold_is_named_with_its_metric(value):
    with pytest.raises(ScriptError, match=r"step returned 'states' as a.*, which is larger than any float"):
        returns().as_scalars({"loss": 1.0, "states": value})


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, np.int64(2**53 + 1), np.uint64(2**63 + 1), 10**300])
def test_whole_numbers_that_lose_digits_are_named_once(value):
    warnings: list[str] = []
    reader = returns(warnings)
    for _ in range(3):
        assert reader.as_scalars({"tokens": value, "other": value, "loss": 1.0})["tokens"] == float(value)
    assert len(warnings) == 2
    assert f"step returned 'tokens' as {value}, of which a float holds {float(value):.0f}; metrics are" in warnings[0]


def test_a_tensor_that_loses_digits_is_named_too():
    warnings: list[str] = []
    reader = returns(warnings)
    for value in (3, 2**53 + 1):
        reader.as_scalars({f"tokens-{value}": torch.tensor(value)})
    assert len(warnings) == 1 and "'tokens-9007199254740993'" in warnings[0]


@pytest.mark.parametrize("value", [2**53, -(2**53), 2**60, np.int64(2**53), Fraction(2**60), 10**22])
def test_large_numbers_that_a_float_holds_are_not(value):
    warnings: list[str] = []
    assert returns(warnings).as_scalars({"tokens": value}) == {"tokens": value}
    assert not warnings


@pytest.mark.parametrize("reduce", ["mean", "sum", "max", "min", "last"])
def test_numbers_of_all_kinds_are_reduced_together(reduce):
    logged = Logged()
    values: list[Any] = [0.5, np.float32(1.5), Fraction(1, 4), Decimal(2), np.array(3), torch.tensor(1.0)]
    for value in values:
        logged.add({"a": value}, reduce)
    expected = {"mean": 1.0, "sum": 8.25, "max": 3.0, "min": 0.25, "last": 1.0}[reduce]
    assert returns(logged=logged).as_scalars(None)["a"] == expected


@pytest.mark.parametrize("value", ["b", 10**400])
def test_what_cannot_be_reduced_is_named(value):
    logged = Logged()
    logged.add({"a": 1.0}, "max")
    with pytest.raises(ScriptError, match=r"'a' is logged as a"):
        logged.add({"a": value}, "max")


@pytest.mark.parametrize("size", ["many", float("nan"), torch.ones(2), None, 10**400 * -1])
def test_a_batch_size_that_is_no_number_is_named(size):
    with pytest.raises(ScriptError, match="step returned 'batch_size' as .*; it is a number above 0"):
        returns().as_scalars({"loss": 1.0, "batch_size": size})


@pytest.mark.parametrize("number", [np.int64(4), np.array(4), Fraction(4), Decimal(4), torch.tensor(4)])
def test_sizes_and_weights_may_be_numbers_of_all_kinds(number):
    reader = returns()
    reader.reader()({"loss": 1.0, "batch_size": number, "weight": number}, torch.ones(2))
    reader.reader()({"loss": 6.0, "weight": Fraction(1)}, torch.ones(2))
    assert reader.window.means() == {"loss": 2.0}


@pytest.mark.parametrize("name", ["", " ", "\t\n"])
def test_a_metric_without_a_name_is_refused_wherever_it_comes_in(name):
    reader = returns()
    reader.as_scalars({"loss": 1.0})
    with pytest.raises(ScriptError, match=r"step returned a metric named '.*'; expected a name that can be read"):
        reader.as_scalars({"loss": 1.0, name: 2.0})
    with pytest.raises(ScriptError, match=r"log was given a metric named '.*'; expected a name"):
        Logged().add({name: 1.0})


def test_names_are_strings_at_any_step():
    reader = returns()
    reader.as_scalars({"loss": 1.0})
    with pytest.raises(ScriptError, match="a metric named 1; names are strings"):
        reader.as_scalars({"loss": 1.0, 1: 2.0})
    with pytest.raises(ScriptError, match="log was given a metric named None; names are strings"):
        Logged().add({None: 1.0})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("name", "options", "is_refused"),
    [
        ("grad_norm", {"clip_grad_norm": 1.0}, True),
        ("grad_norm", {}, False),
        ("skipped_steps", {"on_nan": "skip"}, True),
        ("skipped_steps", {}, False),
        ("left_out_batches", {}, True),
        ("lr", {}, False),
        ("samples", {"accumulate": 2}, False),
    ],
)
@pytest.mark.parametrize("is_logged", [True, False])
def test_a_name_that_the_loop_gives_to_a_metric_of_its_own_is_refused(
    make_run, fresh, loader, name, options, is_refused, is_logged
):
    run = make_run(validates=False)

    @run.train_step
    def step(batch, model):
        loss = model(batch[0]).square().mean()
        if is_logged:
            run.log({name: 7.0})
        return {"loss": loss} if is_logged else {"loss": loss, name: 7.0}

    if is_refused:
        with pytest.raises(ScriptError, match=f"step returned or logged '{name}', which .*; give it another name"):
            run(fresh(), loader, progress=False, **options)
    else:
        assert run(fresh(), loader, progress=False, **options).metrics[f"train_epoch/{name}"] == 7.0


@pytest.mark.parametrize("way", ["train step", "validate step", "run.log", "state.log"])
def test_a_run_refuses_a_metric_without_a_name_and_trains_nothing(make_run, fresh, loader, way):
    run, model = make_run(), fresh()
    before = [parameter.clone() for parameter in model.parameters()]

    @run.train_step
    @run.validate_step
    def step(batch, model, is_validate):
        loss = model(batch[0]).square().mean()
        if way == "run.log":
            run.log({"": loss})
        return {"loss": loss, "": -loss} if way == f"{'validate' if is_validate else 'train'} step" else {"loss": loss}

    @run.on("epoch_start")
    def log(state):
        if way == "state.log":
            state.log({"": 1})

    with pytest.raises(ScriptError, match="a metric named ''"):
        run(model, loader, loader, progress=False)
    is_same = all(map(torch.equal, before, model.parameters()))
    assert is_same == (way != "validate step")


def test_a_run_records_numbers_of_all_kinds_and_goes_on_where_digits_are_lost(make_run, fresh, loader):
    run = make_run()

    @run.train_step
    def step(batch, model):
        loss = model(batch[0]).square().mean()
        return {"loss": loss, **{f"m{place}": value for place, value in enumerate(NUMBERS)}, "n": 2**53 + 1}

    with pytest.warns(BlowtorchWarning, match="returned 'n' as 9007199254740993, of which a float holds"):
        result = run(fresh(), loader, loader, progress=False)
    assert {result.metrics[f"train_epoch/m{place}"] for place in range(len(NUMBERS))} == {0.5}
    assert result.metrics["train/n"] == 2.0**53
