"""Samples that stand in training and validation data alike, as far as that can be found in a moment.

Where both are parts of one dataset, indices tell it. Else samples are read as the loader reads them, with its workers,
and their digests are compared: so many as two seconds allow, spread evenly over the data. What is random, such as an
augmentation, or cannot be read so, such as a stream, is left out.
"""

import contextlib
import itertools
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from blowtorch.data.digests import digest
from blowtorch.data.loaders import copy_loader, drawing_on_cpu, end_workers, has_own_iterator
from blowtorch.data.tree import map_leaves, walk
from blowtorch.record.metric_objects import find_objects
from blowtorch.streams import GENERATORS
from blowtorch.training.snapshot import Snapshot

_MOST_SAMPLES = 2_000  # of a validation
_MOST_TRAINED = 100_000
_MOST_SECONDS = 1.0  # for each of the two
_MOST_INDICES = 2_000_000
_LARGEST_CHUNK = 32  # samples that are read at once
_FEW = 50  # samples of a validation, of which one that is trained on is enough for a doubt
_LEAST_SHARE = 0.01  # of a validation; natural data have a few samples twice
_LEAST_VARIETY = 0.9  # of the samples of a validation, which else repeat themselves by their nature
_SHORTEST_TEXT = 8  # characters that are more than a name


