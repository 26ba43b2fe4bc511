"""Checkpoints that are written while training goes on: order, failures, and what a continued run insists on."""

import json
import os
import random
import re
import signal
import threading
import time

import numpy as np
import pytest
import torch

from blowtorch import BlowtorchWarning, CheckpointError, NotFiniteError, OptionError, find_runs, hookimpl, open_run
from blowtorch.builtin.local import LocalBackend
from blowtorch.folder.manifest import read_manifest, write_manifest

QUIET = {"progress": False}


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


def names(result):
    return [each.name for each in open_run(result.folder).checkpoints]


def metric_lines(events, result):
    return [{**event, "time": None} for event in events(result, "metrics")]


def weights(net):
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@pytest.fixture
def fresh():
    """The same small model with dropout, again and again."""

    def make():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))

    return make


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
        result = run(net, loader, loader, max_epochs=3, checkpoint_backend=FailingBackend("step-00000016"), **QUIET)
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


def test_a_second_ctrl_c_waits_for_nothing_and_publishes_nothing_later(make_run, net, loader, monkeypatch):
    """The checkpoint is just about to be made durable when the run is stopped."""
    is_stopped, was_reached = threading.Event(), threading.Event()

    def hold(record):
        was_reached.set()
        assert is_stopped.wait(20)

    monkeypatch.setattr("blowtorch.record.record.Record.make_durable", hold)
    run = make_run(validates=False)

    @run.on("train_step_end")
    def stop(step):
        if step == 5:
            assert was_reached.wait(20)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(net, loader, checkpoint_every="4 steps", **QUIET)
    (writer,) = [thread for thread in threading.enumerate() if thread.name == "blowtorch step-00000004"]
    is_stopped.set()
    writer.join(20)
    (view,) = find_runs()
    assert view.checkpoints == [] and view.status == "stopped"
    assert not list((view.path / "checkpoints").iterdir())


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


# What a continued run insists on.


def test_a_part_may_be_begun_anew_if_it_is_named(make_run, net, loader):
    first = make_run(validates=False)(net, loader, scheduler="cosine", **QUIET)
    options = {"max_epochs": 2, "resume": str(first.folder), **QUIET}
    with pytest.raises(CheckpointError, match="run.resume_without=schedulers/optimizer"):
        make_run(validates=False)(net, loader, **options)
    result = make_run("with", "run.resume_without=schedulers/optimizer", validates=False)(net, loader, **options)
    assert (result.status, result.step) == ("finished", 16)


def test_a_part_that_is_new_may_be_named_too(make_run, net, loader):
    first = make_run(validates=False)(net, loader, **QUIET)
    options = {"max_epochs": 2, "resume": str(first.folder), "scheduler": "cosine", **QUIET}
    with pytest.raises(CheckpointError, match="holds no 'schedulers/optimizer', which the script has"):
        make_run(validates=False)(net, loader, **options)
    assert make_run(validates=False)(net, loader, resume_without=["schedulers/optimizer"], **options).step == 16


@pytest.mark.parametrize(("name", "hint"), [("randm/numpy", "Did you mean 'random/numpy'"), ("state", "There are")])
def test_a_name_that_cannot_be_left_out_names_the_nearest(make_run, net, loader, name, hint):
    first = make_run(validates=False)(net, loader, **QUIET)
    with pytest.raises(CheckpointError, match=f"resume_without names '{name}', .*{hint}"):
        make_run(validates=False)(net, loader, max_epochs=2, resume=str(first.folder), resume_without=[name], **QUIET)


def change_training(checkpoint, change):
    """Rewrite a part of a checkpoint, as if it had always been so."""
    content = torch.load(checkpoint / "training.pt", weights_only=True)
    change(content)
    torch.save(content, checkpoint / "training.pt")
    manifest = read_manifest(checkpoint)
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint, manifest.step, manifest.epoch, manifest.metrics)


@pytest.mark.parametrize("stream", ["python", "numpy", "torch"])
def test_a_random_stream_that_is_missing_is_named_and_may_be_forgiven(make_run, net, loader, stream):
    first = make_run(validates=False)(net, loader, **QUIET)
    change_training(first.folder / "checkpoints" / "step-00000008", lambda content: content["random"].pop(stream))
    options = {"max_epochs": 2, "resume": str(first.folder), **QUIET}
    with pytest.raises(CheckpointError, match=f"holds no 'random/{stream}', which the script has"):
        make_run(validates=False)(net, loader, **options)
    assert make_run(validates=False)(net, loader, resume_without=f"random/{stream}", **options).step == 16


def test_a_stream_of_a_device_that_is_not_here_is_named(make_run, net, loader):
    first = make_run(validates=False)(net, loader, **QUIET)
    path = first.folder / "checkpoints" / "step-00000008"
    change_training(path, lambda content: content["random"].update(cuda=[torch.zeros(16, dtype=torch.uint8)]))
    options = {"max_epochs": 2, "resume": str(first.folder), **QUIET}
    with pytest.raises(CheckpointError, match="holds 'random/cuda', which the script has not"):
        make_run(validates=False)(net, loader, **options)
    assert make_run(validates=False)(net, loader, resume_without="random/cuda", **options).step == 16


