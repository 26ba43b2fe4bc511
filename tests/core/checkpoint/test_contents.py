"""What a checkpoint holds, and what is said where it does not fit the script."""

import pytest
from torch import nn

from blowtorch import (
    BlowtorchWarning,
    CheckpointError,
)
from tests.core.small_runs import QUIET


def test_a_checkpoint_of_another_model_names_the_first_tensor_that_differs(make_run, net, loader):
    first = make_run(validates=False)(net, loader, **QUIET)
    other = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Dropout(0.0), nn.Linear(9, 1))
    with pytest.raises(CheckpointError, match=r"tensor '0.weight' has shape \(8, 4\) .* and \(9, 4\) in the model"):
        make_run(validates=False)(other, loader, max_epochs=2, resume=str(first.folder), **QUIET)


def test_a_piece_that_the_script_lacks_is_named(make_run, net, loader):
    first = make_run(validates=False)(net, loader, scheduler="cosine", **QUIET)
    with pytest.raises(CheckpointError, match="holds 'schedulers/optimizer', which the script has not"):
        make_run(validates=False)(net, loader, max_epochs=2, resume=str(first.folder), **QUIET)


def test_objects_that_are_kept_come_back(make_run, net, loader):
    class Counter:
        count = 0

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    counter = Counter()
    run = make_run(validates=False)
    run.keep_state("counter", counter)
    counter.count = 3
    first = run(net, loader, **QUIET)
    other = Counter()
    run = make_run(validates=False)
    run.keep_state("counter", other)
    run(net, loader, max_epochs=2, resume=str(first.folder), **QUIET)
    assert other.count == 3


def test_an_object_whose_state_cannot_be_stored_is_named_before_training(make_run, net, loader):
    class Strange:
        def state_dict(self):
            return {"items": [1, object()]}

        def load_state_dict(self, state):
            pass

    run = make_run(validates=False)
    run.keep_state("strange", Strange())
    with pytest.raises(CheckpointError, match=r"kept/strange\['items'\]\[1\] is a object"):
        run(net, loader, **QUIET)


class Reluctant:
    """Does not give its state from some step on."""

    def __init__(self, calls):
        self.calls = calls

    def state_dict(self):
        self.calls -= 1
        if self.calls < 0:
            raise KeyError("lost")
        return {}

    def load_state_dict(self, state):
        pass


def test_an_object_that_does_not_give_its_state_is_named_before_training(make_run, net, loader):
    run = make_run(validates=False)
    run.keep_state("reluctant", Reluctant(calls=0))
    with pytest.raises(CheckpointError, match="kept/reluctant does not give its state: KeyError: 'lost'"):
        run(net, loader, **QUIET)


def test_an_object_that_does_not_give_its_state_later_costs_a_checkpoint_and_not_the_steps(make_run, net, loader):
    run, steps = make_run(validates=False), []
    run.keep_state("reluctant", Reluctant(calls=3))
    run.on("train_step_end")(lambda step: steps.append(step))
    with (
        pytest.warns(BlowtorchWarning, match="could not be taken: kept/reluctant does not give its state"),
        pytest.raises(CheckpointError, match="the last checkpoint of the run could not be written"),
    ):
        run(net, loader, max_steps=6, checkpoint_every="2 steps", **QUIET)
    assert steps[-1] == 6
