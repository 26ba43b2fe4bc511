"""The order of the data: a function of (seed, epoch), at any position of an epoch.

Samplers draw their order from random streams. Here those streams are seeded for the epoch and kept apart from the
global ones, so a restart finds the same order without having drawn what came before in the run.
"""

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from blowtorch.streams import derive_seed, isolated_random, random_state, restore_random_state

_BLOCK = 1024  # draws from an unknown sampler between two exchanges of the global random streams


@dataclass(frozen=True, slots=True)
class SeededIndex:
    """What a sampler yields, on its way to a worker: with the epoch, and a seed for the randomness of loading it."""

    index: Any  # of one sample, or those of a batch
    epoch: int
    seed: int


class EpochOrder(Sampler[Any]):
    """Stands in for a loader's own sampler: yields what it would, from any position of any epoch.

    Args:
        loader: the loader whose order it is; its workers are given each index as a `SeededIndex`.
        seed: of the run and the loader.
    """

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        self._sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        self._has_workers = loader.num_workers > 0
        own = _own_generator(loader)
        self._seed = seed if own is None else derive_seed(seed, own.initial_seed())
        self._epoch = 1
        self._position = 0
        self.drawn: dict[int, Any] | None = None  # the indices by position, if somebody wants to know them

    def set(self, epoch: int, position: int) -> None:
        """Choose the epoch and the batch with which the next iteration begins."""
        self._epoch, self._position = epoch, position
        for sampler in _chain(self._sampler):
            tell_epoch(sampler, epoch)

    def __iter__(self) -> Iterator[Any]:
        """The indices from the position on; what comes before is skipped in this call, not when the first is drawn."""
        indices = indices_from(self._sampler, derive_seed(self._seed, "order", self._epoch), self._position)
        if self.drawn is not None:
            indices = self._noted(indices, self._position)
        return self._seeded(indices, self._epoch, self._position) if self._has_workers else indices

    def __len__(self) -> int:
        return len(self._sampler)

    def _noted(self, indices: Iterator[Any], start: int) -> Iterator[Any]:
        assert self.drawn is not None
        for position, index in enumerate(indices, start):
            self.drawn[position] = index
            yield index

    def _seeded(self, indices: Iterator[Any], epoch: int, start: int) -> Iterator[SeededIndex]:
        for position, index in enumerate(indices, start):
            yield SeededIndex(index, epoch, derive_seed(self._seed, "worker", epoch, position))


def tell_epoch(target: Any, epoch: int) -> None:
    """Call the `set_epoch` of whatever has one; torch's convention is to count from 0."""
    set_epoch = getattr(target, "set_epoch", None)
    if callable(set_epoch):
        set_epoch(epoch - 1)


def indices_from(sampler: Any, seed: int, start: int) -> Iterator[Any]:
    """What a sampler yields from a position on; torch's samplers need not walk through what comes before."""
    if type(sampler) is BatchSampler:
        indices = indices_from(sampler.sampler, seed, start * sampler.batch_size)
        return _batched(indices, sampler.batch_size, sampler.drop_last)
    if type(sampler) is SequentialSampler:
        return iter(range(start, len(sampler.data_source)))
    if type(sampler) is RandomSampler:
        return _random_indices(sampler, seed, start)
    generator = torch.Generator().manual_seed(seed)
    if type(sampler) is SubsetRandomSampler:
        places = torch.randperm(len(sampler.indices), generator=generator)[start:]
        return (sampler.indices[place] for place in _plain(places))
    if type(sampler) is WeightedRandomSampler:
        count, replacement = sampler.num_samples, sampler.replacement
        return _plain(torch.multinomial(sampler.weights, count, replacement, generator=generator)[start:])
    indices = drawn(sampler, seed)
    next(itertools.islice(indices, start, start), None)
    return indices


def drawn(sampler: Any, seed: int) -> Iterator[Any]:
    """What any sampler yields when the random streams from which it can draw are seeded.

    The global streams are the sampler's only while a block is drawn, and so are generators in the place of its own;
    endless samplers are fine.
    """
    lent = _lent_generators(sampler, seed)
    iterator: Iterator[Any] | None = None
    streams: dict[str, Any] = {}
    while True:
        with isolated_random(seed), _replaced(lent):
            if iterator is None:
                iterator = iter(sampler)
            else:
                restore_random_state(streams)
            block = list(itertools.islice(iterator, _BLOCK))
            streams = random_state()
        yield from block
        if len(block) < _BLOCK:
            return


def _random_indices(sampler: RandomSampler, seed: int, start: int) -> Iterator[int]:
    """Each round of draws has a seed of its own, so that a position is reached without the rounds before it."""
    size, count = len(sampler.data_source), sampler.num_samples
    span = _BLOCK if sampler.replacement else size
    for first in range(start - start % span, count, span):
        generator = torch.Generator().manual_seed(derive_seed(seed, first))
        if sampler.replacement:
            indices = torch.randint(size, (span,), generator=generator)
        else:
            indices = torch.randperm(size, generator=generator)
        yield from _plain(indices[max(0, start - first) : count - first])


def _plain(indices: torch.Tensor) -> Iterator[int]:
    for first in range(0, len(indices), _BLOCK):
        yield from indices[first : first + _BLOCK].tolist()


def _batched(indices: Iterator[Any], size: int, drop_last: bool) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(indices, size)):
        if len(batch) == size or not drop_last:
            yield batch


def _chain(sampler: Any) -> Iterator[Any]:
    """A sampler, the one inside of it, and so on."""
    while sampler is not None:
        yield sampler
        sampler = getattr(sampler, "sampler", None)


def _own_generator(loader: DataLoader[Any]) -> torch.Generator | None:
    """The first generator that the user gave, to the loader or to one of its samplers."""
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    owners = (loader, *_chain(sampler))
    generators = (getattr(owner, "generator", None) for owner in owners)
    return next((generator for generator in generators if isinstance(generator, torch.Generator)), None)


def _lent_generators(sampler: Any, seed: int) -> list[tuple[Any, str, Any]]:
    """For each generator that a sampler or one inside of it keeps: the owner, the attribute, and one to use instead."""
    makers: dict[type, Callable[[int], Any]] = {
        torch.Generator: lambda seed: torch.Generator().manual_seed(seed),
        np.random.Generator: np.random.default_rng,
        np.random.RandomState: lambda seed: np.random.RandomState(seed % 2**32),
        random.Random: random.Random,
    }
    return [
        (owner, name, makers[type(value)](derive_seed(seed, depth, name)))
        for depth, owner in enumerate(_chain(sampler))
        for name, value in getattr(owner, "__dict__", {}).items()
        if type(value) in makers
    ]


@contextlib.contextmanager
def _replaced(lent: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Put what is lent in the place of the owners' own, inside."""
    own = [(owner, name, getattr(owner, name)) for owner, name, _ in lent]
    try:
        for owner, name, generator in lent:
            setattr(owner, name, generator)
        yield
    finally:
        for owner, name, former in own:
            setattr(owner, name, former)
