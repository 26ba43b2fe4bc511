"""Lengths of loaders, and copies of torch's `DataLoader`: the only room that uses what torch keeps private.

These are the attribute `_iterator` of a loader, which holds the workers that outlive an epoch; the attribute
`_IterableDataset_len_called`, the length that it warns of if more comes; the method `_shutdown_workers` of its
iterators, and their attribute `_workers`; and the settings of a loader, as they lie in its `__dict__`. torch refuses to
have some of them set, but a copy with other settings keeps the meaning of all the rest, those of subclasses included.
"""

import atexit
import contextlib
import copy
import functools
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

_LENGTH_ASKED = "_IterableDataset_len_called"


def length_of(sized: Any) -> int | None:
    """Return what a loader or a dataset says of its length; None where it says nothing, or nothing of use."""
    settings = vars(sized) if isinstance(sized, DataLoader) else {}
    asked = settings.get(_LENGTH_ASKED)
    try:
        return len(sized)
    except Exception:  # there are as many ways to say that a length is not known as there are libraries
        return None
    finally:
        if _LENGTH_ASKED in settings:  # or torch would warn a script that has never asked
            settings[_LENGTH_ASKED] = asked


def has_own_iterator(loader: DataLoader[Any]) -> bool:
    """Return whether the class of a loader has an iterator of its own, which may leave the sampler unasked."""
    module = getattr(type(loader).__iter__, "__module__", "")
    return module not in ("torch.utils.data.dataloader", "torchdata.stateful_dataloader.stateful_dataloader")


def has_firm_length(loader: Any) -> bool:
    """Return whether a loader cannot give more batches than it says: a list, or one with torch's own samplers."""
    if type(loader) in (list, tuple):
        return True
    kind = type(loader)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    is_plain = (kind.__iter__, kind.__len__) == (DataLoader.__iter__, DataLoader.__len__)
    samplers = [sampler for sampler in (loader.batch_sampler, loader.sampler) if sampler is not None]
    return is_plain and all(type(sampler).__module__ == "torch.utils.data.sampler" for sampler in samplers)


def is_empty(loader: Any) -> bool:
    """Return whether a loader has no batches for sure; one that may have more than it says is given a try."""
    return length_of(loader) == 0 and (has_firm_length(loader) or isinstance(loader, Sequence))


def drawing_on_cpu() -> contextlib.AbstractContextManager[Any]:
    """Have torch draw the seed of an epoch where our generator is, though the script has made a GPU the default."""
    return contextlib.nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def copy_loader(loader: DataLoader[Any], **settings: Any) -> DataLoader[Any]:
    """Return a copy of a loader that has other settings and no workers yet."""
    twin = copy.copy(loader)
    twin.__dict__.update(settings, _iterator=None, **{_LENGTH_ASKED: None})
    return twin


def end_workers(loader: DataLoader[Any], iterator: Iterator[Any] | None) -> None:
    """End the workers of a loader's iterator, and those that the loader keeps for its next epoch."""
    _end(iterator)
    loader._iterator = None


def end_workers_at_exit(iterator: Iterator[Any]) -> None:
    """Have the workers of an iterator end with this process, whether the script still keeps the iterator or not.

    torch and Python end a worker by a signal, and Python waits for it; but workers leave signals to this process.
    """
    _iterated[iterator] = os.getpid()
    for worker in getattr(iterator, "_workers", ()):
        # torch calls it where it has waited in vain, as for workers of an iterator that was collected within a cycle.
        worker.terminate = functools.partial(type(worker).kill, weakref.proxy(worker))
        _started[worker] = os.getpid()
    _end_all_at_exit()


# What is registered for the exit is never forgotten; so there is one entry for all, which knows those that live.
_iterated: "weakref.WeakKeyDictionary[Any, int]" = weakref.WeakKeyDictionary()
_started: "weakref.WeakKeyDictionary[Any, int]" = weakref.WeakKeyDictionary()  # outlive their iterator where it fails


@functools.cache
def _end_all_at_exit() -> None:
    atexit.register(_end_all)


def _end_all() -> None:
    for iterator, process in list(_iterated.items()):
        if process == os.getpid():  # a child that the script has forked has no workers of its own
            _end(iterator)
    for worker, process in list(_started.items()):
        if process == os.getpid():
            worker.kill()


def _end(iterator: Any) -> None:
    for name in ("_shutdown_workers", "close"):  # a subclass of DataLoader may iterate by a generator
        if callable(getattr(iterator, name, None)):
            with contextlib.suppress(RuntimeError):  # a worker fails as it ends; all batches that it owed are there
                getattr(iterator, name)()
    for worker in getattr(iterator, "_workers", ()):
        if worker.is_alive():  # torch has waited for it, and then sent a signal that it leaves to the main process
            worker.kill()
