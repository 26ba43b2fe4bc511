"""A session: whichever stage fails, and by whatever, nothing of the run stays in the process, and no lock is kept."""

import os
import signal
import threading

import pytest
import torch
from torch import nn

from blowtorch import BlowtorchError, BlowtorchWarning, ScriptError, find_runs, hookimpl
from tests.core import small_runs

QUIET = {**small_runs.QUIET, "save_path": "runs"}

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Trouble(Exception):
    """What the tests raise in a stage."""


def no_trouble():
    pass


def trouble():
    raise Trouble


def impatience():
    raise KeyboardInterrupt


def leaving():
    raise SystemExit(3)


class Homeless(nn.Linear):
    """A model that cannot be moved."""

    def to(self, *arguments, **keywords):
        raise Trouble


class Listener:
    """A logger that keeps nothing."""

    @hookimpl
    def log_metrics(self, metrics):
        pass


@pytest.fixture
def surroundings():
    """What has to be in this process after a run as it was before."""

    def look():
        return [signal.getsignal(number) for number in SIGNALS], set(threading.enumerate()), torch.is_anomaly_enabled()

    before = look()
    yield
    assert look() == before


def prepare(make_run, stage, do):
    """Return a run of which one stage does something."""
    run = make_run(validates=False)

    @run.init
    def init(state):
        if stage == "init":
            do()

    @run.configure_optimizers
    def configure_optimizers(model):
        if stage == "assemble":
            do()
        return torch.optim.SGD(model.parameters(), lr=0.01)

    if stage in ("run_start", "run_end"):
        run.on(stage)(do)
    if stage == "step":
        run.on("train_step_end")(do)
    return run


@pytest.mark.parametrize("do", [trouble, impatience])
@pytest.mark.parametrize("stage", ["init", "assemble", "run_start", "step", "run_end"])
def test_a_run_that_fails_gives_everything_back(make_run, net, loader, tmp_path, surroundings, stage, do):
    run = prepare(make_run, stage, do)
    options = {"max_epochs": 1, "clip_grad_norm": 1.0, "max_time": "1 hour", "detect_anomalies": True, **QUIET}
    with pytest.raises((Trouble, KeyboardInterrupt)):
        run(net, loader, **options)
    [view] = find_runs(tmp_path / "runs")
    # Impatience in the last words of a run that has gone through changes nothing about how it has gone.
    expected = {trouble: "failed", impatience: "finished" if stage == "run_end" else "stopped"}
    assert view.status == expected[do]
    with pytest.raises(ScriptError, match="while nothing is being trained"):
        run.log({"x": 1.0})
    if stage != "run_end":
        again = prepare(make_run, "none", no_trouble)
        result = again(net, loader, resume=str(view.path), **options)
        assert (result.status, result.folder) == ("finished", view.path)


@pytest.mark.parametrize(("do", "reason"), [(trouble, "Trouble"), (leaving, "SystemExit: 3")])
def test_what_fails_in_the_last_words_of_a_run_is_the_reason_in_its_record(make_run, net, loader, do, reason):
    with pytest.raises((Trouble, SystemExit)):
        prepare(make_run, "run_end", do)(net, loader, max_epochs=1, **QUIET)
    [view] = find_runs("runs")
    *_, finish = view.events()
    assert (view.status, finish["status"], finish["reason"]) == ("failed", "failed", reason)


def test_who_leaves_in_the_last_words_does_not_hide_the_error_before(make_run, net, loader):
    run = prepare(make_run, "run_end", leaving)
    run.on("train_step_end")(trouble)
    with pytest.raises(Trouble), pytest.warns(BlowtorchWarning, match="SystemExit: 3; the run had failed before"):
        run(net, loader, max_epochs=1, **QUIET)


def test_impatience_while_it_is_noted_how_a_run_ended_changes_nothing_about_that(make_run, net, loader, monkeypatch):
    fsync = os.fsync

    def be_impatient(file):
        monkeypatch.setattr("os.fsync", fsync)
        raise KeyboardInterrupt

    run = prepare(make_run, "run_end", lambda: monkeypatch.setattr("os.fsync", be_impatient))
    with pytest.raises(KeyboardInterrupt):
        run(net, loader, max_epochs=1, **QUIET)
    [view] = find_runs("runs")
    assert view.status == "finished"


def test_a_run_can_be_trained_where_the_working_directory_is_gone(make_run, net, loader, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.warns(BlowtorchWarning, match="code and environment could not be kept whole"):
        result = make_run(validates=False)(net, loader, max_epochs=1, **{**QUIET, "save_path": tmp_path / "runs"})
    assert result.status == "finished"


@pytest.mark.parametrize("options", [{"loggers": ["no_such"]}, {"resume": "no/such/run"}, {"device": "no_such"}])
def test_a_run_that_cannot_be_found_leaves_no_folder(make_run, net, loader, tmp_path, surroundings, options):
    with pytest.raises(BlowtorchError):
        make_run(validates=False)(net, loader, max_epochs=1, **QUIET, **options)
    assert not (tmp_path / "runs").exists()


def test_a_model_that_cannot_be_placed_leaves_no_folder(make_run, loader, tmp_path, surroundings):
    with pytest.raises(Trouble):
        make_run(validates=False)(Homeless(3, 1), loader, max_epochs=1, **QUIET)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("name", "was"), [("record.jsonl", "file"), ("loggers", "folder")])
def test_a_run_that_cannot_write_what_it_begins_with_is_given_back(
    make_run, net, loader, tmp_path, surroundings, name, was
):
    """To open the record, and to begin: both may meet something in their way when a run goes on."""
    options = {"max_epochs": 1, "loggers": [Listener()], **QUIET}
    with pytest.raises(Trouble):
        prepare(make_run, "step", trouble)(net, loader, **options)
    [view] = find_runs(tmp_path / "runs")
    place, aside = view.path / name, tmp_path / "aside"
    place.rename(aside)
    place.mkdir() if was == "file" else place.touch()
    with pytest.raises((BlowtorchError, OSError)):
        make_run(validates=False)(net, loader, resume=str(view.path), **options)
    place.rmdir() if was == "file" else place.unlink()
    aside.rename(place)
    result = make_run(validates=False)(net, loader, resume=str(view.path), **options)
    assert (result.status, result.folder) == ("finished", view.path)


@pytest.mark.parametrize("stage", ["init", "assemble", "run_start", "step", "run_end"])
def test_a_trial_that_fails_deletes_what_it_has_kept(make_run, net, loader, tmp_path, surroundings, stage):
    run = prepare(make_run, stage, trouble)
    with pytest.raises(Trouble):
        run(net, loader, max_epochs=1, dry_run=True, **QUIET)
    assert not (tmp_path / "runs").exists()


def test_what_is_logged_before_the_run_begins_is_not_recorded(make_run, net, loader):
    run = make_run(validates=False)

    @run.init
    def init():
        run.log_text("early", "nothing is trained yet")

    @run.on("run_start")
    def run_start():
        run.log_text("in time", "now it is")

    result = run(net, loader, max_epochs=1, **QUIET)
    assert '"in time"' in (result.folder / "record.jsonl").read_text()
    assert '"early"' not in (result.folder / "record.jsonl").read_text()
