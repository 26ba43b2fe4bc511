"""The workers of a loader: their random streams are seeded by the epoch and position of the batch that they load."""

import contextlib
import dataclasses
import os
import random
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from blowtorch.data.order import SeededIndex
from blowtorch.data.samplers import tell_epoch
from blowtorch.streams import derive_seed

# What comes to a whole group of processes: from the keyboard, from a queue system, from a terminal that is closed.
_GROUP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class SeededDataset:
    """A dataset in a worker; before it loads a batch, it seeds the random streams with the seed of the batch."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)  # subclasses of DataLoader look at their dataset

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[self._prepare(index) if isinstance(index, SeededIndex) else index]

    def __getitems__(self, batch: SeededIndex) -> Any:
        indices = self._prepare(batch)
        if callable(getattr(self.dataset, "__getitems__", None)):
            return self.dataset.__getitems__(indices)
        return [self.dataset[index] for index in indices]

    def _prepare(self, batch: SeededIndex) -> Any:
        if batch.epoch != self._epoch:  # workers that outlive an epoch do not see what the main process sets
            self._epoch = batch.epoch
            tell_epoch(self.dataset, batch.epoch)
        seed_worker(batch.seed)
        return batch.index


class SeededStream(IterableDataset[Any]):
    """An iterable dataset in workers; each worker seeds its random streams anew in each epoch."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._shared = torch.zeros(
            2, dtype=torch.int64, device="cpu"
        ).share_memory_()  # workers that outlive an epoch read it

    def set(self, seed: int, epoch: int) -> None:
        """Choose the epoch that the workers iterate next, and its seed."""
        self._shared.copy_(torch.tensor([seed, epoch], device="cpu"))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __iter__(self) -> Iterator[Any]:
        seed, epoch = self._shared.tolist()
        info = get_worker_info()
        tell_epoch(self.dataset, epoch)
        seed_worker(derive_seed(seed, 0 if info is None else info.id))
        return iter(self.dataset)


@dataclasses.dataclass
class WorkerSetup:
    """The `worker_init_fn` of our copy of a loader: it leaves signals to the main process, and calls the user's own.

    Args:
        dataset: the user's own, which `torch.utils.data.get_worker_info` then shows in the worker.
        user_function: the user's own `worker_init_fn`.
    """

    dataset: Any
    user_function: Callable[[int], None] | None

    def __call__(self, worker: int) -> None:
        """Prepare the worker in which torch calls this; `worker` is its number."""
        leave_signals_to_main_process()
        info = get_worker_info()
        if info is not None:
            object.__setattr__(info, "dataset", self.dataset)  # a WorkerInfo refuses to be changed
        if self.user_function is not None:
            self.user_function(worker)


def seed_worker(seed: int) -> None:
    """Seed the random streams of a worker, without those of devices, which would take a hundred times as long."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Hold signals back while workers are started: one that comes before `WorkerSetup` would end them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_main_process() -> None:
    """Have a worker go on when a signal comes to its whole group: the main process stops the run, and needs batches.

    Ctrl-C is ignored, also by programs that a dataset starts. Others end the worker once the main process is gone.
    """
    main = os.getppid()

    def heed(number: int, frame: FrameType | None) -> None:
        if os.getppid() != main:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in _GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else heed)
        if hasattr(signal, "siginterrupt"):
            signal.siginterrupt(number, False)  # or a system call of a library may fail
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _GROUP_SIGNALS)
