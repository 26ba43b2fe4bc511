"""When early stopping ends a run, and what it says about a metric that nobody measures."""

import math
import types

import pytest
import torch

from blowtorch import ExtensionError, OptionError
from blowtorch.builtin.early_stopping import EarlyStopping


@pytest.fixture
def state():
    said = []
    options = types.SimpleNamespace(checkpoint_metric="val/loss", smaller_is_better=True)
    state = types.SimpleNamespace(options=options, stop_reason=None, warnings=said, warn=said.append)
    state.stop = lambda reason: setattr(state, "stop_reason", reason)
    return state


def validate(stopping, state, *values, metric="val/loss"):
    for value in values:
        stopping.validation_end(state, metric.split("/", maxsplit=1)[0], {metric: value})


def test_a_run_ends_after_so_many_validations_without_a_better_value(state):
    stopping = EarlyStopping(patience=3)
    validate(stopping, state, 1.0, 0.5, 0.6, 0.5)
    assert state.stop_reason is None
    validate(stopping, state, 0.7)
    assert state.stop_reason == "val/loss has not been better than 0.5 in 3 validations"


def test_a_better_value_begins_the_count_again(state):
    validate(EarlyStopping(patience=2), state, 1.0, 1.1, 0.9, 1.0, 0.8, 0.9)
    assert state.stop_reason is None


@pytest.mark.parametrize("of_option", [True, False])
def test_larger_can_be_better(state, of_option):
    state.options.smaller_is_better = not of_option
    stopping = EarlyStopping(patience=2, smaller_is_better=None if of_option else False)
    validate(stopping, state, 0.5, 0.6, 0.55)
    assert state.stop_reason is None
    validate(stopping, state, 0.6)
    assert state.stop_reason is not None


def test_its_own_direction_beats_the_option(state):
    state.options.smaller_is_better = False
    validate(EarlyStopping(patience=1, smaller_is_better=True), state, 0.5, 0.4, 0.3)
    assert state.stop_reason is None


def test_a_change_that_is_too_small_does_not_count(state):
    stopping = EarlyStopping(patience=2, min_change=0.1)
    validate(stopping, state, 1.0, 0.95)
    assert state.stop_reason is None
    validate(stopping, state, 0.9375)
    assert state.stop_reason == "val/loss has not been better than 1 in 2 validations"


def test_small_changes_that_add_up_count(state):
    """They are compared with the best value, and not with the last."""
    validate(EarlyStopping(patience=2, min_change=0.1), state, 1.0, 0.9375, 0.875, 0.8125, 0.75, 0.6875)
    assert state.stop_reason is None


@pytest.mark.parametrize("smaller_is_better", [True, False])
def test_nan_is_never_better(state, smaller_is_better):
    stopping = EarlyStopping(patience=2, smaller_is_better=smaller_is_better)
    validate(stopping, state, math.nan)
    assert state.stop_reason is None
    validate(stopping, state, math.nan)
    assert state.stop_reason == "val/loss has not been better in 2 validations"


def test_a_number_is_better_than_nan_and_infinity(state):
    validate(EarlyStopping(patience=2), state, math.nan, math.inf, 5.0, math.nan, 4.0)
    assert state.stop_reason is None


def test_only_validations_that_measure_the_metric_count(state):
    stopping = EarlyStopping(metric="ood/loss", patience=2)
    validate(stopping, state, 1.0, metric="ood/loss")
    validate(stopping, state, 1.0, 1.0, 1.0, 1.0, metric="val/loss")
    assert state.stop_reason is None
    validate(stopping, state, 1.0, 1.0, metric="ood/loss")
    assert state.stop_reason == "ood/loss has not been better than 1 in 2 validations"


# ---------------------------------------------------------------- a metric that nobody measures


def test_a_misspelt_metric_is_an_error_after_the_first_validation(state):
    with pytest.raises(ExtensionError, match=r"waits for 'val/acuracy'.* Did you mean 'val/accuracy'\?"):
        EarlyStopping("val/acuracy").validation_end(state, "val", {"val/loss": 1.0, "val/accuracy": 0.5})


@pytest.mark.parametrize("metric", ["loss", "train/loss"])
def test_a_metric_that_no_validation_can_measure_is_an_error_after_the_first(state, metric):
    with pytest.raises(ExtensionError, match=f"waits for '{metric}', which no validation has measured"):
        EarlyStopping(metric).validation_end(state, "val", {"val/loss": 1.0})


def test_a_metric_of_a_validation_not_made_yet_is_a_warning_after_an_epoch(state):
    """It may be misspelt, or belong to a validation that is made less often."""
    stopping = EarlyStopping("vall/loss")
    validate(stopping, state, 1.0)
    assert not state.warnings
    stopping.epoch_end(state, {})
    stopping.epoch_end(state, {})
    assert len(state.warnings) == 1
    assert "waits for 'vall/loss'" in state.warnings[0] and "Did you mean 'val/loss'?" in state.warnings[0]


def test_nothing_is_said_as_long_as_nothing_was_validated(state):
    EarlyStopping("val/acuracy").epoch_end(state, {})
    assert not state.warnings


