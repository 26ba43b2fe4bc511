"""Samplers whose order depends on the epochs before: after any stops they give what they would have given without."""

import contextlib
import copy
import itertools
import os
import random
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from blowtorch.errors import BlowtorchWarning
from tests.core.data.loaders import Plain, batches_of

SIZE = 22
NUM_EPOCHS = 3


class Shuffling:
    """Shuffles a list of its own in place, whenever it is iterated."""

    def __init__(self, size=SIZE, group=4):
        self.batches = [list(range(first, min(first + group, size))) for first in range(0, size, group)]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        random.shuffle(self.batches)
        yield from self.batches


class WithState(Shuffling):
    """The same, and knows its state."""

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state):
        self.batches = state["batches"]


class Told(Shuffling):
    """Shuffles when it is told the epoch, and not when it is iterated."""

    def set_epoch(self, epoch):
        np.random.shuffle(self.batches)

    def __iter__(self):
        return iter(list(self.batches))


class Counting:
    """Begins one further in each epoch, and counts once it has come to its end."""

    def __init__(self):
        self.num_epochs = 0

    def __iter__(self):
        yield from ((index + self.num_epochs) % SIZE for index in range(SIZE))
        self.num_epochs += 1


class Hidden:
    """Draws from a generator that is kept where nobody finds it."""

    def __init__(self):
        generators = [random.Random(5)]
        self.draw = lambda: generators[0].sample(range(SIZE), SIZE)

    def __iter__(self):
        return iter(self.draw())


class Positioned:
    """Holds its position in its state, and begins anew unless it was given one."""

    def __init__(self):
        self.position, self.given = 0, None

    def __iter__(self):
        self.position, self.given = self.given or 0, None
        order = torch.randperm(SIZE).tolist()
        while self.position < SIZE:
            self.position += 1
            yield order[self.position - 1]

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.given = state["position"]


