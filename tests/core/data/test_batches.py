"""The batches of an epoch: the same from any position, whatever the loader."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    Sampler,
)

from blowtorch import ScriptError
from blowtorch.errors import BlowtorchWarning
from blowtorch.streams import random_state, restore_random_state
from tests.core.data.loaders import (
    SAMPLERS,
    SIZE,
    Augmented,
    Plain,
    Stream,
    assert_restarts,
    batches_of,
    epoch_of,
    epochs_of,
    same,
)


class Shuffling:
    """A loader of somebody's own: it shuffles and augments from the global streams."""

    def __iter__(self):
        order = list(range(8))
        random.shuffle(order)
        for index in order:
            yield torch.tensor([index, np.random.rand(), torch.rand(())], dtype=torch.double)


class Pairs(Sampler):
    """A batch sampler without an end or a length, with a generator and an epoch of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        while True:
            yield torch.randint(SIZE, (2,), generator=self.generator).tolist()


class OwnLoader(DataLoader):
    """A subclass with arguments of its own, which changes what it yields."""

    def __init__(self, size, factor):
        super().__init__(Plain(size), batch_size=4, shuffle=True)
        self.factor = factor

    def __iter__(self):
        for batch in super().__iter__():
            yield batch * self.factor


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_restart_gives_what_an_uninterrupted_epoch_would(kind):
    def make():
        return SAMPLERS[kind](Plain())

    whole = assert_restarts(make)
    assert same(whole[0], epochs_of(make)[0])
    if kind not in ("sequential", "fixed batches"):
        assert not same(whole[0], whole[1])
        assert not same(whole[0], epochs_of(make, seed=8)[0])
    assert len(whole[0]) == len(make())


@pytest.mark.parametrize("kind", ["shuffled", "replacement", "more", "weighted", "subset", "python", "batch sampler"])
def test_a_restart_loads_no_earlier_sample(kind):
    data = Plain()
    batches = batches_of(SAMPLERS[kind](data))
    whole = epoch_of(batches, 1)
    data.seen.clear()
    rest = epoch_of(batches, 1, 4)
    assert data.seen == [int(index) for batch in rest for index in batch]
    assert same(rest, whole[4:])


def test_starting_loads_nothing_yet():
    data = Plain()
    batches_of(DataLoader(data, batch_size=4, shuffle=True)).iterate(1, 2)
    assert data.seen == []


def test_a_shuffled_epoch_has_every_sample_once():
    (epoch, *_) = epochs_of(lambda: SAMPLERS["shuffled"](Plain()))
    assert sorted(int(index) for batch in epoch for index in batch) == list(range(SIZE))


def test_a_sampler_of_more_than_the_dataset_has_every_sample_in_each_round():
    (epoch, *_) = epochs_of(lambda: SAMPLERS["more"](Plain()))
    indices = [int(index) for batch in epoch for index in batch]
    assert len(indices) == 50
    assert sorted(indices[:SIZE]) == sorted(indices[SIZE : 2 * SIZE]) == list(range(SIZE))
    assert indices[:SIZE] != indices[SIZE : 2 * SIZE]


def test_draws_with_replacement_restart_deep_in_an_epoch():
    data = range(1000)
    whole = torch.cat(epoch_of(batches_of(DataLoader(data, 50, sampler=RandomSampler(data, True, 5000))), 1))
    late = torch.cat(epoch_of(batches_of(DataLoader(data, 50, sampler=RandomSampler(data, True, 5000))), 1, 90))
    assert torch.equal(late, whole[4500:])
    assert whole[:1000].unique().numel() < 1000


def test_a_generator_of_the_user_changes_the_order_and_is_not_advanced():
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    data = Plain()
    given = epoch_of(batches_of(DataLoader(data, batch_size=4, shuffle=True, generator=generator)), 1)
    other = epoch_of(batches_of(DataLoader(data, 4, shuffle=True, generator=torch.Generator().manual_seed(6))), 1)
    assert torch.equal(generator.get_state(), before)
    assert not same(given, other)
    assert not same(given, epoch_of(batches_of(DataLoader(data, batch_size=4, shuffle=True)), 1))


def test_loaders_with_different_names_have_different_orders():
    assert not same(*(epoch_of(batches_of(SAMPLERS["shuffled"](Plain()), name=name), 1) for name in ("train", "val")))


def test_the_loader_that_was_given_stays_as_it_was():
    loader = DataLoader(Augmented(), batch_size=4, shuffle=True)
    before = dict(vars(loader))
    epoch_of(batches_of(loader), 1)
    assert vars(loader) == before


@pytest.mark.parametrize("limit", [None, 5])
def test_an_endless_batch_sampler_is_drawn_on_and_told_its_epoch(limit):
    sampler = Pairs()
    before = sampler.generator.get_state()
    batches = batches_of(DataLoader(Plain(), batch_sampler=sampler), limit=limit)
    assert batches.num_batches is None
    whole = list(itertools.islice(batches.iterate(2), 5))
    assert same(list(itertools.islice(batches.iterate(2, 3), 2)), whole[3:])
    assert not same(list(itertools.islice(batches.iterate(3), 5)), whole)
    assert sampler.epochs == [1, 1, 2]
    assert torch.equal(sampler.generator.get_state(), before)


def test_a_subclass_of_the_data_loader_keeps_what_it_does():
    whole = assert_restarts(lambda: OwnLoader(SIZE, 100))
    assert sorted(int(index) for batch in whole[0] for index in batch) == list(range(0, 100 * SIZE, 100))


def test_without_workers_the_dataset_draws_from_the_global_streams_as_by_hand():
    batches = batches_of(DataLoader(Augmented(), batch_size=4)).iterate(1, 2)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    given = next(batches)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert torch.equal(given, torch.stack([Augmented()[index] for index in range(8, 12)]))


@pytest.mark.parametrize(
    "make", [Shuffling, lambda: DataLoader(Stream(), batch_size=2), lambda: (loader for loader in Shuffling())]
)
def test_what_has_no_position_is_drawn_forward_to_the_same_batches(make):
    """Although it draws from the global streams, which training moves on between two batches."""
    whole = []
    for batch in batches_of(make()).iterate(1):
        whole.append(batch)
        torch.rand(3), random.random()
        if len(whole) == 3:
            checkpoint = random_state()
    torch.manual_seed(99)
    with pytest.warns(BlowtorchWarning, match="no position of its own: 3 batches are drawn again"):
        batches = batches_of(make()).iterate(1, 3)
    restore_random_state(checkpoint)
    rest = []
    for batch in batches:
        rest.append(batch)
        torch.rand(3), random.random()
    assert same(rest, whole[3:])


def test_a_list_of_batches_begins_at_an_index():
    class Counting(list):
        asked = 0

        def __getitem__(self, index):
            self.asked += 1
            return super().__getitem__(index)

    source = Counting(range(100))
    batches = batches_of(source)
    assert batches.num_batches == 100
    assert list(batches.iterate(1, 97)) == [97, 98, 99]
    assert source.asked == 3
    assert list(batches.iterate(2)) == list(range(100))
    assert list(batches.iterate(2, 100)) == []


def test_a_limit_holds_for_the_epoch_and_not_for_a_restart():
    loader = DataLoader(Plain(), batch_size=4)
    for source in (loader, list(loader)):
        batches = batches_of(source, limit=3)
        assert batches.num_batches == 3
        assert len(epoch_of(batches, 1)) == 3
        assert same(epoch_of(batches, 1, 2), epoch_of(batches, 1)[2:])
        assert epoch_of(batches, 1, 3) == []
    assert batches_of(loader, limit=50).num_batches == len(loader)


@pytest.mark.parametrize("loader", [[], DataLoader(Plain(3), batch_size=4, drop_last=True)])
def test_an_empty_loader_is_an_error_at_once(loader):
    with pytest.raises(ScriptError, match=r"'train' gave no batch; is drop_last set"):
        batches_of(loader)


def test_a_loader_that_turns_out_empty_is_an_error_at_its_first_batch():
    batches = batches_of(iter([])).iterate(1)
    with pytest.raises(ScriptError, match="gave no batch"):
        next(batches)


@pytest.mark.parametrize("limit", [None, 2])
def test_a_generator_cannot_have_a_second_epoch(limit):
    batches = batches_of((number for number in range(3)), limit=limit)
    assert list(batches.iterate(1)) == [0, 1, 2][:limit]
    with pytest.raises(ScriptError, match="can be iterated only once; give a list"):
        batches.iterate(2)


def test_an_iterator_that_can_begin_again_may():
    class Again:
        def __iter__(self):
            self.left = 3
            return self

        def __next__(self):
            if not self.left:
                raise StopIteration
            self.left -= 1
            return self.left

    batches = batches_of(Again())
    assert [list(batches.iterate(epoch)) for epoch in (1, 2)] == [[2, 1, 0]] * 2


@pytest.mark.parametrize(("thing", "hint"), [(7, "got 7"), (Plain(), "wrap it in a DataLoader")])
def test_what_is_no_iterable_is_an_error(thing, hint):
    with pytest.raises(ScriptError, match=f"expected a loader for 'train'.*{hint}"):
        batches_of(thing)


def test_a_loader_out_of_order_warns_that_its_order_is_not_exact():
    with pytest.warns(BlowtorchWarning, match="in_order=False"):
        batches_of(DataLoader(Plain(), num_workers=1, in_order=False))
