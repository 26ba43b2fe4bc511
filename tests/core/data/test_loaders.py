"""The names that torch keeps private, and that we use, are there in the torch that is installed."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from blowtorch.data.loaders import copy_loader, end_workers
from tests.core.data.loaders import Augmented

SETTINGS = ("batch_sampler", "dataset", "generator", "pin_memory", "sampler", "worker_init_fn")


@pytest.mark.parametrize("name", [*SETTINGS, "_iterator"])
def test_a_loader_keeps_its_settings_in_its_dictionary(name):
    assert name in vars(DataLoader(Augmented(), batch_size=4))


def test_an_iterator_with_workers_has_a_method_that_ends_them():
    loader = DataLoader(Augmented(), batch_size=4, num_workers=1)
    iterator = iter(loader)
    assert callable(getattr(iterator, "_shutdown_workers", None))
    end_workers(loader, iterator)


def test_a_loader_keeps_the_iterator_whose_workers_outlive_an_epoch():
    loader = DataLoader(Augmented(), batch_size=4, num_workers=1, persistent_workers=True)
    iterator = iter(loader)
    assert loader._iterator is iterator
    end_workers(loader, iterator)
    assert loader._iterator is None


def test_a_copy_has_other_settings_and_leaves_the_loader_as_it_was():
    class Named(DataLoader):
        title = None

    loader = Named(Augmented(), batch_size=4, shuffle=True, drop_last=True)
    loader.title = "mine"
    before = dict(vars(loader))
    order = [[3, 1], [2]]
    generator = torch.Generator()
    twin: Any = copy_loader(loader, batch_sampler=order, generator=generator)
    assert [batch[:, 0].tolist() for batch in twin] == order
    assert (type(twin), twin.title, twin.drop_last, twin.generator) == (Named, "mine", True, generator)
    assert dict(vars(loader)) == before
