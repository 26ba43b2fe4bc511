"""The moments of a run, and who is called at them."""

import signal

import pytest
import yaml

from blowtorch import (
    ExtensionError,
    ScriptError,
    hookimpl,
)
from tests.core.small_runs import QUIET, Ear


def test_moments_come_in_order(make_run, net, loader):
    ear = Ear()
    make_run()(
        net,
        loader,
        loader,
        callbacks=[ear],
        limit_train_batches=2,
        max_epochs=1,
        validate_at_start=True,
        checkpoint_async=False,
        **QUIET,
    )
    assert ear.heard == [
        ("run_start", 0),
        ("validation_end", 0, "val", ["val/loss"]),
        ("checkpoint_saved", "step-00000000", True),
        ("epoch_start", 1),
        ("train_step_end", 1, ["loss"]),
        ("train_step_end", 2, ["loss"]),
        ("validation_end", 2, "val", ["val/loss"]),
        ("epoch_end", 1, ["train_epoch/loss"]),
        ("checkpoint_saved", "step-00000002", True),
        ("run_end", "finished"),
    ]


def test_functions_can_be_called_at_moments_with_what_they_ask_for(make_run, net, loader):
    run = make_run(validates=False)
    heard = []

    @run.on("epoch_end")
    def after(epoch, metrics, model, state):
        heard.append((epoch, sorted(metrics), model is net, state.step))

    run(net, loader, max_epochs=2, **QUIET)
    assert heard == [(1, ["train_epoch/loss"], True, 8), (2, ["train_epoch/loss"], True, 16)]


def test_a_callback_can_end_the_run(make_run, net, loader):
    run = make_run(validates=False)

    @run.on("train_step_end")
    def enough(state):
        if state.step == 3:
            state.stop("three is enough")

    result = run(net, loader, max_epochs=5, **QUIET)
    assert (result.status, result.step) == ("finished", 3)


def test_the_order_in_which_callbacks_are_called_is_written_down(make_run, net, loader):
    called = []

    class Last:
        @hookimpl(trylast=True)
        def epoch_end(self):
            called.append("Last")

    class Plain:
        @hookimpl
        def epoch_end(self):
            called.append("Plain")

    run = make_run()

    @run.on("epoch_end")
    def note():
        called.append("@run.on note")

    callbacks = [Last(), "early_stopping", Plain(), "ema"]
    result = run(net, loader, loader, callbacks=callbacks, **QUIET)
    order = yaml.safe_load((result.folder / "run.yaml").read_text())["callbacks"]
    assert order["epoch_end"] == ["console", "early_stopping", "Plain", "Last", "@run.on note"]
    assert order["train_step_end"] == ["ema"]
    assert called == order["epoch_end"][2:]


def test_what_is_logged_when_the_run_ends_is_recorded(make_run, net, loader, events):
    run = make_run(validates=False)
    run.on("run_end")(lambda log: log({"size": 12.0}))
    result = run(net, loader, max_steps=2, **QUIET)
    assert events(result, "metrics")[-1]["metrics"] == {"size": 12.0}
    assert events(result)[-1]["event"] == "finish"


def test_a_callback_that_raises_fails_the_run_with_its_name_in_front(make_run, net, loader):
    class Clumsy:
        @hookimpl
        def epoch_end(self, state):
            raise ValueError("oh no")

    with pytest.raises(ExtensionError, match="callback 'Clumsy'.* raised in epoch_end: ValueError: oh no"):
        make_run(validates=False)(net, loader, callbacks=[Clumsy()], **QUIET)


def test_what_is_logged_at_a_moment_is_no_fault_of_the_step(make_run, net, loader):
    run = make_run(validates=False)
    run.on("epoch_start")(lambda log: log({"name": "text"}))
    with pytest.raises(ScriptError, match="what takes part in epoch_start returned 'name' as a str"):
        run(net, loader, **QUIET)


def test_a_decision_to_end_outlives_a_stop_at_the_same_moment(net, loader, make_run):
    def train(interrupts):
        run = make_run()

        @run.on("epoch_end")
        def decide(state):
            if state.epoch == 2 and interrupts:
                state.stop("enough")
                signal.raise_signal(signal.SIGTERM)

        return run(net, loader, loader, max_epochs=5, run_name="a", resume="auto", **QUIET)

    assert train(True).status == "stopped"
    continued = train(False)
    assert (continued.status, continued.step) == ("finished", 16)
