"""Metrics on an accelerator are read when the next step is under way, and all is as if they were read at once."""

import math
import threading

import pytest
import torch
from torch import nn

from blowtorch import BlowtorchWarning, NotFiniteError, hookimpl
from tests.core.training.gradient_runs import QUIET, batches, start

HAPPENED: list[tuple[str, int | list[float]]] = []
DATA = batches(8, 8, 4, 8, 8, 8, 8)


class OnADevice(torch.Tensor):
    """Says that it is on an accelerator, and notes when it is read."""

    is_cpu = False

    def tolist(self):
        values = self.as_subclass(torch.Tensor).tolist()
        HAPPENED.append(("read", values))
        return values


class ReadByAnother(OnADevice):
    """Is not read by any thread but the main one until the run has gone on, or has let that thread have its time."""

    is_being_read, has_gone_on = threading.Event(), threading.Event()

    def tolist(self):
        if threading.current_thread() is not threading.main_thread():
            self.is_being_read.set()
            self.has_gone_on.wait(0.5)
        return super().tolist()


@pytest.fixture(autouse=True)
def nothing_has_happened():
    HAPPENED.clear()


def train(kind, *, fails_at=None, spoiled=(), logs_text=False, asks=False, watching=None, **options):
    """Train on metrics of a kind of tensor; return the result, and what callbacks have seen."""
    run, seen = start(), []

    @run.train_step
    def step(batch, model, step):
        HAPPENED.append(("step", step))
        if logs_text:
            run.log_text("text", f"of step {step}")
        if step == fails_at:
            raise ValueError("this step fails")
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        run.log({"largest": loss.detach().as_subclass(kind)}, reduce="max")
        recorded = loss.detach() * (math.nan if step in spoiled else 1)
        return {"loss": (loss + recorded - loss.detach()).as_subclass(kind), "one": torch.ones(()).as_subclass(kind)}

    run.validate_step(lambda batch, model: nn.functional.mse_loss(model(batch[0]), batch[1]))

    class Watching:
        @hookimpl
        def train_step_end(self, state):
            if asks:
                seen.append((state.step, dict(state.metrics)))

        @hookimpl
        def epoch_end(self, state, metrics):
            seen.append((state.step, dict(metrics), dict(state.metrics)))

    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    callbacks = [Watching(), *([] if watching is None else [watching])]
    result = run(model, DATA, DATA[:2], callbacks=callbacks, **{"log_every": "3 steps", **QUIET, **options})
    return result, seen


def recorded(folder, events, *kinds):
    drop = ("time", "id", "name", "changed", "said", "checkpoint", "file")
    return [
        {key: value for key, value in event.items() if key not in drop}
        for event in events(folder)
        if not kinds or event["event"] in kinds
    ]


def test_metrics_are_read_once_the_next_step_is_under_way():
    train(OnADevice, max_steps=7, checkpoint_every=None, validate_every=None)
    assert [event if name == "step" else "read" for name, event in HAPPENED] == [
        *(1, 2, 3, 4, "read", 5, 6, 7),
        *("read", "read"),  # at the end of the epoch there is no next step
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 3},
        {"max_steps": 10},
        {"log_every": "1 step", "max_epochs": 2},
        {"validate_every": "2 steps", "checkpoint_every": "4 steps", "max_epochs": 2},
        {"log_every": "2 steps", "logs_text": True},
        {"asks": True, "max_epochs": 2, "scheduler": "cosine"},
        {"max_samples": 40},
        {"on_nan": "ignore", "spoiled": [3, 5]},
    ],
    ids=lambda options: " ".join(options),
)
def test_what_is_recorded_and_what_callbacks_see_is_the_same_in_the_same_order(options, events):
    at_once, late = (train(kind, **options) for kind in (torch.Tensor, OnADevice))
    kinds = ("metrics", "text", "finish", "start")
    assert recorded(at_once[0], events, *kinds) == recorded(late[0], events, *kinds)
    assert repr(at_once[1]) == repr(late[1])
    assert repr(at_once[0].metrics) == repr(late[0].metrics)


def test_another_thread_may_ask_for_metrics_and_the_run_waits_for_what_that_records(events):
    asking = []

    class Asking:
        @hookimpl
        def train_step_end(self, state):
            if state.step == 4:  # what step 3 has recorded is still to be read
                asking.append(threading.Thread(target=lambda: dict(state.metrics)))
                asking[0].start()
                ReadByAnother.is_being_read.wait()

        @hookimpl
        def epoch_end(self):
            ReadByAnother.has_gone_on.set()

    alone, _ = train(OnADevice)
    asked, _ = train(ReadByAnother, watching=Asking())
    asking[0].join()
    assert recorded(alone, events, "metrics") == recorded(asked, events, "metrics")


def test_a_run_that_goes_on_has_the_same_record(events):
    whole, _ = train(OnADevice, max_steps=14)
    short, _ = train(OnADevice, max_steps=4, checkpoint_every="2 steps")
    train(OnADevice, max_steps=14, resume=str(short.folder))
    assert recorded(whole, events, "metrics") == recorded(short, events, "metrics")


def test_a_step_that_fails_loses_nothing_of_what_was_recorded_before(events, tmp_path):
    with pytest.raises(ValueError, match="this step fails"):
        train(OnADevice, fails_at=4, run_name="failed")
    (folder,) = (tmp_path / "train_logs").glob("*failed*")

    class Failed:
        def __init__(self):
            self.folder = folder

    kinds = [(event["event"], event["step"]) for event in events(Failed()) if event["event"] in ("metrics", "finish")]
    assert kinds == [("metrics", 3), ("finish", 3)]


def test_a_loss_that_is_not_finite_is_noticed_a_step_later_and_told_of_its_own_step(events):
    with pytest.raises(NotFiniteError, match="train/loss is nan at step 3, and the model is still finite"):
        train(OnADevice, spoiled=[2])
    assert max(step for name, step in HAPPENED if name == "step") == 4
    with pytest.warns(BlowtorchWarning, match="train/loss is nan at step 3, .*on_nan='warn' goes on"):
        result, _ = train(OnADevice, spoiled=[2], on_nan="warn")
    assert [event["step"] for event in events(result, "metrics")] == [3, 6, 7, 7]


def test_a_loss_that_somebody_has_asked_for_is_heeded_all_the_same():
    with pytest.raises(NotFiniteError, match="train/loss is nan at step 3"):
        train(OnADevice, spoiled=[2], asks=True)
    with pytest.raises(NotFiniteError, match="train/loss is nan at step 6"):
        train(OnADevice, spoiled=[6], logs_text=True, max_steps=7)
