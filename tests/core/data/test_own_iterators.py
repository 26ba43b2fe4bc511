"""Loaders whose class has an iterator of its own."""

import itertools
import warnings

import pytest
import torch
from torch.utils.data import DataLoader

from blowtorch.errors import BlowtorchWarning
from tests.core.data.loaders import Augmented, Plain, batches_of, epoch_of, same


class Endless(DataLoader):
    """Begins again whenever it has come to its end, as many scripts have it."""

    def __iter__(self):
        while True:
            yield from super().__iter__()


class Prefetching(DataLoader):
    """Looks at each batch of the loader's own."""

    def __iter__(self):
        for batch in super().__iter__():
            yield batch + 0


class OneIterator(DataLoader):
    """Keeps one iterator for all epochs, made before anybody takes the place of the sampler."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.running = self.again()

    def again(self):
        while True:
            yield from DataLoader.__iter__(self)

    def __iter__(self):
        return itertools.islice(self.running, len(self))


@pytest.mark.parametrize("position", [1, 5, 6, 7, 12, 16])
@pytest.mark.parametrize("settings", [{}, {"num_workers": 1}])
def test_an_endless_loader_goes_on_in_the_pass_in_which_it_was(position, settings):
    def first_of(position):
        batches = batches_of(Endless(Plain(), batch_size=4, shuffle=True, **settings))
        with warnings.catch_warnings():
            warnings.simplefilter("error", BlowtorchWarning)
            found = [
                batch.flatten().tolist() for batch in itertools.islice(batches.iterate(2, position), 20 - position)
            ]
        batches.close()
        return found

    whole = first_of(0)
    passes = [list(itertools.chain.from_iterable(whole[first : first + 6])) for first in (0, 6, 12)]
    assert all(sorted(each) == list(range(22)) for each in passes)
    assert passes[0] != passes[1] != passes[2]
    assert first_of(position) == whole[position:]


def test_an_iterator_that_asks_the_sampler_is_like_any_other():
    def epoch(position):
        return epoch_of(batches_of(Prefetching(Plain(), batch_size=4, shuffle=True)), 2, position)

    with warnings.catch_warnings():
        warnings.simplefilter("error", BlowtorchWarning)
        assert same(epoch(3), epoch(0)[3:])


def test_a_loader_that_does_not_ask_for_our_order_is_named_and_goes_on_from_the_right_batch():
    def epoch(position):
        torch.manual_seed(5)
        loader = OneIterator(Augmented(), batch_size=4)
        next(loader.running)  # as those do that start their workers when they are made
        return [batch[:, 0].tolist() for batch in batches_of(loader).iterate(1, position)]

    whole = epoch(0)
    with pytest.warns(BlowtorchWarning, match="is a OneIterator, which iterates in an order of its own: 2 batches are"):
        assert epoch(2) == whole[2:]
