"""From the host to the device: nested batches are moved whole, and the next one while this one is trained on."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

import torch

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


def move(batch: Any, device: torch.device) -> Any:
    """A batch with every tensor in it on a device; an accelerator is not waited for unless its values are asked for.

    An object with a method `to` moves itself; lists, tuples, mappings and dataclasses are walked and copied.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=device.type != "cpu")
    if callable(getattr(batch, "to", None)):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return _move_mapping(batch, device)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(move(value, device) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        twin: Any = copy.copy(batch)
        for field in dataclasses.fields(batch):  # frozen ones too, and fields that __init__ does not take
            object.__setattr__(twin, field.name, move(getattr(batch, field.name), device))
        return twin
    return batch


def _move_mapping(batch: Mapping[Any, Any], device: torch.device) -> Mapping[Any, Any]:
    moved = {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, MutableMapping):
        twin = copy.copy(batch)  # keeps what else it holds, such as the default of a defaultdict
        twin.update(moved)
        return twin
    return type(batch)(moved)  # type: ignore[call-arg]
