"""Loaders that each process has for itself: all go on together, batch by batch, until none has any more."""

from collections.abc import Iterator
from typing import Any

from blowtorch.data.sizes import read_size
from blowtorch.data.slices import Share
from blowtorch.errors import warn
from blowtorch.parallel.world import World

_END = object()


class Apart:
    """Makes one batch of those which the loaders of all processes give at the same place of an epoch.

    A process whose loader has no more goes on with its last batch, which then counts nothing, until no other has any.

    Args:
        world: the processes; each gives its batches at the same place.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._has_told = False

    def agree_on_length(self, num_batches: int | None, is_firm: bool) -> tuple[int | None, bool]:
        """Return how many batches an epoch has, as many as the longest loader, and whether it cannot have more.

        Args:
            num_batches: of the loader of this process; None where that is not known.
            is_firm: whether it cannot give more.
        """
        rows = self._world.gather_numbers([-1 if num_batches is None else num_batches, is_firm])
        is_known = all(row[0] >= 0 for row in rows)
        return round(max(row[0] for row in rows)) if is_known else None, is_known and all(row[1] for row in rows)

    def pair(self, batches: Iterator[Any], name: str) -> Iterator[tuple[Any, Share]]:
        """Yield the batches of this process, each with its share of those of all.

        Args:
            batches: of an epoch.
            name: of the loader in messages.
        """
        last: Any = None
        while True:
            batch = next(batches, _END)
            rows = self._world.gather_numbers([-1 if batch is _END else read_size(batch).samples])
            samples = [round(row[0]) for row in rows]
            if all(number < 0 for number in samples):
                return
            if min(samples) < 0 and not self._has_told:
                self._has_told = True
                ranks = ", ".join(str(rank) for rank, number in enumerate(samples) if number < 0)
                warn(
                    f"the loader for {name!r} gives fewer batches on process {ranks} than on others, so that one waits "
                    f"for them at the end of each epoch; give all as many"
                )
            last = last if batch is _END else batch
            yield last, Share(max(0, samples[self._world.rank]), sum(number for number in samples if number > 0))
