"""The order of the samples: a function of (seed, epoch), known at any position of an epoch.

Samplers draw their order from random streams. Here these streams are seeded for each epoch and are not the global ones.
So a run that continues finds the same order, and draws nothing again of the epochs before.
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
    """What a sampler yields, on its way to a worker: with the epoch, and a seed for the random draws of loading it."""

    index: Any  # of one sample, or those of a batch
    epoch: int
    seed: int


class EpochOrder(Sampler[Any]):
    """Takes the place of a loader's sampler, and yields the same indices from any position of any epoch.

    Args:
        loader: its sampler is the one whose place is taken; with workers, each index comes as a `SeededIndex`.
        seed: of the run and the loader.

    Attributes:
        drawn: the indices by position, if somebody wants to know them; None otherwise.
    """

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        self._sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        self._has_workers = loader.num_workers > 0
        generator = _users_generator(loader)
        self._seed = seed if generator is None else derive_seed(seed, generator.initial_seed())
        self._epoch = 1
        self._position = 0
        self.drawn: dict[int, Any] | None = None

    def set(self, epoch: int, position: int) -> None:
        """Choose the epoch and the position from which the next iteration yields."""
        self._epoch, self._position = epoch, position
        for sampler in _chain(self._sampler):
            tell_epoch(sampler, epoch)

    def __iter__(self) -> Iterator[Any]:
        """Return the indices from the position on; the ones before it are skipped in this call, not at the first."""
        indices = indices_from(self._sampler, derive_seed(self._seed, "order", self._epoch), self._position)
        if self.drawn is not None:
            indices = self._noted(indices, self._position)
        return self._seeded(indices, self._epoch, self._position) if self._has_workers else indices

    def __len__(self) -> int:
        return len(self._sampler)

    def _noted(self, indices: Iterator[Any], first: int) -> Iterator[Any]:
        assert self.drawn is not None
        for position, index in enumerate(indices, first):
            self.drawn[position] = index
            yield index

    def _seeded(self, indices: Iterator[Any], epoch: int, first: int) -> Iterator[SeededIndex]:
        for position, index in enumerate(indices, first):
            yield SeededIndex(index, epoch, derive_seed(self._seed, "worker", epoch, position))


def tell_epoch(target: Any, epoch: int) -> None:
    """Call the method `set_epoch` of an object that has one; by torch's convention it counts from 0."""
    set_epoch = getattr(target, "set_epoch", None)
    if callable(set_epoch):
        set_epoch(epoch - 1)


def indices_from(sampler: Any, seed: int, position: int) -> Iterator[Any]:
    """Return the indices of a sampler from a position on; with torch's samplers, the ones before it cost nothing."""
    if type(sampler) is BatchSampler:
        indices = indices_from(sampler.sampler, seed, position * sampler.batch_size)
        return _batched(indices, sampler.batch_size, sampler.drop_last)
    if type(sampler) is SequentialSampler:
        return iter(range(position, len(sampler.data_source)))
    if type(sampler) is RandomSampler:
        return _random_indices(sampler, seed, position)
    generator = torch.Generator().manual_seed(seed)
    if type(sampler) is SubsetRandomSampler:
        places = torch.randperm(len(sampler.indices), generator=generator)[position:]
        return (sampler.indices[place] for place in _numbers(places))
    if type(sampler) is WeightedRandomSampler:
        count, replacement = sampler.num_samples, sampler.replacement
        return _numbers(torch.multinomial(sampler.weights, count, replacement, generator=generator)[position:])
    indices = drawn(sampler, seed)
    next(itertools.islice(indices, position, position), None)
    return indices


def drawn(sampler: Any, seed: int) -> Iterator[Any]:
    """Yield the indices of any sampler, whose random streams are seeded; it may be endless.

    It draws a block of indices at a time. Only meanwhile the global streams are seeded, and the generators that the
    sampler keeps are replaced by seeded ones.
    """
    replacements = _seeded_generators(sampler, seed)
    iterator: Iterator[Any] | None = None
    streams: dict[str, Any] = {}
    while True:
        with isolated_random(seed), _replaced(replacements):
            if iterator is None:
                iterator = iter(sampler)
            else:
                restore_random_state(streams)
            block = list(itertools.islice(iterator, _BLOCK))
            streams = random_state()
        yield from block
        if len(block) < _BLOCK:
            return


def _random_indices(sampler: RandomSampler, seed: int, position: int) -> Iterator[int]:
    """Yield the indices from a position on; each round of draws has its own seed, so earlier rounds are not drawn."""
    size, count = len(sampler.data_source), sampler.num_samples
    span = _BLOCK if sampler.replacement else size
    for first in range(position - position % span, count, span):
        generator = torch.Generator().manual_seed(derive_seed(seed, first))
        if sampler.replacement:
            indices = torch.randint(size, (span,), generator=generator)
        else:
            indices = torch.randperm(size, generator=generator)
        yield from _numbers(indices[max(0, position - first) : count - first])


def _numbers(indices: torch.Tensor) -> Iterator[int]:
    for first in range(0, len(indices), _BLOCK):
        yield from indices[first : first + _BLOCK].tolist()


def _batched(indices: Iterator[Any], size: int, drop_last: bool) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(indices, size)):
        if len(batch) == size or not drop_last:
            yield batch


def _chain(sampler: Any) -> Iterator[Any]:
    """Yield a sampler, the sampler inside of it, and so on."""
    while sampler is not None:
        yield sampler
        sampler = getattr(sampler, "sampler", None)


def _users_generator(loader: DataLoader[Any]) -> torch.Generator | None:
    """Return the first generator that the user gave to the loader or to one of its samplers."""
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    owners = (loader, *_chain(sampler))
    generators = (getattr(owner, "generator", None) for owner in owners)
    return next((generator for generator in generators if isinstance(generator, torch.Generator)), None)


def _seeded_generators(sampler: Any, seed: int) -> list[tuple[Any, str, Any]]:
    """Return owner, attribute and a seeded generator for each one that a sampler, or one inside of it, keeps."""
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
def _replaced(replacements: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Replace the generators of their owners, and restore them at the end."""
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    try:
        for owner, name, generator in replacements:
            setattr(owner, name, generator)
        yield
    finally:
        for owner, name, generator in originals:
            setattr(owner, name, generator)
