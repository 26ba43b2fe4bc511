"""From the host to the device: nested batches are moved whole, and the next one while this one is trained on."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from blowtorch.tree import move

Begun = TypeVar("Begun")


def one_ahead(batches: Iterator[Any], begin: Callable[[Any], Begun], finish: Callable[[Begun], Any]) -> Iterator[Any]:
    """Each batch when the one after it has been begun, so that the device need not wait for it.

    Args:
        batches: on the host.
        begin: asks for a copy to the device, and waits for nothing.
        finish: makes of that the batch that is trained on.

    >>> list(one_ahead(iter([1, 2, 3]), lambda batch: print("begin", batch) or batch, lambda batch: batch * 10))
    begin 1
    begin 2
    begin 3
    [10, 20, 30]
    """
    waiting: list[Begun] = []
    for batch in batches:
        waiting.append(begin(batch))
        if len(waiting) > 1:
            yield finish(waiting.pop(0))
    for begun in waiting:
        yield finish(begun)


class SideStream:
    """Copies to a CUDA device on a stream of their own, beside the computations of the current one.

    A copy begins when all that had been asked of the device before is done: memory that an earlier batch has left is
    then no longer read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def begin(self, batch: Any) -> tuple[Any, torch.cuda.Event]:
        """Ask for a copy; what to wait for comes with it."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            moved = move(batch, self._device)
        return moved, self._stream.record_event()

    def finish(self, begun: tuple[Any, torch.cuda.Event]) -> Any:
        """The batch, whose copy the computations wait for, and the host does not."""
        moved, is_there = begun
        torch.cuda.current_stream(self._device).wait_event(is_there)
        return moved
