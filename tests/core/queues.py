"""What stands in for the streams and events of `torch.cuda`: queues of work that is done late.

What a device is asked for waits in the queue of a stream, and is done, in the order of that queue, when the host or
another stream waits for it. Streams of one of two kinds are never behind, as far as they need not wait for the others:
with `slow="copies"` those on which one computes, with `slow="computations"` all others. Between these two lies whatever
a device may do.
"""

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

NUM_DEVICES = 2


class Mark:
    """A place in the queue of a stream; it is done when all before it is done."""

    def __init__(self, stream: "Stream") -> None:
        self.stream = stream
        self.is_done = False

    def __call__(self) -> None:
        self.is_done = True


class Stream:
    """What a device was asked for and has not done yet: functions, and marks of other streams, which are waited for."""

    def __init__(self, queues: "Queues", device: torch.device) -> None:
        self.device = device
        self._queues = queues
        self._waiting: deque[tuple[Callable[[], Any], Mark | None]] = deque()

    def wait_stream(self, other: "Stream") -> None:
        self.wait_event(other.record_event())

    def wait_event(self, event: "Event") -> None:
        if event.mark is not None:
            self.ask(lambda: None, event.mark)

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event(self._queues)
        event.mark = Mark(self)
        self.ask(event.mark)
        return event

    def synchronize(self) -> None:
        self._queues.host_waits["synchronize"] += 1
        self.finish()

    def query(self) -> bool:
        return not self._waiting

    def is_capturing(self) -> bool:
        return False

    def ask(self, work: Callable[[], Any], awaited: Mark | None = None) -> None:
        """Add what is to be done, after a place in another stream."""
        self._waiting.append((work, awaited))
        self._queues.catch_up()

    def finish(self, mark: Mark | None = None) -> None:
        """Do all that was asked for, or what comes before a mark, and what that waits for."""
        while self._waiting and not (mark is not None and mark.is_done):
            work, awaited = self._waiting[0]
            if awaited is not None and not awaited.is_done:
                awaited.stream.finish(awaited)
                continue
            self._waiting.popleft()
            work()
            self._queues.catch_up()

    def catch_up(self) -> int:
        """Do what need not wait for another stream; return how much that was."""
        num_done = 0
        while self._waiting and (self._waiting[0][1] is None or self._waiting[0][1].is_done):
            work, _ = self._waiting.popleft()
            work()
            num_done += 1
        return num_done


class Event:
    """A place in a stream that another stream, or the host, may wait for."""

    def __init__(self, queues: "Queues", **options: Any) -> None:
        self.mark: Mark | None = None
        self._queues = queues

    def record(self, stream: Stream | None = None) -> None:
        (stream or self._queues.current_stream()).record_event(self)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or self._queues.current_stream()).wait_event(self)

    def query(self) -> bool:
        return self.mark is None or self.mark.is_done

    def elapsed_time(self, later: "Event") -> float:
        return 0.0  # milliseconds: a queue has no clock

    def synchronize(self) -> None:
        self._queues.host_waits["synchronize"] += 1
        if self.mark is not None:
            self.mark.stream.finish(self.mark)


class Queues:
    """The streams of some devices, by the names that `torch.cuda` has for what is done with them.

    Args:
        slow: `copies` or `computations`.
        kind: what torch calls such devices.

    Attributes:
        host_waits: how often the host has waited for a device, by what it wanted.
    """

    def __init__(self, slow: str, kind: str) -> None:
        self.host_waits: Counter[str] = Counter()
        self._kind = kind
        self._defaults = [Stream(self, torch.device(kind, index)) for index in range(NUM_DEVICES)]
        self._sides: list[Stream] = []
        self._currents = list(self._defaults)
        self._index = 0
        self._never_behind = {"copies": self._defaults, "computations": self._sides}[slow]
        self._is_catching_up = False

    def place(self, device: Any = None) -> torch.device:
        """Return a device with its index; the current one for None."""
        index = device if isinstance(device, int) else None if device is None else torch.device(device).index
        return torch.device(self._kind, self._index if index is None else index)

    def catch_up(self) -> None:
        """Let the streams that are never behind do all that they can."""
        if not self._is_catching_up:
            self._is_catching_up = True
            while sum(stream.catch_up() for stream in self._never_behind):
                pass
            self._is_catching_up = False

    def wait(self, wanted: str, device: torch.device) -> None:
        """Have the host wait for all that the current stream of a device was asked for."""
        self.host_waits[wanted] += 1
        self.current_stream(device).finish()

    def new_stream(self, device: Any = None, priority: int = 0) -> Stream:
        self._sides.append(Stream(self, self.place(device)))
        return self._sides[-1]

    def new_event(self, **options: Any) -> Event:
        return Event(self)

    def current_stream(self, device: Any = None) -> Stream:
        return self._currents[self.place(device).index]

    def default_stream(self, device: Any = None) -> Stream:
        return self._defaults[self.place(device).index]

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        index = stream.device.index
        with self.device(stream.device):
            before, self._currents[index] = self._currents[index], stream
            try:
                yield
            finally:
                self._currents[index] = before

    @contextlib.contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before, self._index = self._index, self.place(device).index
        try:
            yield
        finally:
            self._index = before

    def current_device(self) -> int:
        return self._index

    def synchronize(self, device: Any = None) -> None:
        self.host_waits["synchronize"] += 1
        for stream in [*self._defaults, *self._sides]:
            if stream.device == self.place(device):
                stream.finish()