def find_overlaps(train_loader: Any, loaders: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each validation that has samples of the training data; its loader stands by its name."""
    for name, loader in loaders.items():
        with contextlib.suppress(Exception):  # data that cannot be read in this way are no reason for a doubt
            overlap = _find_shared(train_loader, loader) or _compare(train_loader, loader)
            if overlap is not None:
                count, looked = overlap
                yield (
                    f"{count:,} of the {looked:,} samples of validation {name!r} that were looked at are training data "
                    f"too; are the data split as they should be?"
                )


def _find_shared(train_loader: Any, loader: Any) -> tuple[int, int] | None:
    """Return how many samples of a validation are the very objects or indices that are trained on, and of how many."""
    if isinstance(train_loader, list | tuple) and isinstance(loader, list | tuple):
        trained = set(map(id, train_loader))
        shared = sum(id(batch) in trained for batch in loader)
        return (shared, len(loader)) if shared else None
    parts = _part_of(train_loader), _part_of(loader)
    if parts[0] is None or parts[1] is None or parts[0][0] is not parts[1][0]:
        return None
    trained_indices, indices = parts[0][1], _spread(parts[1][1], _MOST_INDICES)
    known = trained_indices if isinstance(trained_indices, range) else set(trained_indices)
    shared = sum(index in known for index in indices)
    return (shared, len(indices)) if shared else None


def _part_of(loader: Any) -> tuple[Any, Sequence[int]] | None:
    """Return a dataset and the indices of it that a loader gives, seen through `Subset`; None where nobody knows."""
    indices = _indices_of(loader)
    if indices is None or len(indices) > _MOST_INDICES:
        return None
    dataset = loader.dataset
    while isinstance(dataset, Subset):
        inner: Sequence[int] = dataset.indices
        indices = inner if indices == range(len(inner)) else [inner[index] for index in indices]
        dataset = dataset.dataset
    return dataset, indices


def _indices_of(loader: Any) -> Sequence[int] | None:
    """Return the indices that a loader of torch may give; None where its sampler does not tell."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or has_own_iterator(loader):
        return None
    sampler: Any = loader.sampler
    if loader.batch_sampler is not None:
        if type(loader.batch_sampler) is not BatchSampler:
            return None
        sampler = loader.batch_sampler.sampler
    if type(sampler) in (RandomSampler, SequentialSampler):
        return range(len(sampler.data_source))
    if type(sampler) is SubsetRandomSampler:
        return list(map(int, sampler.indices))
    if type(sampler) is WeightedRandomSampler:
        return [int(index) for index in sampler.weights.nonzero().flatten()]
    return None


def _compare(train_loader: Any, loader: Any) -> tuple[int, int] | None:
    """Return how many samples of a validation are read in training too, and of how many; None where too few are."""
    trained_indices, indices = _indices_of(train_loader), _indices_of(loader)
    if trained_indices is None or indices is None or _starts_slowly(train_loader) or _starts_slowly(loader):
        return None
    digests = _read(loader, _spread(indices, _MOST_SAMPLES))
    if len(digests) < 2 or len(set(digests)) < _LEAST_VARIETY * len(digests):
        return None
    trained = _read(train_loader, _spread(trained_indices, _MOST_TRAINED))
    known = set(trained)
    count = sum(one in known for one in digests)
    share = len(trained) / len(trained_indices)  # of what is trained on, this was read
    least = max(1 if len(digests) < _FEW else 2, _LEAST_SHARE * share * len(digests))
    return (count, len(digests)) if count >= least else None


def _spread(indices: Sequence[int], most: int) -> Sequence[int]:
    """Return so many of the indices, spread evenly."""
    return indices[:: -(-len(indices) // most)] if len(indices) > most else indices


def _read(loader: DataLoader[Any], indices: Sequence[int]) -> list[str]:
    """Return the digests of samples, as far as the time allows; no generator of the dataset is moved by that."""
    settings: dict[str, Any] = {
        "batch_sampler": _in_chunks(indices),
        "collate_fn": digest_samples,
        "generator": torch.Generator(),
    }
    settings |= {"num_workers": 1, "prefetch_factor": 1} if loader.num_workers else {}
    settings |= {"pin_memory": False, "persistent_workers": False}
    twin = copy_loader(loader, **settings)
    generators = find_objects({"dataset": loader.dataset}, lambda value: isinstance(value, GENERATORS))
    digests: list[str] = []
    with Snapshot(*generators.values()):
        ends = time.monotonic() + _MOST_SECONDS
        with drawing_on_cpu():
            batches = iter(twin)
        try:
            for found in itertools.takewhile(bool, batches):
                digests += found
                if time.monotonic() > ends:
                    break
        finally:
            end_workers(twin, batches)
    return digests


def _in_chunks(indices: Sequence[int]) -> list[list[int]]:
    """Return indices in chunks, each from all over the data, since the time may end after any of them.

    The first chunk is one sample, which may take long; each other one has as many as those before it.
    """
    distance = -(-len(indices) // _LARGEST_CHUNK)
    mixed = [index for start in range(distance) for index in indices[start::distance]]
    chunks: list[list[int]] = []
    done = 0
    while done < len(mixed):
        chunks.append(mixed[done : done + min(max(1, done), _LARGEST_CHUNK)])
        done += len(chunks[-1])
    return chunks


def _starts_slowly(loader: DataLoader[Any]) -> bool:
    """Return whether the loader has workers that begin by importing the script anew."""
    context: Any = loader.multiprocessing_context or multiprocessing
    return loader.num_workers > 0 and context.get_start_method() != "fork"


def digest_samples(samples: Sequence[Any]) -> list[str]:
    """Return the digest of each sample; none where one holds something else than numbers and texts, or next to nothing.

    It runs in the workers of a loader.
    """
    plain = [map_leaves(_as_plain, sample) for sample in samples]
    leaves = [[leaf for _, leaf in walk(sample)] for sample in plain]
    are_known = all(leaf is not _UNKNOWN for inside in leaves for leaf in inside)
    return list(map(digest, plain)) if are_known and all(any(map(_is_rich, inside)) for inside in leaves) else []


_UNKNOWN = object()


def _as_plain(leaf: Any) -> Any:
    if isinstance(leaf, Tensor | np.ndarray | np.generic | str | bytes | int | float | None):
        return leaf
    return np.asarray(leaf) if hasattr(leaf, "__array_interface__") else _UNKNOWN  # such as a picture


def _is_rich(leaf: Any) -> bool:
    """Return whether a value says enough to be known again."""
    if isinstance(leaf, Tensor):
        return leaf.numel() > 1 and not leaf.is_meta
    return (
        leaf.size > 1 if isinstance(leaf, np.ndarray) else isinstance(leaf, str | bytes) and len(leaf) >= _SHORTEST_TEXT
    )