class Wrapping:
    """Gives what another sampler gives, turned round."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        return reversed(list(self.sampler))


SAMPLERS = {
    "shuffling": lambda: {"batch_sampler": Shuffling()},
    "with a state": lambda: {"batch_sampler": WithState()},
    "told the epoch": lambda: {"batch_sampler": Told()},
    "counting": lambda: {"sampler": Counting(), "batch_size": 4},
    "counting, whole batches": lambda: {"sampler": Counting(), "batch_size": 4, "drop_last": True},
    "unbatched": lambda: {"sampler": Counting(), "batch_size": None},
    "a hidden generator": lambda: {"batch_sampler": BatchSampler(Hidden(), 4, drop_last=False)},
    "with a position": lambda: {"sampler": Positioned(), "batch_size": 4},
    "within another": lambda: {"batch_sampler": Wrapping(Shuffling())},
    "with a state within another": lambda: {"batch_sampler": Wrapping(WithState())},
    "many": lambda: {"batch_sampler": Shuffling(size=1030, group=1)},
    "of a process": lambda: {"sampler": DistributedSampler(range(SIZE), 1, 0), "batch_size": 4},
    "a list": lambda: {"batch_sampler": Shuffling().batches},
}


class Numbers(Plain):
    """The index of each sample, of any number of them."""

    def __getitem__(self, index):
        return torch.tensor([index])


@pytest.fixture(params=SAMPLERS)
def make_loader(request):
    return lambda **settings: DataLoader(Numbers(), **SAMPLERS[request.param](), **settings)


def indices(batches):
    return [batch.flatten().tolist() for batch in batches]


def straight(loader, **settings):
    """Each epoch as it comes without a stop, and the state before each of its batches and at its end."""
    batches = batches_of(loader, **settings)
    whole, states = [], []
    with contextlib.closing(batches):
        for epoch in range(1, NUM_EPOCHS + 1):
            iterator = batches.iterate(epoch)
            whole.append([])
            states.append([])
            for batch in iterator:
                whole[-1].append(batch.flatten().tolist())
                states[-1].append(copy.deepcopy(batches.state_dict()))
            states[-1].append(copy.deepcopy(batches.state_dict()))
    return whole, states


def continued(loader, state, epoch, position, **settings):
    """What comes after a restart at a position, up to the last epoch; and the state after its first batch."""
    batches = batches_of(loader, **settings)
    batches.load_state_dict(state)
    found, later = [], None
    with contextlib.closing(batches):
        for number in range(epoch, NUM_EPOCHS + 1):
            for index, batch in enumerate(batches.iterate(number, position if number == epoch else 0)):
                found.append(batch.flatten().tolist())
                if number == epoch and index == 0:
                    later = copy.deepcopy(batches.state_dict())
    return found, later


def assert_continued(make_loader, **settings):
    """Wherever the epochs are stopped, once and again after one batch more, the rest is what it was without."""
    whole, states = straight(make_loader(), **settings)
    everything = list(itertools.chain.from_iterable(whole))
    for epoch, num_batches in enumerate(map(len, whole), 1):
        places = {1, 2, num_batches // 2, num_batches} if num_batches < 100 else {num_batches - 1}
        for position in sorted(places):
            state = states[epoch - 1][min(position - 1, num_batches)]
            first = sum(map(len, whole[: epoch - 1])) + position
            is_over = position == num_batches
            start = (epoch + 1, 0) if is_over else (epoch, position)
            state = states[epoch - 1][-1] if is_over else state
            found, later = continued(make_loader(), state, start[0], start[1], **settings)
            assert found == everything[first:], (epoch, position)
            if later is not None and not is_over and position + 1 < num_batches:
                again, _ = continued(make_loader(), later, epoch, position + 1, **settings)
                assert again == everything[first + 1 :], (epoch, position)


def test_a_sampler_that_depends_on_epochs_before_gives_the_same_after_any_stops(make_loader):
    with warnings.catch_warnings():
        warnings.simplefilter("error", BlowtorchWarning)
        assert_continued(make_loader)


def test_epochs_that_are_cut_short_are_continued_too(make_loader):
    assert_continued(make_loader, limit=3)


@pytest.mark.parametrize("kind", ["shuffling", "with a state", "counting"])
@pytest.mark.parametrize("limit", [None, 3])
def test_workers_that_are_ahead_change_nothing(kind, limit):
    def make_loader():
        return DataLoader(Numbers(), **SAMPLERS[kind](), num_workers=1)

    whole, states = straight(make_loader(), limit=limit)
    for epoch, position in [(1, 2), (2, 1), (3, 2)]:
        found, _ = continued(make_loader(), states[epoch - 1][position - 1], epoch, position, limit=limit)
        assert found == list(itertools.chain.from_iterable(whole))[sum(map(len, whole[: epoch - 1])) + position :]


class Active(Shuffling):
    """Puts first what training has told it to."""

    def put_first(self, index):
        self.batches.sort(key=lambda batch: batch[0] != index)

    def __iter__(self):
        yield from list(self.batches)


class ActiveWithState(Active):
    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state):
        self.batches = state["batches"]


def test_what_training_has_told_a_sampler_is_in_its_state():
    sampler = ActiveWithState()
    batches = batches_of(DataLoader(Numbers(), batch_sampler=sampler))
    iterator = batches.iterate(1)
    before = [next(iterator), next(iterator)]
    sampler.put_first(12)
    state = copy.deepcopy(batches.state_dict())
    rest, following = indices(iterator), indices(batches.iterate(2))
    again = batches_of(DataLoader(Numbers(), batch_sampler=ActiveWithState()))
    again.load_state_dict(state)
    assert indices(again.iterate(1, len(before))) == rest
    assert indices(again.iterate(2)) == following
    assert following[0][0] == 12


class System(Shuffling):
    """Draws from the operating system."""

    def __iter__(self):
        return iter(random.SystemRandom().sample(self.batches, len(self.batches)))


class Drawn(Shuffling):
    """Has an order that was drawn when it was made, from the operating system."""

    def __init__(self, size=SIZE, group=4):
        super().__init__(size, group)
        self.batches.sort(key=lambda batch: os.urandom(8))

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("kind", [System, Drawn])
def test_a_sampler_that_cannot_be_led_back_is_named(kind):
    def make_loader():
        return DataLoader(Numbers(), batch_sampler=kind(size=400))

    _, states = straight(make_loader())
    for epoch, position, state in [(2, 3, states[1][2]), (2, 0, states[0][-1])]:
        with pytest.warns(
            BlowtorchWarning, match=f"the {kind.__name__} of the loader for 'train' does not give the same"
        ):
            continued(make_loader(), state, epoch, position)


def test_a_sampler_that_training_has_changed_and_that_has_no_state_is_named():
    sampler = Active()
    batches = batches_of(DataLoader(Numbers(), batch_sampler=sampler), name="mine")
    indices(batches.iterate(1))
    sampler.put_first(12)
    indices(batches.iterate(2))
    again = batches_of(DataLoader(Numbers(), batch_sampler=Active()), name="mine")
    again.load_state_dict(copy.deepcopy(batches.state_dict()))
    with pytest.warns(BlowtorchWarning, match="the Active of the loader for 'mine' does not give the same"):
        indices(again.iterate(3))


def test_an_epoch_that_was_forgotten_is_drawn_again():
    """As a validation is that a stop has cut short."""

    def second(stops):
        batches = batches_of(DataLoader(Numbers(), batch_sampler=WithState()))
        other = batches_of(DataLoader(Numbers(), batch_sampler=Shuffling()))
        found = []
        for each, kind in ((batches, WithState), (other, Shuffling)):
            indices(each.iterate(1))
            if stops:
                next(each.iterate(2))
                each.forget_epoch()
                state = copy.deepcopy(each.state_dict())
                each = batches_of(DataLoader(Numbers(), batch_sampler=kind()))
                each.load_state_dict(state)
            found.append([indices(each.iterate(epoch)) for epoch in (2, 3)])
        return found

    assert second(stops=True) == second(stops=False)
