"""What happens to one process alone, such as a signal, is agreed on at a step that is the same for all."""

import time
from typing import Any, Protocol

from blowtorch.parallel.world import World
from blowtorch.progress import Progress

_SECONDS = 0.5  # about so often do the processes ask one another


class HasNews(Protocol):
    """Somebody who may have something to tell, at a moment that only this process knows."""

    @property
    def has_news(self) -> bool:
        """Whether there is something to tell."""


class HasShared(Protocol):
    """Somebody who brings together what processes keep for themselves until they meet."""

    def digest(self) -> float:
        """Return a number that is the same in all where nothing has to be brought together."""

    def settle(self, is_alike: bool) -> None:
        """Bring it together, unless the numbers of all are alike."""


class Rhythm:
    """After how many repetitions of something the processes meet again, so that it is about every half second.

    Attributes:
        count: so many.
    """

    def __init__(self) -> None:
        self.count = 1
        self._since = time.monotonic()

    def plan(self, num_done: int) -> int:
        """Return how many come before the next meeting, where so many have been done since the last."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        return max(1, min(2 * self.count, int(num_done * _SECONDS / max(seconds, 1e-6)))) if num_done else self.count


class Agreement:
    """Lets several processes stop, look at a published checkpoint, and read the clock, at the same step.

    Args:
        world: the processes.
        progress: where the run stands; what one of them wants is kept there until all know of it.
        teller: may have something to be told in all of them.
        media: have images and the like that were logged, until all meet between two steps.

    Attributes:
        next_step: the step after which all meet again.
        has_news: whether somebody had something to tell when they met last.
    """

    def __init__(self, world: World, progress: Progress, teller: HasNews, media: HasShared) -> None:
        self._world = world
        self._progress = progress
        self._teller = teller
        self._media = media
        self._steps, self._batches = Rhythm(), Rhythm()
        self._last_step = progress.step
        self._num_batches = 0  # of validations, since the last meeting
        self.next_step = 0
        self.has_news = False

    def meet(self) -> None:
        """Let all know what each of them wants, how late it is by the clock of the first, and what was logged."""
        rows = self._tell(self._media.digest())
        self._media.settle(is_alike=all(row[-1] == rows[0][-1] for row in rows))

    def _tell(self, digest: float) -> list[list[float]]:
        """Let all processes know what each of them wants, and return what each has told."""
        progress = self._progress
        wishes = (progress.wanted_stop, progress.wanted_interruption)
        is_wished = wishes != (None, None)
        plans = self._steps.plan(progress.step - self._last_step), self._batches.plan(self._num_batches)
        rows = self._world.gather_numbers([is_wished, self._teller.has_news, progress.read_clock(), *plans, digest])
        self.has_news = any(row[1] for row in rows)
        progress.agreed_seconds = rows[0][2]
        self._steps.count, self._batches.count = round(rows[0][3]), round(rows[0][4])
        self._last_step, self._num_batches = progress.step, 0
        self.next_step = progress.step + self._steps.count
        if any(row[0] for row in rows):
            stops, interruptions = zip(*self._world.gather(wishes), strict=True)
            progress.agree(_agreed(stops), _agreed(interruptions))
        return rows

    def meet_among_batches(self) -> None:
        """Meet the other processes now and then between two batches of a validation, where all come by."""
        if self._num_batches >= self._batches.count:
            self._tell(0.0)
        self._num_batches += 1


def make_agreement(world: World, progress: Progress, teller: HasNews, media: Any) -> Agreement | None:
    """Return what lets several processes agree; None where one trains alone, whose media have nothing to bring."""
    return Agreement(world, progress, teller, media) if world.is_shared else None


def name_those(world: World, is_meant: bool) -> str:
    """Return which of several processes are meant, such as ` on process 1`; nothing where all are, or none.

    Args:
        world: the processes; each asks at the same place.
        is_meant: whether this one is.
    """
    ranks = [str(rank) for rank, is_one in enumerate(world.gather(is_meant)) if is_one]
    if len(ranks) in (0, world.size):
        return ""
    return f" on process {ranks[0]}" if len(ranks) == 1 else f" on processes {', '.join(ranks)}"


def _agreed(wishes: tuple[str | None, ...]) -> str | None:
    """Return what some process wants, and which, if it is not what all want.

    >>> _agreed((None, "SIGTERM"))
    'SIGTERM on process 1'
    """
    wanted = next((wish for wish in wishes if wish is not None), None)
    if wanted is None or set(wishes) == {wanted}:
        return wanted
    return f"{wanted} on process {wishes.index(wanted)}"
