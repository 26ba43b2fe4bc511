"""How long training has waited for its batches, or a GPU for the host, and what would shorten that.

On a CPU it waits while a batch is fetched. A GPU may be busy with the steps before meanwhile, so its own clock is
asked, at some steps: by an event before the batch is fetched and one after it, between which no time passes for it
unless it has to wait for the batch. If it has come to the first of them once the batch is there, though that took no
time, it has nothing left to do: it waits for the host, which launches the steps.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

_LEAST_SHARE = 0.2  # of the time, below which nothing is said
_LEAST_SECONDS = 10.0
_QUICK = 0.1  # of a step, in which a batch is fetched that nobody has to wait for
_MOST_STEPS = 0.8  # so many of those looked at find a GPU idle where it waits for the host
_STRIDE = 11  # steps from one look at a GPU to the next: a prime, since workers deliver in the rhythm of their number


class Waits:
    """How long one has waited, by those waits of which that is known.

    Attributes:
        count: all of them.
        num_known: those that were timed.
        known_seconds: of these.
    """

    def __init__(self) -> None:
        self.count = self.num_known = 0
        self.known_seconds = 0.0

    def estimate(self) -> float:
        """Return how many seconds all of them took, if the others took as long as those that were timed."""
        return self.known_seconds / self.num_known * self.count if self.num_known else 0.0


class Waiting:
    """The time that the steps of this process have waited for the batches of a loader, or a GPU for the host.

    A list of batches makes nobody wait. Of accelerators other than CUDA it cannot be told whether they do.

    Args:
        device: on which the steps compute.
        loader: as the script gave it.
    """

    def __init__(self, device: torch.device, loader: Any) -> None:
        self._device = device
        self._loader = loader
        self._is_measured = device.type in ("cpu", "cuda") and type(loader) not in (list, tuple)
        self._seconds = 0.0  # of the steps and of what they waited for
        self._waits = (Waits(), Waits())  # for the first batches of epochs, and for the others
        self._idle: list[
            bool
        ] = []  # at each look at a GPU, whether it had nothing left to do, though no data was missing
        self._looks: list[tuple[Waits, torch.cuda.Event, torch.cuda.Event]] = []  # to which the GPU has not come

    def watch(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Return the batches of an epoch, whose fetching is timed from here on."""
        if not self._is_measured:
            return batches
        return self._watched_on_gpu(batches) if self._device.type == "cuda" else self._watched(batches)

    def describe(self) -> str | None:
        """Return a sentence on the time that was spent waiting, and what to do; None where it was little."""
        self._read_looks()
        first, others = (waits.estimate() for waits in self._waits)
        waited = first + others
        if waited < max(_LEAST_SECONDS, _LEAST_SHARE * self._seconds):
            return self._describe_idle()
        share = (
            f"{100 * min(1.0, waited / self._seconds):.0f} % of the time of the training steps was spent waiting for"
        )
        loader = self._loader
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            return f"{share} batches of the loader"  # each of more workers would go through all of a stream
        if first > others and self._waits[0].count == 1:
            return f"{share} data, most of it for the first batch"
        if not loader.num_workers:
            return (
                f"{share} data, which was loaded in between: DataLoader(num_workers=...) has it loaded meanwhile, "
                f"where there are processors to spare"
            )
        if first > others and not loader.persistent_workers:
            return (
                f"{share} data, most of it for the first batch of each epoch: DataLoader(persistent_workers=True) "
                f"keeps its workers from one epoch to the next"
            )
        return (
            f"{share} data: more workers (num_workers is {loader.num_workers}) would help where there are processors "
            f"to spare, or samples that take less to load"
        )

    def _describe_idle(self) -> str | None:
        """Return a sentence on a GPU that waits for the host, and what to do; None where it has mostly been busy."""
        if self._seconds < _LEAST_SECONDS or sum(self._idle) < max(1.0, _MOST_STEPS * len(self._idle)):
            return None
        share = 100 * sum(self._idle) // len(self._idle)
        return (
            f"the GPU had nothing left to do before {share} % of the training steps, which the host launches more "
            f"slowly than it computes them: larger batches would use it better, as would the option compile, and steps "
            f"that read no number from it, such as by item()"
        )

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        waits, others = self._waits
        last = time.perf_counter()
        for batch in batches:
            now = time.perf_counter()
            yield batch  # the run may end with its step, whose time is not known then; so the wait is not counted
            waits.count += 1
            waits.num_known += 1
            waits.known_seconds += now - last
            waits, last, before = others, time.perf_counter(), last
            self._seconds += last - before

    def _watched_on_gpu(self, batches: Iterator[Any]) -> Iterator[Any]:
        waits, others = self._waits
        stream, last, steps_left = torch.cuda.current_stream(self._device), time.perf_counter(), 1
        while True:
            steps_left -= 1
            before = stream.record_event(torch.cuda.Event(enable_timing=True)) if not steps_left else None
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if before is not None:
                if waits is others:
                    is_quick = (time.perf_counter() - asked) * others.count < _QUICK * self._seconds
                    self._idle.append(is_quick and before.query())
                self._looks.append((waits, before, stream.record_event(torch.cuda.Event(enable_timing=True))))
                self._read_looks()
                steps_left = 1 if waits is not others else _STRIDE
            yield batch
            waits.count += 1
            waits, now = others, time.perf_counter()
            self._seconds, last = self._seconds + now - last, now

    def _read_looks(self) -> None:
        """Take in what the GPU has come to meanwhile; it is not waited for."""
        while self._looks and self._looks[0][-1].query():
            waits, before, after = self._looks.pop(0)
            waits.num_known += 1
            waits.known_seconds += before.elapsed_time(after) / 1000
