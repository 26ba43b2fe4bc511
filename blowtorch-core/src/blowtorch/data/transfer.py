"""From the host to the device: the next batch is copied while the one before it is trained on."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from blowtorch.data.tree import move

Sent = TypeVar("Sent")


def one_ahead(batches: Iterator[Any], send: Callable[[Any], Sent], receive: Callable[[Sent], Any]) -> Iterator[Any]:
    """Yield each batch after the next one has been sent, so that the device need not wait for it.

    Args:
        batches: on the host.
        send: asks for a copy of a batch to the device, and waits for nothing.
        receive: returns the batch that is trained on, of what `send` returned.

    >>> list(one_ahead(iter([1, 2, 3]), lambda batch: print("send", batch) or batch, lambda sent: sent * 10))
    send 1
    send 2
    send 3
    [10, 20, 30]
    """
    waiting: list[Sent] = []
    for batch in batches:
        waiting.append(send(batch))
        if len(waiting) > 1:
            yield receive(waiting.pop(0))
    for sent in waiting:
        yield receive(sent)


class SideStream:
    """Copies batches to a CUDA device on a stream of their own, beside the computations of the current stream.

    A copy waits for all that the device had been asked for before: nothing reads the memory of an earlier batch then.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def send(self, batch: Any) -> tuple[Any, torch.cuda.Event]:
        """Ask for a copy of a batch; return it with the event that says when it is complete."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            moved = move(batch, self._device)
        return moved, self._stream.record_event()

    def receive(self, sent: tuple[Any, torch.cuda.Event]) -> Any:
        """Return the copy; the computations wait until it is complete, and the host does not."""
        moved, is_complete = sent
        torch.cuda.current_stream(self._device).wait_event(is_complete)
        return moved
