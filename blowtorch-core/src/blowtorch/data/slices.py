"""Which samples of a batch are whose: several processes share each batch.

Of the n samples of a batch, process r of W has those from n·r//W up to n·(r+1)//W. So none is repeated or left out, and
no two processes differ by more than one sample. Where a batch has fewer samples than there are processes, some have
none; they are given the first one, which then counts nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from blowtorch.data.sizes import read_size
from blowtorch.data.tree import map_leaves
from blowtorch.errors import ScriptError


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a batch is this process's.

    Attributes:
        samples: of this process; 0 where it was given one that does not count.
        whole: samples of the batch.
    """

    samples: int
    whole: int


@dataclass(frozen=True, slots=True)
class Slicer:
    """Takes the share of one process of each batch.

    Attributes:
        rank: of the process.
        size: how many processes there are.
    """

    rank: int
    size: int

    def bounds(self, num_samples: int) -> tuple[int, int]:
        """Return from which sample up to which the share goes; it is never empty, so it may be one that does not count.

        >>> [Slicer(rank, 3).bounds(7) for rank in range(3)]
        [(0, 2), (2, 4), (4, 7)]
        """
        start, stop = num_samples * self.rank // self.size, num_samples * (self.rank + 1) // self.size
        return (start, stop) if start < stop else (0, 1)

    def share(self, num_samples: int) -> Share:
        """Return how much of a batch this is."""
        start, stop = num_samples * self.rank // self.size, num_samples * (self.rank + 1) // self.size
        return Share(stop - start, num_samples)

    def cut_indices(self, indices: Sequence[Any]) -> tuple[Sequence[Any], Share]:
        """Return the indices of the samples that are to be loaded, of those of a batch."""
        start, stop = self.bounds(len(indices))
        return indices[start:stop], self.share(len(indices))

    def cut(self, batch: Any, name: str) -> tuple[Any, Share]:
        """Return the share of a batch that is loaded.

        Args:
            batch: anything whose tensors, arrays and lists have an entry for each sample.
            name: of its loader.

        Raises:
            ScriptError: there is nothing of that kind in it.
        """
        size = read_size(batch)
        number, (start, stop) = size.samples, self.bounds(size.samples)
        num_cut = 0

        def cut_leaf(leaf: Any) -> Any:
            nonlocal num_cut
            if not _has_samples(leaf, number):
                return leaf
            num_cut += 1
            return leaf[start:stop]

        cut = map_leaves(cut_leaf, batch, lambda value: _has_samples(value, number))
        if size.doubt is not None or (number > 1 and not num_cut):
            doubt = size.doubt or "none of its tensors has an entry for each sample"
            raise ScriptError(
                f"a batch of the loader for {name!r} cannot be shared by {self.size} processes, since {doubt}; give a "
                f"DataLoader with a batch_size, whose samples are shared before they are put together"
            )
        return cut, self.share(number)


def _has_samples(value: Any, number: int) -> bool:
    """Return whether a value has an entry for each sample."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim > 0 and len(value) == number
    is_list = type(value) in (list, tuple) and len(value) == number
    return is_list and not any(isinstance(entry, Tensor | np.ndarray | list | tuple | dict) for entry in value)
