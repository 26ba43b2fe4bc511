"""The workers of a loader: their random streams are seeded by the epoch and position of the batch that they load."""

import dataclasses
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from blowtorch.data.order import SeededIndex
from blowtorch.data.samplers import tell_epoch
from blowtorch.streams import derive_seed


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
        self._shared = torch.zeros(2, dtype=torch.int64).share_memory_()  # workers that outlive an epoch read it

    def set(self, seed: int, epoch: int) -> None:
        """Choose the epoch that the workers iterate next, and its seed."""
        self._shared.copy_(torch.tensor([seed, epoch]))

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
    """The `worker_init_fn` of our copy of a loader: it leaves Ctrl-C to the main process, and calls the user's own.

    Args:
        dataset: the user's own, which `torch.utils.data.get_worker_info` then shows in the worker.
        user_function: the user's own `worker_init_fn`.
    """

    dataset: Any
    user_function: Callable[[int], None] | None

    def __call__(self, worker: int) -> None:
        """Prepare the worker in which torch calls this; `worker` is its number."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
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