def test_a_checkpoint_of_another_version_is_refused_with_both_versions(make_run, net, loader):
    first = make_run(validates=False)(net, loader, max_epochs=2, **QUIET)
    manifest = first.folder / "checkpoints" / "step-00000016" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 7}))
    info = first.folder / "run.yaml"
    info.write_text(re.sub(r"(blowtorch-core: .*)0\.1\.0", r"\g<1>0.9.4", info.read_text()))
    with pytest.raises(
        CheckpointError, match=r"another version, blowtorch-core 0\.9\.4, and this is 0\.1\.0: .*format 7"
    ):
        make_run(validates=False)(net, loader, max_epochs=3, resume=str(first.folder), **QUIET)
    assert names(first) == ["step-00000008"]  # the other is not readable for us, and still there
    assert manifest.is_file()


class Payload:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("executed", "w"))


@pytest.mark.parametrize("file", ["model.pt", "training.pt"])
def test_a_strangers_checkpoint_is_refused_and_nothing_is_executed(make_run, net, loader, tmp_path, file):
    first = make_run(validates=False)(net, loader, **QUIET)
    path = first.folder / "checkpoints" / "step-00000008"
    torch.save({"weights": Payload()}, path / file)
    (path / "manifest.json").unlink()
    write_manifest(path, 8, 1, {})
    with pytest.raises(CheckpointError, match="cannot be read as tensors and plain values"):
        make_run(validates=False)(net, loader, max_epochs=2, resume=str(first.folder), **QUIET)
    if file == "model.pt":
        with pytest.raises(CheckpointError, match="cannot be read as tensors and plain values"):
            make_run(validates=False)(net, loader, initialize_from=str(first.folder), **QUIET)
        view = open_run(first.folder)
        with pytest.raises(CheckpointError, match="cannot be read as tensors and plain values: it names io.open"):
            view.load_model(net, "latest")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("first", [{"max_steps": 5}, {"max_steps": 8}, {"max_epochs": 1}, {"max_steps": 11}])
@pytest.mark.parametrize("then", [{"max_epochs": 3}, {"max_steps": 21}])
def test_a_run_that_is_continued_to_a_larger_limit_is_the_one_that_had_it_at_once(
    make_run, fresh, loader, events, first, then
):
    straight, other, again = fresh(), fresh(), fresh()
    expected = make_run()(straight, loader, loader, log_every="3 steps", **then, **QUIET)
    short = make_run()(other, loader, loader, log_every="3 steps", **first, **QUIET)
    result = make_run()(again, loader, loader, log_every="3 steps", resume=str(short.folder), **then, **QUIET)
    assert torch.equal(weights(straight), weights(again))
    assert metric_lines(events, expected) == metric_lines(events, result)


def test_a_schedule_follows_the_new_length_and_the_run_says_so(make_run, fresh, loader, events):
    def rates(result):
        return {
            event["step"]: event["metrics"]["lr"] for event in events(result, "metrics") if "lr" in event["metrics"]
        }

    options = {"scheduler": "cosine", "log_every": "1 steps", "validate_every": None, **QUIET}
    whole = make_run(validates=False)(fresh(), loader, max_steps=24, **options)
    short = make_run(validates=False)(fresh(), loader, max_steps=12, **options)
    longer = make_run(validates=False)(fresh(), loader, max_steps=24, resume=str(short.folder), **options)
    expected = {**rates(short), **{step: rate for step, rate in rates(whole).items() if step > 12}}
    assert rates(longer) == pytest.approx(expected)
    said = "the run has 24 steps now and had 12 before: scheduler 'cosine'"
    assert said in (longer.folder / "console.log").read_text()
    assert "steps now and had" not in (whole.folder / "console.log").read_text()


# How a run ends.


def wait_for_the_end_of_time(run, at_step):
    @run.on("train_step_end")
    def wait(state):
        while state.step == at_step and state.interruption is None:
            time.sleep(0.01)


def test_max_time_stops_a_run_that_goes_on_later(make_run, fresh, loader, events):
    straight, other, again = fresh(), fresh(), fresh()
    expected = make_run()(straight, loader, loader, max_epochs=2, **QUIET)
    run = make_run()
    wait_for_the_end_of_time(run, at_step=11)
    first = run(other, loader, loader, max_epochs=2, max_time="0.5 seconds", **QUIET)
    assert first.status == "stopped" and first.step <= 11
    assert events(first, "finish")[-1]["reason"] == "max_time of 0.5 seconds is over"
    second = make_run()(again, loader, loader, max_epochs=2, resume=str(first.folder), **QUIET)
    assert torch.equal(weights(straight), weights(again))
    assert metric_lines(events, expected) == metric_lines(events, second)