def test_a_metric_that_is_missing_only_now_and_then_is_no_error(state):
    stopping = EarlyStopping("val/accuracy", patience=1)
    stopping.validation_end(state, "val", {"val/accuracy": 0.5})
    stopping.validation_end(state, "val", {"val/loss": 0.5})
    stopping.epoch_end(state, {})
    assert state.stop_reason is None and not state.warnings


# ---------------------------------------------------------------- restarts


def restart(stopping, **options):
    state = stopping.state_dict()
    assert all(isinstance(value, str | int | float | None) for value in state.values())
    again = EarlyStopping(**options)
    again.load_state_dict(state)
    return again


@pytest.mark.parametrize("cut", range(7))
def test_a_restart_changes_nothing(state, cut):
    values = [1.0, 0.5, 0.6, math.nan, 0.4, 0.5, 0.5, 0.5]
    stopping = EarlyStopping(patience=3)
    validate(stopping, state, *values[:cut])
    again = restart(stopping, patience=3)
    validate(again, state, *values[cut:7])
    assert state.stop_reason is None
    validate(again, state, values[7])
    assert state.stop_reason == "val/loss has not been better than 0.4 in 3 validations"


def test_a_restart_with_more_patience_goes_on(state):
    stopping = EarlyStopping(patience=1)
    validate(stopping, state, 1.0, 1.0)
    assert state.stop_reason is not None
    state.stop_reason = None
    validate(restart(stopping, patience=3), state, 1.0)
    assert state.stop_reason is None


def test_a_restart_with_another_metric_forgets_the_values_of_the_first(state):
    stopping = EarlyStopping(patience=2)
    validate(stopping, state, 0.1, 0.2)
    again = restart(stopping, metric="val/error", patience=2)
    validate(again, state, 5.0, 4.0, 4.5, metric="val/error")
    assert state.stop_reason is None


@pytest.mark.parametrize("patience", [0, -1, 1.5, "3", None])
def test_patience_is_at_least_1(patience):
    with pytest.raises(OptionError, match="option patience: expected a number from 1, got "):
        EarlyStopping(patience=patience)


@pytest.mark.parametrize("min_change", [-0.1, "0.1", None, math.nan])
def test_the_smallest_change_is_not_negative(min_change):
    with pytest.raises(OptionError, match="option min_change: expected at least 0, got "):
        EarlyStopping(min_change=min_change)


def test_it_ends_a_run(make_run, net, loader):
    """At a learning rate of zero nothing ever gets better."""
    run = make_run()

    @run.configure_optimizers
    def configure_optimizers(model):
        return torch.optim.SGD(model.parameters(), lr=0.0)

    result = run(net, loader, loader, max_epochs=10, callbacks=[{"early_stopping": {"patience": 2}}], progress=False)
    assert (result.status, result.epoch) == ("finished", 3)
    assert "has not been better than" in (result.folder / "console.log").read_text()


def without_progress(make_run):
    run = make_run(validates=False)
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.0))
    return run


@pytest.mark.parametrize("by_option", [True, False])
def test_it_follows_a_metric_of_training_from_epoch_to_epoch(make_run, net, loader, by_option):
    stopping = {"patience": 2} if by_option else {"patience": 2, "metric": "train_epoch/loss"}
    options = {"checkpoint_metric": "train_epoch/loss"} if by_option else {}
    run = without_progress(make_run)
    result = run(net, loader, max_epochs=10, callbacks=[{"early_stopping": stopping}], progress=False, **options)
    assert (result.status, result.epoch) == ("finished", 3)
    assert "train_epoch/loss has not been better than" in (result.folder / "console.log").read_text()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (None, r"waits for 'val/loss', which nothing in this run measures. It can follow train_epoch/…"),
        ("train/loss", r"nothing in this run measures. Did you mean 'train_epoch/loss'\?"),
        ("loss", "waits for 'loss', which nothing in this run measures"),
    ],
)
def test_a_metric_that_nothing_will_measure_is_an_error_before_the_first_step(make_run, net, loader, metric, message):
    run = without_progress(make_run)
    run.on("train_step_end")(lambda: pytest.fail("it has trained"))
    with pytest.raises(ExtensionError, match=message):
        run(net, loader, callbacks=[{"early_stopping": {"metric": metric}}], progress=False)


def test_a_misspelt_validation_is_an_error_before_the_first_step(make_run, net, loader):
    with pytest.raises(ExtensionError, match=r"Did you mean 'val/loss'\? It can follow val/…, train_epoch/…"):
        make_run()(net, loader, loader, callbacks=[{"early_stopping": {"metric": "vall/loss"}}], progress=False)


def test_a_metric_of_training_that_an_epoch_has_not_is_an_error_at_its_end(make_run, net, loader):
    with pytest.raises(ExtensionError, match=r"waits for 'train_epoch/lss', .* Did you mean 'train_epoch/loss'\?"):
        without_progress(make_run)(
            net, loader, max_epochs=3, callbacks=[{"early_stopping": {"metric": "train_epoch/lss"}}], progress=False
        )
