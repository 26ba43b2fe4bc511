"""The order of the data: a function of (seed, epoch), at any position of an epoch.

Samplers draw their order from random streams. Here those streams are seeded for the epoch and kept apart from the
global ones, so a restart finds the same order without having drawn what came before in the run.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SequentialSampler

from blowtorch.reproducibility import derive_seed, isolated_random, random_state, restore_random_state

_BLOCK = 1024  # draws from an unknown sampler between two exchanges of the global random streams


class SeededBatch(list[Any]):
    """The indices of one batch, and the seed for whatever randomness a worker needs to load it."""

    def __init__(self, indices: Iterable[Any] = (), seed: int = 0) -> None:
        super().__init__(indices)
        self.seed = seed

    def __reduce__(self) -> tuple[Any, ...]:
        return SeededBatch, (list(self), self.seed)


class SeededIndex(int):
    """The index of one sample, for loaders that do not batch, and its seed."""

    seed: int

    def __new__(cls, index: int, seed: int = 0) -> "SeededIndex":
        """An index that carries a seed."""
        made = super().__new__(cls, index)
        made.seed = seed
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return SeededIndex, (int(self), self.seed)


class EpochOrder(Sampler[Any]):
    """Stands in for a loader's own sampler: yields what it would, from any position of any epoch.

    Args:
        loader: the loader whose order it is.
        seed: of the run and the loader.
    """

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        self._is_batched = loader.batch_sampler is not None
        self._sampler: Any = loader.batch_sampler if self._is_batched else loader.sampler
        own = loader.generator.initial_seed() if loader.generator is not None else 0
        self._seed = derive_seed(seed, own) if own else seed
        self._epoch = 1
        self._position = 0

    def set(self, epoch: int, position: int) -> None:
        """Choose the epoch and the batch with which the next iteration begins."""
        self._epoch, self._position = epoch, position
        inner = getattr(self._sampler, "sampler", None)
        for each in (self._sampler, inner):
            if callable(getattr(each, "set_epoch", None)):
                each.set_epoch(epoch - 1)  # torch's samplers count from 0

    def __iter__(self) -> Iterator[Any]:
        seed, epoch, start = self._seed, self._epoch, self._position
        order = self._order_from(derive_seed(seed, "order", epoch), start)
        for position, indices in enumerate(order, start):
            worker_seed = derive_seed(seed, "worker", epoch, position)
            if self._is_batched:
                yield SeededBatch(indices, worker_seed)
            else:  # what is no index of a list can be loaded, but not be seeded
                yield SeededIndex(indices, worker_seed) if isinstance(indices, int) else indices

    def __len__(self) -> int:
        return len(self._sampler)

    def _order_from(self, seed: int, start: int) -> Iterator[Any]:
        sampler = self._sampler
        if not self._is_batched:
            return indices_from(sampler, seed, start)
        if type(sampler) is BatchSampler:
            size = sampler.batch_size
            return _batched(indices_from(sampler.sampler, seed, start * size), size, sampler.drop_last)
        return itertools.islice(drawn(sampler, seed), start, None)


def indices_from(sampler: Any, seed: int, start: int) -> Iterator[Any]:
    """What a sampler yields from a position on; torch's plain samplers need not draw what comes before."""
    if type(sampler) is SequentialSampler:
        return iter(range(start, len(sampler.data_source)))
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source):
        generator = torch.Generator().manual_seed(seed)
        permutation = torch.randperm(sampler.num_samples, generator=generator)
        return itertools.chain.from_iterable(part.tolist() for part in permutation[start:].split(_BLOCK))
    return itertools.islice(drawn(sampler, seed), start, None)


def drawn(sampler: Any, seed: int) -> Iterator[Any]:
    """What any sampler yields when the random streams from which it can draw are seeded.

    The global streams are the sampler's only while a block is drawn, and so is a generator in the place of its own;
    endless samplers are fine.
    """
    generator = torch.Generator().manual_seed(seed)
    iterator: Iterator[Any] | None = None
    streams: dict[str, Any] = {}
    while True:
        with isolated_random(seed), lent_generator(sampler, generator):
            if iterator is None:
                iterator = iter(sampler)
            else:
                restore_random_state(streams)
            block = list(itertools.islice(iterator, _BLOCK))
            streams = random_state()
        yield from block
        if len(block) < _BLOCK:
            return


@contextlib.contextmanager
def lent_generator(sampler: Any, generator: torch.Generator) -> Iterator[None]:
    """Put a generator in the place of those that a sampler, and the samplers inside of it, have of their own."""
    own = []
    while sampler is not None:
        if isinstance(getattr(sampler, "generator", None), torch.Generator):
            own.append((sampler, sampler.generator))
            sampler.generator = generator
        sampler = getattr(sampler, "sampler", None)
    try:
        yield
    finally:
        for each, former in own:
            each.generator = former


def _batched(indices: Iterator[Any], size: int, drop_last: bool) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(indices, size)):
        if len(batch) == size or not drop_last:
            yield batch
