"""Several schedulers of one optimizer, one after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Part:
    """One scheduler of a sequence.

    Attributes:
        scheduler: anything with `step`, `state_dict` and `load_state_dict`.
        every: it is stepped after so many steps, counted from its own beginning.
        length: how many steps it has; None for all that are left.
        first_rates: the rate of each parameter group in its first step.
    """

    scheduler: Any
    every: int
    length: int | None
    first_rates: Sequence[Any]


class SequentialScheduler:
    """A scheduler made of others, stepped after every step: each has its number of steps, and begins anew.

    The rates are those of `torch.optim.lr_scheduler.SequentialLR`. Other than that, it takes parts that are stepped
    less often, and a continued run has the lengths of now, not those of the checkpoint.

    Args:
        optimizer: its rates are set to those of the first part.
        parts: in order; the last one has no length.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parts: Sequence[Part]) -> None:
        self._optimizer = optimizer
        self._parts = parts
        self._index = 0  # of the part that is under way
        self._position = 0  # steps done in it
        set_rates(optimizer, parts[0].first_rates)

    def step(self) -> None:
        """Go on with the part that is under way, or over to the next one."""
        part = self._parts[self._index]
        self._position += 1
        if part.length is not None and self._position >= part.length:
            self._index += 1
            self._position = 0
            set_rates(self._optimizer, self._parts[self._index].first_rates)
        elif self._position % part.every == 0:
            part.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """How far it is, and the states of all parts."""
        parts = [part.scheduler.state_dict() for part in self._parts]
        return {"index": self._index, "position": self._position, "parts": parts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: it was saved with another number of parts.
        """
        if len(state["parts"]) != len(self._parts):
            raise ValueError(f"the sequence has {len(self._parts)} parts now and had {len(state['parts'])} then")
        self._index, self._position = state["index"], state["position"]
        for index, (part, saved) in enumerate(zip(self._parts, state["parts"], strict=True)):
            rates = read_rates(self._optimizer)
            part.scheduler.load_state_dict(saved)
            if index != self._index:  # one that is told of another length may set the rate, which is not its to set
                set_rates(self._optimizer, rates)


def read_rates(optimizer: torch.optim.Optimizer) -> list[Any]:
    """The rate of each parameter group: a number, or a tensor of its own."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return [rate.clone() if isinstance(rate, torch.Tensor) else rate for rate in rates]


def set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[Any]) -> None:
    """Set the rate of each parameter group; one that is a tensor stays the same tensor."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
