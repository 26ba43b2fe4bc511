"""Spot checks: whether a loader that is drawn again after a restart gives the batches of before."""

from collections.abc import Iterator, Mapping
from typing import Any

from blowtorch.data.digests import digest
from blowtorch.errors import warn
from blowtorch.streams import random_state


class SpotChecks:
    """Digests of some batches of an epoch: of the first, and of those after 1, 2, 4, 8 and so on.

    Another order shows in the first batch already, a stream that has become another one at the latest when twice as
    many batches have come. So few digests cost a run nothing that is felt.

    A batch that draws from the random streams of this process is not compared: in training they stand elsewhere than in
    drawing again, which is why a checkpoint holds them. The first batch is drawn from streams of its own.

    Args:
        name: of the loader in messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._digests: dict[int, str] = {}  # of this epoch, by the number of batches before
        self._earlier: Mapping[int, str] = {}  # of the epoch that a restart cut

    def start_epoch(self, is_continued: bool) -> None:
        """Begin with the first batch of an epoch, be it new or one that a restart has cut."""
        self._digests = {}
        if not is_continued:
            self._earlier = {}

    def compare(self, batch: Any, number: int) -> None:
        """Compare a batch that is drawn again, and has so many before it in the epoch, with what it was; warn once."""
        if number not in self._earlier:
            return
        self._digests[number] = self._earlier[number]
        if _digest(batch) != self._earlier[number]:
            self._earlier = {}
            warn(
                f"the loader for {self._name!r} gives other batches than before the restart: batch {number + 1} of "
                f"this epoch differs, so the run goes on with other data than it would have had without; shuffle by a "
                f"seed of your own, or give the loader methods state_dict and load_state_dict"
            )

    def watch(self, batches: Iterator[Any], number: int) -> Iterator[Any]:
        """Yield the same batches, of which the first has so many before it in the epoch."""
        following = 2 ** (number - 1).bit_length() if number else 0
        while True:
            is_due = number == following
            streams = digest(random_state()) if is_due and number else None
            batch = next(batches, _END)
            if batch is _END:
                return
            if is_due:
                following = 2 * number or 1
                if streams is None or streams == digest(random_state()):
                    self._digests[number] = _digest(batch)
            number += 1
            yield batch
            del batch  # or it would stay in memory while the next one is made

    def state_dict(self) -> dict[str, Any]:
        """Return the digests of this epoch."""
        return {"digests": dict(self._digests)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compare the next epoch, if it goes on amid it, with one before a restart."""
        self._earlier = state.get("digests", {})


_END = object()


def _digest(batch: Any) -> str:
    try:
        return digest(batch)
    except Exception:  # a tensor without bytes to look at, or an object that does not let itself be looked at
        return ""
