"""Totals of several processes become those of all."""

import hashlib
from collections.abc import Mapping

from blowtorch.parallel.world import World
from blowtorch.record.logged import REDUCTIONS
from blowtorch.record.metrics import Total, Totals

_DIGITS = 6  # bytes of a digest, which a float holds exactly


class Pool:
    """Adds up the totals of the processes, in the order of their ranks, so that all come to the same numbers.

    Most of the time all have the same names, so that a message of numbers is enough.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._room = 4  # so many totals fit into a message

    def __call__(self, totals: Totals, reductions: dict[str, str]) -> Totals:
        """Return the totals of all processes; how they are reduced is the same in all from then on."""
        names = [f"{name}\0{reductions.get(name, 'mean')}" for name in totals]
        digest = int.from_bytes(hashlib.sha256("\n".join(names).encode()).digest()[:_DIGITS], "big")
        values = [number for total in totals.values() for number in (total.value, total.weight)]
        padded = [*values[: 2 * self._room], *[0.0] * (2 * self._room - len(values))]
        rows = self._world.gather_numbers([digest, len(names), *padded])
        fits = all(row[:2] == rows[0][:2] for row in rows) and rows[0][1] <= self._room
        self._room = max(self._room, *(int(row[1]) for row in rows))
        if fits:  # a message has room for more than there are names
            messages = [dict(zip(totals, map(Total, row[2::2], row[3::2]), strict=False)) for row in rows]
            return add_up(messages, reductions)
        everything = self._world.gather((totals, {name: reductions[name] for name in totals if name in reductions}))
        for _, own in everything:
            reductions |= own
        return add_up([of_one for of_one, _ in everything], reductions)


def add_up(totals_of_all: list[Totals], reductions: Mapping[str, str]) -> Totals:
    """Return what the totals of several processes come to.

    >>> add_up([{"loss": Total(3.0, 2.0)}, {"loss": Total(1.0, 2.0)}], {})
    {'loss': Total(value=4.0, weight=4.0)}
    """
    summed: Totals = {}
    for totals in totals_of_all:
        for name, total in totals.items():
            before = summed.get(name)
            if before is None:
                summed[name] = Total(total.value, total.weight)
            elif name not in reductions:
                before.value += total.value
                before.weight += total.weight
            elif total.weight:
                before.value = REDUCTIONS[reductions[name]](before.value, total.value) if before.weight else total.value
                before.weight = 1.0
    return summed
