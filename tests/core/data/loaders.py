"""Datasets, samplers and loaders of every kind, and what compares their epochs."""

import itertools
import random

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from blowtorch.data.batches import Batches

CPU = torch.device("cpu")


SIZE = 22


PLACES = (0, 1, 3, 5)


class Augmented(Dataset):
    """Every sample holds its index and a draw from each of the three random streams."""

    def __init__(self, size=SIZE):
        self.size = size
        self.seen = []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if get_worker_info() is None:
            self.seen.append(index)
        draws = [torch.rand(1, dtype=torch.double).item(), np.random.rand(), random.random()]
        return torch.tensor([index, *draws], dtype=torch.double)


class Plain(Augmented):
    """The same without randomness."""

    def __getitem__(self, index):
        self.seen.append(index)
        return torch.tensor([index])


class Stream(IterableDataset):
    """Gives its epoch and draws from each of the three global streams."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for _ in range(12):
            yield torch.tensor([self.epoch, random.random(), np.random.rand(), torch.rand(())], dtype=torch.double)


class PythonSampler(Sampler):
    """Draws from the global stream of Python, one index at a time."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        return (random.randrange(self.size) for _ in range(self.size))

    def __len__(self):
        return self.size


def batches_of(loader, seed=7, **keywords):
    return Batches(loader, seed, CPU, **keywords)


def epoch_of(batches, epoch, position=0):
    return [batch.clone() for batch in batches.iterate(epoch, position)]


def epochs_of(make_loader, seed=7, **keywords):
    batches = batches_of(make_loader(), seed, **keywords)
    found = [epoch_of(batches, epoch) for epoch in (1, 2, 3)]
    batches.close()
    return found


def same(left, right):
    return len(left) == len(right) and all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def assert_restarts(make_loader, places=PLACES, **keywords):
    """Three straight epochs are what fresh loaders give from any position; returns them."""
    whole = epochs_of(make_loader, **keywords)
    for epoch, place in itertools.product((1, 2, 3), places):
        fresh = batches_of(make_loader(), **keywords)
        assert same(epoch_of(fresh, epoch, place), whole[epoch - 1][place:])
        fresh.close()
    return whole


SAMPLERS = {
    "sequential": lambda data: DataLoader(data, batch_size=4),
    "shuffled": lambda data: DataLoader(data, batch_size=4, shuffle=True),
    "drop_last": lambda data: DataLoader(data, batch_size=4, shuffle=True, drop_last=True),
    "generator": lambda data: DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5)),
    "replacement": lambda data: DataLoader(data, 4, sampler=RandomSampler(data, replacement=True, num_samples=30)),
    "fewer": lambda data: DataLoader(data, batch_size=2, sampler=RandomSampler(data, num_samples=15)),
    "more": lambda data: DataLoader(data, batch_size=4, sampler=RandomSampler(data, num_samples=50)),
    "weighted": lambda data: DataLoader(data, batch_size=4, sampler=WeightedRandomSampler(range(1, SIZE + 1), 30)),
    "subset": lambda data: DataLoader(data, batch_size=2, sampler=SubsetRandomSampler(range(3, 17))),
    "python": lambda data: DataLoader(data, batch_size=4, sampler=PythonSampler(SIZE)),
    "batch sampler": lambda data: DataLoader(data, batch_sampler=BatchSampler(PythonSampler(SIZE), 4, False)),
    "unbatched": lambda data: DataLoader(data, batch_size=None, shuffle=True),
    "unbatched lists": lambda data: DataLoader(
        data, batch_size=None, sampler=RandomSampler(data), collate_fn=lambda sample: sample
    ),
    "fixed batches": lambda data: DataLoader(data, batch_sampler=[[index, index + 1] for index in range(0, 20, 2)]),
}


class Counted:
    """Batches without an index, which know where they stand."""

    def __init__(self):
        self.place = 0
        self.given = []

    def __iter__(self):
        while self.place < 6:
            self.place += 1
            self.given.append(self.place)
            yield torch.tensor([self.place])
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class CountedStream(IterableDataset):
    """The same, sample by sample, in a dataset."""

    def __init__(self):
        self.source = Counted()

    def __iter__(self):
        return iter(self.source)

    def state_dict(self):
        return self.source.state_dict()

    def load_state_dict(self, state):
        self.source.load_state_dict(state)
