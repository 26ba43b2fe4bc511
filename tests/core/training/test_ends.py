"""How a run ends: by an error, a signal, a full disk, or a callback."""

import os
import signal
import traceback

import pytest
import torch

from blowtorch import (
    BlowtorchWarning,
    ExtensionError,
    find_runs,
    hookimpl,
    open_run,
)
from tests.core.small_runs import QUIET, Ear


def test_an_error_in_the_users_code_is_recorded_and_raised_as_it_was(make_run, net, loader, events):
    run = make_run(validates=False)
    ear = Ear()

    @run.train_step
    def step(batch, model, step):
        if step == 3:
            raise ZeroDivisionError("my own mistake")
        return model(batch[0]).mean()

    with pytest.raises(ZeroDivisionError, match="my own mistake") as caught:
        run(net, loader, callbacks=[ear], **QUIET)
    assert len(traceback.extract_tb(caught.value.__traceback__)) <= 5
    (view,) = find_runs()
    assert view.status == "failed"
    last = list(view.events())[-1]
    assert last["event"] == "finish" and last["status"] == "failed" and "my own mistake" in last["reason"]
    assert ear.heard[-1] == ("run_end", "failed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_after_its_step_with_a_checkpoint(make_run, net, loader, number):
    run = make_run(validates=False)
    before = signal.getsignal(number)

    @run.on("train_step_end")
    def interrupt(state):
        if state.step == 5:
            os.kill(os.getpid(), number)

    result = run(net, loader, max_epochs=3, **QUIET)
    assert (result.status, result.step) == ("stopped", 5)
    assert (result.folder / "checkpoints" / "step-00000005" / "manifest.json").is_file()
    assert open_run(result.folder).status == "stopped"
    assert signal.getsignal(number) is before
    with pytest.raises(SystemExit) as caught:
        result.raise_if_stopped()
    assert caught.value.code == 75


def test_a_second_ctrl_c_stops_at_once(make_run, net, loader):
    run = make_run(validates=False)

    @run.train_step
    def step(batch, model):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return model(batch[0]).mean()

    with pytest.raises(KeyboardInterrupt):
        run(net, loader, **QUIET)
    assert [view.status for view in find_runs()] == ["stopped"]


def test_an_error_while_a_run_is_prepared_fails_it_and_frees_its_folder(make_run, net, loader):
    run = make_run(validates=False)

    @run.configure_optimizers
    def configure_optimizers(model):
        raise ZeroDivisionError("my own mistake")

    with pytest.raises(ZeroDivisionError, match="my own mistake"):
        run(net, loader, run_name="mine", **QUIET)
    (view,) = find_runs()
    assert view.status == "failed"
    again = make_run(validates=False)(net, loader, run_name="mine", resume="auto", **QUIET)
    assert again.folder == view.path.absolute() and again.status == "finished"


def test_a_full_disk_does_not_hide_the_users_own_error(make_run, net, loader, monkeypatch):
    run = make_run(validates=False)

    @run.train_step
    def step(batch, model):
        def refuse(*arguments, **keywords):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", refuse)
        raise ValueError("my own mistake")

    with pytest.warns(BlowtorchWarning, match="No space left"), pytest.raises(ValueError, match="my own mistake"):
        run(net, loader, **QUIET)


def test_the_last_event_is_finish_whatever_becomes_of_the_loggers(make_run, net, loader, events):
    class Broken:
        @hookimpl
        def log_start(self):
            raise OSError("the tracker is down")

    with pytest.warns(BlowtorchWarning, match="the tracker is down") as caught:
        result = make_run(validates=False)(
            net, loader, loggers=[Broken(), Broken()], logger_timeout="1 second", **QUIET
        )
    assert len(caught) == 2
    assert events(result)[-1]["event"] == "finish"
    assert sorted(path.name for path in (result.folder / "loggers").iterdir()) == ["Broken", "Broken-2"]


def test_a_run_that_ends_badly_is_not_shown_as_running(make_run, net, loader):
    class Clumsy:
        @hookimpl
        def run_end(self):
            raise ValueError("at the very end")

    with pytest.raises(ExtensionError, match="at the very end"):
        make_run(validates=False)(net, loader, callbacks=[Clumsy()], **QUIET)
    assert [view.status for view in find_runs()] == ["failed"]


def test_an_anomaly_names_the_operation_whose_gradient_is_nan_and_is_looked_for_in_no_later_run(make_run, net, loader):
    run = make_run(validates=False)
    run.train_step(lambda batch, model: (model(batch[0]).mean() * 0).sqrt())
    options = {"detect_anomalies": True, "progress": False}
    with pytest.warns(UserWarning, match="forward call"), pytest.raises(RuntimeError, match="MulBackward0.*nan"):
        run(net, loader, **options)
    assert not torch.is_anomaly_enabled()
    with pytest.warns(UserWarning, match="forward call"), pytest.raises(RuntimeError, match="MulBackward0.*nan"):
        run(net, loader, dry_run=True, **options)
