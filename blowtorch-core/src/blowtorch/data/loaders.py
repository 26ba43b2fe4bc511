"""Copies of torch's `DataLoader`: the only room that uses what torch keeps private.

These are the attribute `_iterator` of a loader, which holds the workers that outlive an epoch; the method
`_shutdown_workers` of its iterators; and the settings of a loader, as they lie in its `__dict__`. torch refuses to have
some of them set, but a copy with other settings keeps the meaning of all the rest, those of subclasses included.
"""

import copy
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


def copy_loader(loader: DataLoader[Any], **settings: Any) -> DataLoader[Any]:
    """Return a copy of a loader that has other settings and no workers yet."""
    twin = copy.copy(loader)
    twin.__dict__.update(settings, _iterator=None)
    return twin


def end_workers(loader: DataLoader[Any], iterator: Iterator[Any] | None) -> None:
    """End the workers of a loader's iterator, and those that the loader keeps for its next epoch."""
    for name in ("_shutdown_workers", "close"):  # a subclass of DataLoader may iterate by a generator
        if callable(getattr(iterator, name, None)):
            getattr(iterator, name)()
    loader._iterator = None
