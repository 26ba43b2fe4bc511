"""Several schedulers of one optimizer, one after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Phase:
    """One scheduler of a sequence, and when it is followed.

    Attributes:
        scheduler: anything with `step`, `state_dict` and `load_state_dict`.
        every: the scheduler is stepped after so many steps, counted from the beginning of the phase.
        length: how many steps the phase has; None for all that are left.
        first_rates: the rate of each parameter group in the first step.
    """

    scheduler: Any
    every: int
    length: int | None
    first_rates: Sequence[Any]


class SequentialScheduler:
    """A scheduler made of others, stepped after every step: each has its number of steps, and begins anew.

    The rates are those of `torch.optim.lr_scheduler.SequentialLR`. Other than that, it takes schedulers that are
    stepped less often, and a continued run has the lengths of now, not those of the checkpoint.

    Args:
        optimizer: its rates are set to those of the first phase.
        phases: in order; the last one has no length.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, phases: Sequence[Phase]) -> None:
        self._optimizer = optimizer
        self._phases = phases
        self._index = 0  # of the phase that is under way
        self._position = 0  # steps done in it
        set_rates(optimizer, phases[0].first_rates)

    @property
    def under_way(self) -> Any:
        """The scheduler that is followed now."""
        return self._phases[self._index].scheduler

    def step(self) -> None:
        """Go on with the phase that is under way, or over to the next one."""
        phase = self._phases[self._index]
        self._position += 1
        if phase.length is not None and self._position >= phase.length:
            self._index += 1
            self._position = 0
            set_rates(self._optimizer, self._phases[self._index].first_rates)
        elif self._position % phase.every == 0:
            phase.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the sequence, and the states of all schedulers."""
        states = [phase.scheduler.state_dict() for phase in self._phases]
        return {"index": self._index, "position": self._position, "parts": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved position.

        Raises:
            ValueError: it was saved with another number of schedulers.
        """
        states = state["parts"]
        if len(states) != len(self._phases):
            raise ValueError(f"the sequence has {len(self._phases)} schedulers now and had {len(states)} then")
        self._index, self._position = state["index"], state["position"]
        for index, (phase, saved) in enumerate(zip(self._phases, states, strict=True)):
            rates = read_rates(self._optimizer)
            phase.scheduler.load_state_dict(saved)
            if index != self._index:  # one that is told of another length may set the rate, which is not its to set
                set_rates(self._optimizer, rates)


def read_rates(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return the rate of each parameter group: a number, or a tensor of its own."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return [rate.clone() if isinstance(rate, torch.Tensor) else rate for rate in rates]


def set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[Any]) -> None:
    """Set the rate of each parameter group; one that is a tensor stays the same tensor."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
