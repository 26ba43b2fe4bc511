"""The batches of an epoch: in the order of (seed, epoch), from any position, on the device.

A torch `DataLoader` is copied, and the copy given our order and seeds for its workers, so every other setting of it
keeps its meaning. Other iterables are taken as they are.
"""

import copy
import dataclasses
import itertools
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from blowtorch.errors import ScriptError, warn
from blowtorch.order import EpochOrder, SeededBatch, SeededIndex
from blowtorch.reproducibility import derive_seed


class Batches:
    """The batches of a loader, epoch by epoch; iterating them never moves the global random streams.

    Args:
        loader: a `DataLoader`, a sequence of batches, or any iterable of batches.
        seed: of the run.
        device: where the batches are wanted.
        limit: take at most so many batches of each epoch.
        name: what the loader is called in messages; loaders of one run with different names have different orders.

    Attributes:
        num_batches: batches of one epoch, with `limit`; None when unknown.

    Raises:
        ScriptError: the loader is no iterable.
    """

    def __init__(
        self, loader: Iterable[Any], seed: int, device: torch.device, limit: int | None = None, name: str = "train"
    ) -> None:
        if not isinstance(loader, Iterable) and not isinstance(loader, Sequence):
            raise ScriptError(f"expected a loader for {name!r}, an iterable of batches, got {loader!r:.100}")
        self._source: Any = loader
        self._seed = derive_seed(seed, name)
        self._device = device
        self._limit = limit
        self._name = name
        self._is_used_up = False
        self._order: EpochOrder | None = None
        if isinstance(loader, DataLoader):
            self._source, self._order = adapt_loader(loader, self._seed)
        length = _length(loader)
        self.num_batches = length if length is None or limit is None else min(length, limit)

    def start(self, epoch: int, position: int = 0) -> Iterator[Any]:
        """The batches of an epoch from a position on; what skipping costs is spent here, before the first is fetched.

        Args:
            epoch: the first is 1.
            position: how many batches of this epoch are done.
        """
        if self._is_used_up:
            raise ScriptError(
                f"the loader for {self._name!r} can be iterated only once; give a list, a DataLoader, or an object "
                f"with __iter__"
            )
        self._is_used_up = isinstance(self._source, Iterator)
        source = self._source
        _set_epoch(source, epoch)
        left = None if self._limit is None else max(0, self._limit - position)
        if self._order is not None:
            self._order.set(epoch, position)
            batches = iter(source)
        elif isinstance(source, DataLoader):  # over an iterable dataset
            source.generator.manual_seed(derive_seed(self._seed, "worker", epoch))  # type: ignore[union-attr]
            batches = self._draw_forward(iter(source), position)
        elif isinstance(source, Sequence):
            batches = iter(source) if position == 0 else (source[index] for index in range(position, len(source)))
        else:
            batches = self._draw_forward(iter(source), position)
        if left is not None:
            batches = itertools.islice(batches, left)
        if position == 0:
            batches = self._refuse_nothing(batches)
        if self._device.type == "cpu":
            return batches
        return (move(batch, self._device) for batch in batches)

    def close(self) -> None:
        """End the workers that outlive an epoch."""
        iterator = getattr(self._source, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
            self._source._iterator = None

    def _draw_forward(self, batches: Iterator[Any], position: int) -> Iterator[Any]:
        if position:
            warn(f"the loader for {self._name!r} has no position of its own: {position} batches are drawn again")
            for _ in itertools.islice(batches, position):
                pass
        return batches

    def _refuse_nothing(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the error for an epoch without any comes when the first is asked for."""
        first = next(batches, _NOTHING)
        if first is _NOTHING:
            raise ScriptError(
                f"the loader for {self._name!r} gave no batch; is drop_last set and the dataset smaller than a batch?"
            )
        yield first
        yield from batches


_NOTHING = object()


def adapt_loader(loader: DataLoader[Any], seed: int) -> tuple[DataLoader[Any], EpochOrder | None]:
    """A copy of a loader with our order, which is None over an iterable dataset, and with seeded workers.

    The copy's dictionary is written to, since a `DataLoader` refuses to have its samplers set.
    """
    if loader.num_workers and not getattr(loader, "in_order", True):
        warn("the loader has in_order=False, so the order of its batches is not exact")
    twin = copy.copy(loader)
    twin.__dict__["_iterator"] = None
    twin.__dict__["generator"] = torch.Generator().manual_seed(seed)  # else the global stream is drawn from
    if isinstance(loader.dataset, IterableDataset):
        twin.__dict__["worker_init_fn"] = WorkerStart(loader.dataset, loader.worker_init_fn)
        return twin, None
    order = EpochOrder(loader, seed)
    twin.__dict__["batch_sampler" if loader.batch_sampler is not None else "sampler"] = order
    if loader.num_workers:
        twin.__dict__["dataset"] = SeededDataset(loader.dataset)
        twin.__dict__["worker_init_fn"] = WorkerStart(loader.dataset, loader.worker_init_fn)
    return twin, order


class SeededDataset:
    """A dataset in a worker: before it loads a batch, the random streams are seeded with what the batch carries."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, SeededIndex):
            seed_worker(index.seed)
            index = int(index)
        return self.dataset[index]

    def __getitems__(self, indices: SeededBatch) -> Any:
        seed_worker(indices.seed)
        plain = list(indices)
        if callable(getattr(self.dataset, "__getitems__", None)):
            return self.dataset.__getitems__(plain)
        return [self.dataset[index] for index in plain]


@dataclasses.dataclass
class WorkerStart:
    """What a worker does first: it leaves Ctrl-C to the main process, and shows the user's own dataset."""

    dataset: Any
    user_function: Callable[[int], None] | None

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        info = get_worker_info()
        if info is not None:
            object.__setattr__(info, "dataset", self.dataset)  # it is frozen
        if self.user_function is not None:
            self.user_function(worker)


def seed_worker(seed: int) -> None:
    """Seed the random streams of a loader's worker; not every device, which takes a hundred times as long."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def count_samples(batch: Any) -> int:
    """The first dimension of the first tensor or array in a batch; 1 where there is none."""
    first = batch[0] if (type(batch) is list or type(batch) is tuple) and batch else batch
    if type(first) is torch.Tensor and first.ndim:  # the common cases, on every step
        return first.size(0)
    return _first_size(batch) or 1


def _first_size(batch: Any) -> int | None:
    shape = getattr(batch, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else 1
    if isinstance(batch, Mapping):
        items: Iterable[Any] = batch.values()
    elif isinstance(batch, list | tuple):
        items = batch
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        items = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    else:
        return None
    return next((size for item in items if (size := _first_size(item)) is not None), None)


def move(batch: Any, device: torch.device) -> Any:
    """A batch with every tensor in it on a device; on the CPU it is returned as it is."""
    if device.type == "cpu":
        return batch
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return type(batch)({key: move(value, device) for key, value in batch.items()})  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(move(value, device) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        moved = {field.name: move(getattr(batch, field.name), device) for field in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **moved)
    return batch.to(device) if callable(getattr(batch, "to", None)) else batch


def _set_epoch(source: Any, epoch: int) -> None:
    """Tell whoever counts epochs; torch's convention is to count from 0."""
    for each in (source, getattr(source, "dataset", None)):
        if callable(getattr(each, "set_epoch", None)):
            each.set_epoch(epoch - 1)


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None
