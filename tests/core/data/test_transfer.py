"""The size of a batch, and its way to the device."""

import dataclasses
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
)

from blowtorch.data.batches import Batches
from blowtorch.data.sources import choose_source
from blowtorch.data.transfer import one_ahead
from blowtorch.record.metrics import count_samples
from tests.core.data.loaders import CPU, CountedStream, Plain

META = torch.device("meta")  # moves without an accelerator


class Point(NamedTuple):
    x: torch.Tensor
    label: str


@dataclasses.dataclass(frozen=True)
class Sample:
    x: torch.Tensor
    double: torch.Tensor = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "double", self.x * 2)


class Moves:
    device = CPU

    def to(self, device):
        self.device = device
        return self


X = torch.zeros(5, 2)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (X, 5),
        ((X, torch.zeros(3)), 5),
        ([X], 5),
        ({"x": X, "y": torch.zeros(3)}, 5),
        (({"text": ["a", "b"]}, [X]), 5),
        (Point(X, "a"), 5),
        (Sample(X), 5),
        (np.zeros((4, 2)), 4),
        (("name", np.zeros(4)), 4),
        (torch.tensor(3.0), 1),
        (torch.zeros(0, 3), 0),
        ("text", 1),
        ([], 1),
        ({}, 1),
        (None, 1),
    ],
)
def test_a_batch_has_the_size_of_its_first_tensor(batch, size):
    assert count_samples(batch) == size


def test_on_the_cpu_a_batch_is_not_walked():
    batch = {"x": [X]}
    assert next(Batches([batch], 0, CPU).iterate(1)) is batch


def test_the_next_batch_is_on_its_way_while_one_is_trained_on():
    done = []

    def fetch():
        for number in range(4):
            done.append(f"fetch {number}")
            yield number

    for number in one_ahead(fetch(), lambda batch: done.append(f"send {batch}") or batch, lambda sent: sent):
        done.append(f"train {number}")
    assert done == [
        *("fetch 0", "send 0", "fetch 1", "send 1", "train 0", "fetch 2", "send 2", "train 1"),
        *("fetch 3", "send 3", "train 2", "train 3"),
    ]


def test_no_more_than_two_batches_are_held():
    alive, most = weakref.WeakSet(), 0
    for batch in one_ahead((Moves() for _ in range(4)), lambda batch: batch, lambda sent: sent):
        alive.add(batch)
        most = max(most, len(alive))
    assert most <= 2


class Mirrored(DataLoader):
    """Changes the batches of its workers in this process."""

    def __iter__(self):
        return (batch * torch.randint(2, ()) for batch in super().__iter__())


class Augmenting(Sequence):
    """Draws when it is asked for a batch; how it loads them is its own matter."""

    num_workers = None

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X * torch.randint(2, ()), X


@pytest.mark.parametrize(
    ("make", "may"),
    [
        (lambda: [(X, X)], True),
        (lambda: DataLoader(Plain(), num_workers=1), True),
        (lambda: Mirrored(Plain(), num_workers=1), False),  # what it does with a batch may draw, too
        (lambda: Augmenting(), False),
        (lambda: DataLoader(Plain()), False),  # its dataset may draw from the streams of training
        (lambda: iter([(X, X)]), False),
        (lambda: DataLoader(CountedStream()), False),  # its position is that of what was fetched
    ],
)
def test_nothing_is_fetched_ahead_where_that_could_be_noticed(make, may):
    assert choose_source(make(), "train", 0, CPU).may_look_ahead is may


def test_batches_arrive_on_the_device():
    (batch,) = Batches([(X, "a")], 7, META).iterate(1)
    assert batch[0].device == META
