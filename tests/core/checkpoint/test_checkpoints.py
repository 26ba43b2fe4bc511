"""Checkpoints that are written while training goes on: their order, and failures."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from blowtorch import BlowtorchWarning, CheckpointError, find_runs, hookimpl, open_run
from blowtorch.builtin.local import LocalBackend
from blowtorch.folder.lock import is_owned
from tests.core.checkpoint.comparisons import QUIET, names, weights


class SlowBackend(LocalBackend):
    """Publishes a checkpoint once it is told to."""

    def __init__(self):
        self.may_publish = threading.Event()
        self.asked = []

    @hookimpl
    def checkpoint_publish(self, name, directory):
        self.asked.append((name, threading.current_thread() is threading.main_thread()))
        assert self.may_publish.wait(20)
        super().checkpoint_publish(name, directory)


class FailingBackend(LocalBackend):
    """Refuses some checkpoints."""

    def __init__(self, *refused):
        self.refused = list(refused)

    @hookimpl
    def checkpoint_publish(self, name, directory):
        if name in self.refused:
            self.refused.remove(name)
            raise OSError("no room")
        super().checkpoint_publish(name, directory)


class Ear:
    """Hears of checkpoints, and lets a slow backend go on at a step."""

    def __init__(self, backend=None, step=None):
        self.heard = []
        self.backend, self.step = backend, step

    @hookimpl
    def train_step_end(self, state):
        if state.step == self.step:
            self.heard.append(("step", state.step))
            self.backend.may_publish.set()

    @hookimpl
    def checkpoint_saved(self, state, checkpoint, is_best):
        self.heard.append((checkpoint.name, is_best))


def test_training_goes_on_while_a_checkpoint_is_written(make_run, net, loader, events):
    backend = SlowBackend()
    ear = Ear(backend, step=6)
    run = make_run(validates=False)
    result = run(net, loader, checkpoint_every="4 steps", checkpoint_backend=backend, callbacks=[ear], **QUIET)
    assert ear.heard == [("step", 6), ("step-00000004", False), ("step-00000008", False)]
    assert backend.asked == [("step-00000004", False), ("step-00000008", False)]  # not in the thread of the loop
    assert [(event["name"], event["step"]) for event in events(result, "checkpoint")] == [
        ("step-00000004", 4),
        ("step-00000008", 8),
    ]


def test_a_checkpoint_holds_the_state_of_its_own_moment(make_run, fresh, loader):
    backend, long, short = SlowBackend(), fresh(), fresh()
    ear = Ear(backend, step=7)
    result = make_run(validates=False)(
        long, loader, checkpoint_every="4 steps", checkpoint_backend=backend, callbacks=[ear], **QUIET
    )
    make_run(validates=False)(short, loader, max_steps=4, **QUIET)
    loaded = open_run(result.folder).load_model(fresh(), "step-00000004")
    assert torch.equal(weights(loaded), weights(short))
    assert not torch.equal(weights(loaded), weights(long))


def test_a_new_checkpoint_waits_for_the_last(make_run, net, loader):
    backend = SlowBackend()
    threading.Timer(0.3, backend.may_publish.set).start()
    result = make_run(validates=False)(
        net, loader, checkpoint_every="2 steps", keep_last=9, checkpoint_backend=backend, **QUIET
    )
    assert names(result) == [f"step-0000000{step}" for step in (2, 4, 6, 8)]


def test_one_may_be_written_before_training_goes_on(make_run, net, loader):
    backend = SlowBackend()
    backend.may_publish.set()
    make_run(validates=False)(net, loader, checkpoint_backend=backend, checkpoint_async=False, **QUIET)
    assert backend.asked == [("step-00000008", True)]


def test_a_failure_reaches_the_loop_and_the_next_one_is_written(make_run, net, loader):
    backend = FailingBackend("step-00000002")
    with pytest.warns(BlowtorchWarning, match="step-00000002 could not be written: .*no room.* tried again"):
        result = make_run(validates=False)(
            net, loader, checkpoint_every="2 steps", keep_last=9, checkpoint_backend=backend, **QUIET
        )
    assert names(result) == [f"step-0000000{step}" for step in (4, 6, 8)]


def test_the_last_checkpoint_is_tried_twice_before_the_run_fails(make_run, net, loader):
    with pytest.warns(BlowtorchWarning, match="could not be written"):
        result = make_run(validates=False)(net, loader, checkpoint_backend=FailingBackend("step-00000008"), **QUIET)
    assert names(result) == ["step-00000008"]
    with (
        pytest.warns(BlowtorchWarning, match="could not be written"),
        pytest.raises(CheckpointError, match="the last checkpoint of the run could not be written"),
    ):
        make_run(validates=False)(net, loader, checkpoint_backend=FailingBackend(*["step-00000008"] * 2), **QUIET)
    assert find_runs()[0].status == "failed"


def test_a_best_that_could_not_be_written_is_not_the_best(make_run, net, loader):
    run = make_run(validates=False)
    losses = iter([1.0, 0.5, 0.8])

    @run.validate_epoch
    def validate():
        return {"loss": next(losses)}

    with pytest.warns(BlowtorchWarning, match="step-00000016 could not be written"):
        result = run(net, loader, max_epochs=3, checkpoint_backend=FailingBackend("step-00000016"), **QUIET)
    assert (result.best.name, result.best.metric) == ("step-00000024", 0.8)
    assert (result.folder / "checkpoints" / "best").read_text().strip() == "step-00000024"


def test_an_error_waits_for_the_checkpoint_on_its_way(make_run, net, loader, events):
    backend = SlowBackend()
    run = make_run(validates=False)

    @run.on("train_step_end")
    def fail(step):
        if step == 5:
            threading.Timer(0.3, backend.may_publish.set).start()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        run(net, loader, checkpoint_every="4 steps", checkpoint_backend=backend, **QUIET)
    (view,) = find_runs()
    assert [each.name for each in view.checkpoints] == ["step-00000004"]
    assert [event["event"] for event in view.events()][-2:] == ["checkpoint", "finish"]


def test_after_a_second_ctrl_c_nothing_is_published_and_the_folder_is_kept_until_the_writer_has_ended(
    make_run, net, loader, monkeypatch
):
    """The checkpoint is just about to be made durable when the run is stopped."""
    is_stopped, was_reached, owned = threading.Event(), threading.Event(), []

    def hold(descriptor, fsync=os.fsync):
        """A disk that takes its time, for the thread that writes a checkpoint."""
        if threading.current_thread() is not threading.main_thread():
            was_reached.set()
            assert is_stopped.wait(20)
            time.sleep(0.2)
            owned.extend(is_owned(folder) for folder in Path("train_logs").iterdir())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", hold)
    run = make_run(validates=False)

    @run.on("train_step_end")
    def stop(step):
        if step == 5:
            assert was_reached.wait(20)
            is_stopped.set()
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(net, loader, checkpoint_every="4 steps", **QUIET)
    (view,) = find_runs()
    assert owned and all(owned)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("blowtorch step")]
    assert view.checkpoints == [] and view.status == "stopped"
    assert not list((view.path / "checkpoints").iterdir())
    assert "best" not in (view.path / "console.log").read_text()


def test_a_pointer_that_cannot_be_written_costs_no_checkpoint(make_run, net, loader, monkeypatch):
    def replace(path, target, real=Path.replace):
        if path.name == ".tmp-latest":
            raise OSError(5, "Input/output error")
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.warns(BlowtorchWarning, match="could not be pointed to step-00000008.*Input/output error"):
        result = make_run(validates=False)(net, loader, max_epochs=1, **QUIET)
    with pytest.warns(BlowtorchWarning, match="could not be pointed to step-00000016"):
        again = make_run(validates=False)(net, loader, max_epochs=2, resume=str(result.folder), **QUIET)
    assert (result.status, again.status, again.step) == ("finished", "finished", 16)


def test_nothing_is_deleted_before_its_successor_is_durable(make_run, net, loader):
    class Watching(LocalBackend):
        def __init__(self):
            self.deleted = []

        @hookimpl
        def checkpoint_delete(self, name):
            self.deleted.append((name, [*self.checkpoint_list()]))
            super().checkpoint_delete(name)

    backend = Watching()
    make_run(validates=False)(net, loader, checkpoint_every="2 steps", keep_last=1, checkpoint_backend=backend, **QUIET)
    assert backend.deleted == [
        (f"step-0000000{step}", [f"step-0000000{step}", f"step-0000000{step + 2}"]) for step in (2, 4, 6)
    ]


def test_an_old_one_that_cannot_be_deleted_is_said_and_costs_nothing(make_run, net, loader):
    class Keeping(LocalBackend):
        @hookimpl
        def checkpoint_delete(self, name):
            raise PermissionError("it is mine")

    with pytest.warns(BlowtorchWarning, match="an old checkpoint could not be deleted: .*it is mine"):
        result = make_run(validates=False)(
            net, loader, max_epochs=3, keep_last=1, keep_best=0, checkpoint_backend=Keeping(), **QUIET
        )
    assert result.status == "finished"


def test_what_is_done_when_a_checkpoint_is_published_moves_no_random_stream(make_run, fresh, loader):
    straight, other = fresh(), fresh()
    make_run(validates=False)(straight, loader, max_epochs=2, **QUIET)
    run = make_run(validates=False)

    @run.on("checkpoint_saved")
    def draw():
        random.random(), np.random.rand(), torch.rand(3)

    run(other, loader, max_epochs=2, checkpoint_every="1 steps", **QUIET)
    assert torch.equal(weights(straight), weights(other))
