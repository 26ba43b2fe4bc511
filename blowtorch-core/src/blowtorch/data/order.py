"""The order of the samples: a function of (seed, epoch), known at any position of an epoch.

Samplers draw their order from random streams. Here these streams are seeded for each epoch and are not the global ones.
So a run that continues finds the same order, and draws nothing again of the epochs before; but see `samplers` for those
that are not torch's.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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

from blowtorch.data.samplers import DrawnSampler, blocks_of, chain_of
from blowtorch.data.slices import Share, Slicer
from blowtorch.streams import derive_seed

_BLOCK = 1024  # indices that are made at a time
_OURS = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)  # whose order is made here
_TORCHDATA = {"BatchSampler": BatchSampler, "RandomSampler": RandomSampler}  # its own are made like torch's


@dataclass(frozen=True, slots=True)
class SeededIndex:
    """What a sampler yields, on its way to a worker: with the epoch, and a seed for the random draws of loading it."""

    index: Any  # of one sample, or those of a batch
    epoch: int
    seed: int


class EpochOrder(Sampler[Any]):
    """Takes the place of a loader's sampler, and yields the same indices from any position of any epoch.

    A loader that begins again by itself makes several passes in an epoch, each in an order of its own.

    Args:
        loader: its sampler is the one whose place is taken; with workers, each index comes as a `SeededIndex`.
        seed: of the run and the loader.
        name: of the loader in messages.
        slicer: takes the share of this process of each batch; None where it is alone.

    Attributes:
        indices: the indices by position, if somebody wants to know them; None otherwise.
        is_asked: whether anybody has asked for an index of this epoch.
        shares: of the batches that were asked for, until somebody takes them.
    """

    def __init__(self, loader: DataLoader[Any], seed: int, name: str = "train", slicer: Slicer | None = None) -> None:
        self._sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        self._has_workers = loader.num_workers > 0
        generator = _users_generator(loader)
        self._seed = seed if generator is None else derive_seed(seed, generator.initial_seed())
        self._epoch = 1
        self._position = 0  # of the index that is yielded next
        self._next_pass = 0
        self._num_skipped = 0  # so many indices of the next pass are not needed
        self.indices: dict[int, Any] | None = None
        self.is_asked = False
        self.shares: deque[Share] = deque()
        self._slicer = slicer
        sampler, self._num_of_each = _innermost(self._sampler)
        is_ours = _kind(sampler) in _OURS
        self._drawn = None if is_ours else DrawnSampler(sampler, self._seed, name)

    @property
    def has_state(self) -> bool:
        """Whether the order is more than a function of (seed, epoch), so that a checkpoint needs `state_dict`."""
        return self._drawn is not None

    def set(self, epoch: int, position: int) -> None:
        """Choose the epoch and the position from which the next iteration yields."""
        self._epoch, self._position, self.is_asked, self.shares = epoch, position, False, deque()
        if self._drawn is None:
            length = len(self) if position else 0
            self._next_pass = (position - 1) // length if 0 < length < position else 0
            self._num_skipped = position - self._next_pass * length
            return
        sizes = [_num_outer(self._sampler, size) for size in self._drawn.sizes_in(epoch)]
        self._next_pass, self._num_skipped = 0, position
        while self._next_pass < len(sizes) - 1 and self._num_skipped > sizes[self._next_pass]:
            self._num_skipped -= sizes[self._next_pass]
            self._next_pass += 1
        self._drawn.start_epoch(epoch, self._next_pass, self._num_skipped * self._num_of_each)

    def __iter__(self) -> Iterator[Any]:
        """Yield the indices of the next pass, which begins when the first is asked for; torch asks some for none."""
        self.is_asked = True
        number, skipped = self._next_pass, self._num_skipped
        self._next_pass, self._num_skipped = number + 1, 0
        epoch, seed = self._epoch, derive_seed(self._seed, "order", self._epoch, *([number] if number else []))
        draw = None if self._drawn is None else self._drawn.draw(epoch, number)
        for index in indices_from(self._sampler, seed, skipped, draw):
            position, self._position = self._position, self._position + 1
            if self.indices is not None:
                self.indices[position] = index
            place: list[int] = [position]
            if self._slicer is not None:
                index, share = self._slicer.cut_indices(index)
                self.shares.append(share)
                place.append(self._slicer.rank)
            if self._has_workers:
                yield SeededIndex(index, epoch, derive_seed(self._seed, "worker", epoch, *place))
            else:
                yield index

    def __len__(self) -> int:
        return len(self._sampler)

    def forget_epoch(self) -> None:
        """Have `state_dict` tell of the epochs before, since this one will be drawn again."""
        if self._drawn is not None:
            self._drawn.forget_pass()

    def state_dict(self) -> dict[str, Any]:
        """Return what was drawn from a sampler that is not torch's."""
        return {} if self._drawn is None else self._drawn.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep what was drawn before a restart, to which the sampler is led back when the next epoch is chosen."""
        if self._drawn is not None and state:
            self._drawn.load_state_dict(state)


def indices_from(
    sampler: Any, seed: int, position: int, draw: Callable[[int], Iterator[Any]] | None = None
) -> Iterator[Any]:
    """Return the indices of a sampler from a position on; with torch's samplers, the ones before it cost nothing.

    Args:
        sampler: any iterable of indices.
        seed: of its order.
        position: of the first index.
        draw: gives those of a sampler that is not torch's from a position on; drawn here without.
    """
    kind = _kind(sampler)
    if kind is BatchSampler:
        indices = indices_from(sampler.sampler, seed, position * sampler.batch_size, draw)
        return _batched(indices, sampler.batch_size, sampler.drop_last)
    if kind is SequentialSampler:
        return iter(range(position, len(sampler.data_source)))
    if kind is RandomSampler:
        return _random_indices(sampler, seed, position)
    generator = torch.Generator().manual_seed(seed)
    if kind is SubsetRandomSampler:
        places = torch.randperm(len(sampler.indices), generator=generator, device="cpu")[position:]
        return (sampler.indices[place] for place in _numbers(places))
    if kind is WeightedRandomSampler:
        count, replacement = sampler.num_samples, sampler.replacement
        return _numbers(torch.multinomial(sampler.weights.cpu(), count, replacement, generator=generator)[position:])
    if draw is not None:
        return draw(position)
    indices = itertools.chain.from_iterable(blocks_of(sampler, seed))
    next(itertools.islice(indices, position, position), None)
    return indices


def _random_indices(sampler: RandomSampler, seed: int, position: int) -> Iterator[int]:
    """Yield the indices from a position on; each round of draws has its own seed, so earlier rounds are not drawn."""
    size, count = len(sampler.data_source), sampler.num_samples
    span = _BLOCK if sampler.replacement else size
    for first in range(position - position % span, count, span):
        generator = torch.Generator().manual_seed(derive_seed(seed, first))
        if sampler.replacement:
            indices = torch.randint(size, (span,), generator=generator, device="cpu")
        else:
            indices = torch.randperm(size, generator=generator, device="cpu")
        yield from _numbers(indices[max(0, position - first) : count - first])


def _numbers(indices: torch.Tensor) -> Iterator[int]:
    for first in range(0, len(indices), _BLOCK):
        yield from indices[first : first + _BLOCK].tolist()


def _batched(indices: Iterator[Any], size: int, drop_last: bool) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(indices, size)):
        if len(batch) == size or not drop_last:
            yield batch


def _kind(sampler: Any) -> type:
    """Return the class of torch's by which a sampler is made, or its own."""
    kind = type(sampler)
    return _TORCHDATA.get(kind.__name__, kind) if kind.__module__ == "torchdata.stateful_dataloader.sampler" else kind


def _innermost(sampler: Any) -> tuple[Any, int]:
    """Return the sampler inside of torch's batch samplers, and how many of its indices make one of the outermost."""
    number = 1
    while _kind(sampler) is BatchSampler:
        number *= sampler.batch_size
        sampler = sampler.sampler
    return sampler, number


def _num_outer(sampler: Any, num_inner: int) -> int:
    """Return how many indices a sampler gives when the innermost gives so many."""
    if _kind(sampler) is not BatchSampler:
        return num_inner
    whole, rest = divmod(_num_outer(sampler.sampler, num_inner), int(sampler.batch_size))
    return whole + bool(rest and not sampler.drop_last)


def _users_generator(loader: DataLoader[Any]) -> torch.Generator | None:
    """Return the first generator that the user gave to the loader or to one of its samplers."""
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    owners = (loader, *chain_of(sampler))
    generators = (getattr(owner, "generator", None) for owner in owners)
    return next((generator for generator in generators if isinstance(generator, torch.Generator)), None)
