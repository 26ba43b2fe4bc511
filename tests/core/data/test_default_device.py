"""Loaders of a script that has made another device the default have the order that they have without it."""

import functools
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tests.core.data.loaders import SAMPLERS, SIZE, batches_of, same

DATA = TensorDataset(torch.arange(SIZE))


class Stream(IterableDataset):
    """Samples that are there already."""

    def __iter__(self):
        return iter(DATA)


LOADERS: dict[str, Any] = {
    **{name: functools.partial(make, DATA) for name, make in SAMPLERS.items()},
    "a worker": lambda: DataLoader(DATA, batch_size=4, shuffle=True, num_workers=1),
    "a stream": lambda: DataLoader(Stream(), batch_size=4),
    "a stream in a worker": lambda: DataLoader(Stream(), batch_size=4, num_workers=1),
}


@pytest.fixture
def as_default():
    """Make a device the default, on which a number has no value, so that none can be drawn there."""
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


@pytest.mark.parametrize("kind", LOADERS)
def test_the_default_device_changes_no_order(kind, as_default):
    whole, other = LOADERS[kind](), LOADERS[kind]()
    expected = [tensor for (tensor,) in batches_of(whole).iterate(2)]
    as_default()
    batches = batches_of(other)
    assert same([tensor for (tensor,) in batches.iterate(2)], expected)
    batches.close()