def test_max_time_alone_is_a_limit(make_run, net, loader):
    run = make_run(validates=False)
    wait_for_the_end_of_time(run, at_step=20)  # in the third epoch
    assert run(net, loader, max_time="0.5 seconds", **QUIET).status == "stopped"


@pytest.mark.parametrize("value", ["3 steps", "soon"])
def test_max_time_is_a_time(make_run, net, loader, value):
    with pytest.raises(OptionError, match="option max_time: expected"):
        make_run(validates=False)(net, loader, max_time=value, **QUIET)


@pytest.fixture
def spoiled(make_run):
    """A run whose loss is NaN from the sixth step on, while its model stays finite."""
    run = make_run(validates=False)

    @run.train_step
    def step(batch, model, step):
        loss = model(batch[0]).pow(2).mean()
        return {"loss": loss, "shown": loss * float("nan"), "aside": loss.detach() * float("nan")} if step > 5 else loss

    return run


def test_a_loss_that_is_nan_fails_the_run_when_it_is_recorded(spoiled, fresh, loader):
    options = {"optimize_metric": "loss", "checkpoint_every": "2 steps", "log_every": "4 steps"}

    @spoiled.train_step
    def step(batch, model, step):
        return model(batch[0]).pow(2).mean() * (float("nan") if step > 5 else 1)

    with pytest.raises(NotFiniteError, match=r"(?s)step-00000006 is not written: '0.weight' in the model"):
        spoiled(fresh(), loader, **options, **QUIET)
    (view,) = find_runs()
    assert view.status == "failed" and [each.name for each in view.checkpoints][-1] == "step-00000004"
    with pytest.raises(NotFiniteError, match="train/loss is nan at step 8, and so is '0.weight' in the model"):
        spoiled(fresh(), loader, **{**options, "checkpoint_every": None}, **QUIET)


def test_other_metrics_may_be_nan(spoiled, net, loader):
    assert spoiled(net, loader, log_every="1 steps", **QUIET).status == "finished"


def test_a_loss_that_is_nan_may_be_warned_of_or_ignored(make_run, net, loader, recwarn):
    run = make_run(validates=False)

    @run.train_step
    def step(batch, model, step):
        loss = model(batch[0]).pow(2).mean()
        return loss if step < 5 else loss - loss.detach() + float("inf")  # its gradient is that of the loss

    assert run(net, loader, on_nan="ignore", log_every="1 steps", **QUIET).status == "finished"
    assert not [each for each in recwarn if "train/loss" in str(each.message)]
    assert run(net, loader, on_nan="warn", log_every="1 steps", **QUIET).status == "finished"
    (warning,) = [each for each in recwarn if "train/loss" in str(each.message)]
    assert "train/loss is inf at step 5, and the model is still finite" in str(warning.message)


def test_what_on_nan_may_say_is_checked(make_run, net, loader):
    with pytest.raises(
        OptionError, match="option on_nan: expected 'stop', 'warn', 'skip', 'ignore', got 'wran'. Did you mean"
    ):
        make_run(validates=False)(net, loader, on_nan="wran", **QUIET)


@pytest.mark.parametrize("every", ["1 epoch", "3 steps"])
def test_a_stop_does_not_wait_for_a_validation_which_is_then_done_again(make_run, fresh, loader, events, every):
    """Stopped in the middle of each of two validations at one step, and continued; nothing tells it afterwards."""

    def train(net, interrupts, **options):
        run = make_run(validates=False)
        calls = []
        for name in ("val", "ood"):

            @run.validate_step(loader, name=name)
            def validate(batch, model, step, name=name):
                calls.append((name, step))
                if calls.count((name, step)) == 3 and (name, step) in interrupts:
                    os.kill(os.getpid(), signal.SIGTERM)
                return {"loss": model(batch[0]).mean(), "drawn": torch.rand(())}

        result = run(net, loader, max_epochs=2, validate_every=every, **options, **QUIET)
        return result, calls

    straight, other = fresh(), fresh()
    expected, _ = train(straight, [])
    step = 8 if every == "1 epoch" else 6
    stopped, calls = train(other, [("val", step)])
    assert stopped.status == "stopped" and calls.count(("val", step)) == 3 and stopped.step == step
    stopped, calls = train(fresh(), [("ood", step)], resume=str(stopped.folder))
    assert stopped.status == "stopped" and calls.count(("val", step)) == 8 and calls.count(("ood", step)) == 3
    again = fresh()
    finished, calls = train(again, [], resume=str(stopped.folder))
    assert finished.status == "finished" and ("val", step) not in calls and calls.count(("ood", step)) == 8
    assert torch.equal(weights(straight), weights(again))
    assert metric_lines(events, expected) == metric_lines(events, finished)
    assert expected.best.metric == finished.best.metric and expected.best.name == finished.best.name
