"""What happens to one process alone, such as a signal, is agreed on at a step that is the same for all."""

import time
from typing import Protocol

from blowtorch.parallel.world import World
from blowtorch.progress import Progress

_SECONDS = 0.5  # about so often do the processes ask one another


class HasNews(Protocol):
    """Somebody who may have something to tell, at a moment that only this process knows."""

    @property
    def has_news(self) -> bool:
        """Whether there is something to tell."""


class Agreement:
    """Lets several processes stop, look at a published checkpoint, and read the clock, at the same step.

    Args:
        world: the processes.
        progress: where the run stands; what one of them wants is kept there until all know of it.
        teller: may have something to be told in all of them.

    Attributes:
        next_step: the step after which all meet again.
        has_news: whether somebody had something to tell when they met last.
    """

    def __init__(self, world: World, progress: Progress, teller: HasNews) -> None:
        self._world = world
        self._progress = progress
        self._teller = teller
        self._steps_between = 1
        self._met_at = time.monotonic()
        self.next_step = 0
        self.has_news = False

    def meet(self) -> None:
        """Let all processes know what each of them wants, and how late it is by the clock of the first."""
        progress = self._progress
        wishes = (progress.wanted_stop, progress.wanted_interruption)
        is_wished = wishes != (None, None)
        rows = self._world.gather_numbers([is_wished, self._teller.has_news, progress.read_clock(), self._plan_steps()])
        self.has_news = any(row[1] for row in rows)
        progress.agreed_seconds = rows[0][2]
        self._steps_between = round(rows[0][3])
        self.next_step = progress.step + self._steps_between
        if any(row[0] for row in rows):
            stops, interruptions = zip(*self._world.gather(wishes), strict=True)
            progress.agree(_agreed(stops), _agreed(interruptions))

    def _plan_steps(self) -> int:
        """Return after how many steps to meet again, by how long those since the last time took."""
        now = time.monotonic()
        elapsed, self._met_at = now - self._met_at, now
        factor = min(2.0, _SECONDS / max(elapsed, 1e-6))
        return max(1, int(self._steps_between * factor))


def _agreed(wishes: tuple[str | None, ...]) -> str | None:
    """Return what some process wants, and which, if it is not what all want.

    >>> _agreed((None, "SIGTERM"))
    'SIGTERM on process 1'
    """
    wanted = next((wish for wish in wishes if wish is not None), None)
    if wanted is None or set(wishes) == {wanted}:
        return wanted
    return f"{wanted} on process {wishes.index(wanted)}"
