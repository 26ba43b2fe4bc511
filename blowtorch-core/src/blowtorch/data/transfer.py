"""From the host to a CUDA device: a batch is copied while the one before it is trained on, and the host goes on.

A copy from pinned memory is made when the device comes to it, so that memory must stay as it is until then. From any
other, the driver takes what it needs before the call returns, so that the memory may be written to at once; but it may
first wait for all that the stream was asked for.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from blowtorch.data.tree import map_leaves, moves_itself

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


def send(batch: Any, device: torch.device, is_lasting: bool) -> Any:
    """Ask for a copy of a batch to a CUDA device, for which the host waits only where it has to.

    Tensors are copied to pinned memory first. torch gives that out again when the device has read it, so a loader may
    fill the same memory with each of its batches. What is more than a plain tensor stays as it is, and the host waits:
    a copy might lose its class or its gradient, and an object that moves itself does not tell where its tensors lie.

    Args:
        batch: on the host.
        device: where it is wanted.
        is_lasting: whether nobody writes to its memory, so that what is pinned already is good as it is.
    """

    def sent(leaf: Any) -> Any:
        if _is_plain(leaf) and not (is_lasting and leaf.is_pinned()):
            return torch.empty_like(leaf, pin_memory=True).copy_(leaf).to(device, non_blocking=True)
        if not moves_itself(leaf):
            return leaf
        return leaf.to(device, non_blocking=True) if is_lasting and _may_go_on(leaf) else leaf.to(device)

    return map_leaves(sent, batch, moves_itself)


def _is_plain(leaf: Any) -> bool:
    """Return whether a copy in pinned memory is all that a leaf is."""
    if type(leaf) is not Tensor or not leaf.is_cpu or leaf.requires_grad:
        return False
    return leaf.layout is torch.strided and not leaf.is_quantized and not leaf.is_nested


def _may_go_on(leaf: Any) -> bool:
    """Return whether the method `to` of a leaf can be told that the host need not wait."""
    if isinstance(leaf, Tensor | PackedSequence):  # the signature of torch's own does not tell
        return True
    try:
        return "non_blocking" in inspect.signature(leaf.to).parameters
    except (TypeError, ValueError):  # it is written in another language
        return False


class SideStream:
    """Copies batches to a CUDA device on a stream of their own, beside the computations of the current stream.

    A copy waits for all that the device had been asked for before: nothing reads the memory of an earlier batch then.

    Args:
        device: where batches are wanted.
        is_lasting: whether nobody writes to the memory of a batch.
    """

    def __init__(self, device: torch.device, is_lasting: bool) -> None:
        self._device = device
        self._is_lasting = is_lasting
        self._stream = torch.cuda.Stream(device)

    def send(self, batch: Any) -> tuple[Any, torch.cuda.Event]:
        """Ask for a copy of a batch; return it with the event that says when it is complete."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            moved = send(batch, self._device, self._is_lasting)
        return moved, self._stream.record_event()

    def receive(self, sent: tuple[Any, torch.cuda.Event]) -> Any:
        """Return the copy; the computations wait until it is complete, and the host does not."""
        moved, is_complete = sent
        torch.cuda.current_stream(self._device).wait_event(is_complete)
        return moved
