"""Schedulers whose rate follows a curve over the run, on top of those of torch; all are stepped after every step.

Rates are fractions of those that the optimizer was made with, so parameter groups keep their ratios. When a run is
continued, the checkpoint says how far a schedule is, and the options and the length of the run are those of now.
"""

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from blowtorch import BlowtorchWarning, Interval, OptionError, hookimpl
from blowtorch.builtin.checks import (
    check_between,
    check_fraction,
    check_positive,
    count_steps,
    is_number,
    read_interval,
)

if TYPE_CHECKING:
    import torch

_START = 0.01  # where a warm-up begins
_SHAPES: Mapping[str, Callable[[float], float]] = {  # from 1 to 0 as the argument goes from 0 to 1
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "square_root": lambda done: 1 - math.sqrt(done),
}


class _Fall:
    """Falls from the optimizer's rate to `floor`, after an optional warm-up; a subclass says on which curve.

    Args:
        name: that of the scheduler, for messages.
        curve: leads from 1 to 0 as its argument goes from 0 to 1.
        warmup: how long the rate first rises.
        floor: the rate at the end, as a fraction of the optimizer's.
    """

    def __init__(self, name: str, curve: Callable[[float], float], warmup: str | None, floor: float) -> None:
        self._owner = f"scheduler {name!r}"
        self._curve = curve
        self.warmup = None if warmup is None else read_interval(self._owner, "warmup", warmup)
        self.floor = check_fraction(self._owner, "floor", floor)

    @hookimpl
    def scheduler_build(
        self, optimizer: "torch.optim.Optimizer", total_steps: int | None, steps_per_epoch: int | None
    ) -> Any:
        """Build the scheduler; the run must have a known number of steps."""
        total = _check_known(self._owner, total_steps)
        warmup = _count_warmup(self._owner, self.warmup, total, steps_per_epoch)
        factor = _rise_and_fall(self._curve, warmup, total, self.floor)
        scheduler = None if warmup else self.build_as_torch(optimizer, total, factor)
        return _build_lambda(optimizer, factor) if scheduler is None else scheduler

    def build_as_torch(self, optimizer: "torch.optim.Optimizer", total: int, factor: Callable[[int], float]) -> Any:
        """Build torch's own scheduler for this curve without a warm-up, or None where torch has none."""
        raise NotImplementedError


class Cosine(_Fall):
    """Half a cosine from the optimizer's rate down to `floor`, after an optional warm-up.

    Without options this is `torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_steps)`, stepped every step.

    Args:
        warmup: how long the rate first rises, in a straight line, such as `"500 steps"` or `"1 epoch"`.
        floor: the rate at the end, as a fraction of the optimizer's.

    Raises:
        OptionError: `warmup` is no interval of steps or epochs, or `floor` is not from 0 to 1.
    """

    def __init__(self, warmup: str | None = None, floor: float = 0.0) -> None:
        super().__init__("cosine", _SHAPES["cosine"], warmup, floor)

    def build_as_torch(self, optimizer: "torch.optim.Optimizer", total: int, factor: Callable[[int], float]) -> Any:
        """Build a `CosineAnnealingLR`, unless there is a floor: its own is no fraction of the optimizer's rate."""
        from torch.optim.lr_scheduler import CosineAnnealingLR

        return None if self.floor else _following(CosineAnnealingLR, factor, T_max=total)(optimizer, total)


class Linear(_Fall):
    """A straight line from the optimizer's rate down to `floor`, after an optional warm-up.

    Without a warm-up this is `torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, floor, total_steps)`.

    Args:
        warmup: how long the rate first rises, in a straight line, such as `"500 steps"` or `"1 epoch"`.
        floor: the rate at the end, as a fraction of the optimizer's.

    Raises:
        OptionError: `warmup` is no interval of steps or epochs, or `floor` is not from 0 to 1.
    """

    def __init__(self, warmup: str | None = None, floor: float = 0.0) -> None:
        super().__init__("linear", _SHAPES["linear"], warmup, floor)

    def build_as_torch(self, optimizer: "torch.optim.Optimizer", total: int, factor: Callable[[int], float]) -> Any:
        """Build a `LinearLR`."""
        from torch.optim.lr_scheduler import LinearLR

        kind = _following(LinearLR, factor, end_factor=self.floor, total_iters=total)
        return kind(optimizer, 1.0, self.floor, total)


class Polynomial(_Fall):
    """A power of what is left of the run, from the optimizer's rate down to `floor`, after an optional warm-up.

    Without `warmup` and `floor` this is `torch.optim.lr_scheduler.PolynomialLR(optimizer, total_steps, power)`.

    Args:
        power: 1 is a straight line; with 2 the rate falls fast at first, and with 0.5 at last.
        warmup: how long the rate first rises, in a straight line, such as `"500 steps"` or `"1 epoch"`.
        floor: the rate at the end, as a fraction of the optimizer's.

    Raises:
        OptionError: `power` is not above 0, `warmup` is no interval of steps or epochs, or `floor` is not from 0 to 1.
    """

    def __init__(self, power: float = 1.0, warmup: str | None = None, floor: float = 0.0) -> None:
        self.power = check_positive("scheduler 'polynomial'", "power", power)
        super().__init__("polynomial", lambda done: float((1 - done) ** self.power), warmup, floor)

    def build_as_torch(self, optimizer: "torch.optim.Optimizer", total: int, factor: Callable[[int], float]) -> Any:
        """Build a `PolynomialLR`, unless there is a floor: it ends at 0."""
        from torch.optim.lr_scheduler import PolynomialLR

        if self.floor:
            return None
        kind = _following(PolynomialLR, factor, total_iters=total, power=self.power)
        return kind(optimizer, total, self.power)


class WarmupStableDecay:
    """A straight line up to the optimizer's rate, which stays until a decay at the end of the run.

    Args:
        warmup: how long the rate first rises, in a straight line, such as `"500 steps"` or `"1 epoch"`.
        decay: how long it falls at the end: an interval such as `"2k steps"`, or a fraction of the run.
        shape: how it falls: `linear`, `cosine`, or `square_root`, which is `1 - sqrt(part of the decay that is done)`
            (Hägele et al., 2024).
        floor: the rate at the end, as a fraction of the optimizer's.

    Raises:
        OptionError: `warmup` is no interval of steps or epochs, `decay` is none and no fraction, `shape` is none of the
            three, or `floor` is not from 0 to 1.
    """

    def __init__(
        self, warmup: str | None = None, decay: float | str = 0.2, shape: str = "linear", floor: float = 0.0
    ) -> None:
        self._owner = "scheduler 'warmup_stable_decay'"
        self.warmup = None if warmup is None else read_interval(self._owner, "warmup", warmup)
        self.decay = self._read_decay(decay)
        if shape not in tuple(_SHAPES):
            raise OptionError(f"{self._owner}, option shape: expected {', '.join(map(repr, _SHAPES))}, got {shape!r}")
        self.shape = shape
        self.floor = check_fraction(self._owner, "floor", floor)

    @hookimpl
    def scheduler_build(
        self, optimizer: "torch.optim.Optimizer", total_steps: int | None, steps_per_epoch: int | None
    ) -> Any:
        """Build the scheduler; the run must have a known number of steps."""
        total = _check_known(self._owner, total_steps)
        warmup = _count_warmup(self._owner, self.warmup, total, steps_per_epoch)
        if isinstance(self.decay, Interval):
            decay = count_steps(self._owner, "decay", self.decay, steps_per_epoch)
        else:
            decay = round(self.decay * total)
        if warmup < total < warmup + decay:
            _warn(
                f"{self._owner}: a warm-up of {warmup} steps and a decay of {decay} do not fit into its {total} "
                f"steps, so the decay is shortened"
            )
        fall_start = max(warmup, total - decay)
        return _build_lambda(optimizer, _rise_and_fall(_SHAPES[self.shape], warmup, total, self.floor, fall_start))

    def _read_decay(self, decay: float | str) -> Interval | float:
        """Return the length of the decay: an interval, or a fraction of the run."""
        if isinstance(decay, str):
            return read_interval(self._owner, "decay", decay)
        if not (is_number(decay) and 0 < decay <= 1):
            raise OptionError(
                f"{self._owner}, option decay: expected an interval such as '2k steps', or a fraction of the run "
                f"above 0 and up to 1, got {decay!r}"
            )
        return decay


class Warmup:
    """A straight line up to the optimizer's rate, which then stays.

    Args:
        warmup: how long the rate rises, such as `"500 steps"` or `"1 epoch"`.
        start_factor: the rate of the first step, as a fraction of the optimizer's.

    Raises:
        OptionError: `warmup` is no interval of steps or epochs, or `start_factor` is not from 0 to 1.
    """

    def __init__(self, warmup: str, start_factor: float = _START) -> None:
        self._owner = "scheduler 'warmup'"
        self.warmup = read_interval(self._owner, "warmup", warmup)
        self.start_factor = check_fraction(self._owner, "start_factor", start_factor)

    @hookimpl
    def scheduler_build(
        self, optimizer: "torch.optim.Optimizer", total_steps: int | None, steps_per_epoch: int | None
    ) -> Any:
        """Build the scheduler; the length of the run may be unknown."""
        warmup = _count_warmup(self._owner, self.warmup, total_steps, steps_per_epoch, least_after=0)
        return _build_lambda(optimizer, functools.partial(_rise, warmup=warmup, start=self.start_factor))


class OneCycle:
    """Up to a highest rate and down to nearly nothing: `torch.optim.lr_scheduler.OneCycleLR`.

    The first step has a 25th of the highest rate. Momentum, or the first of Adam's betas, falls from 0.95 to 0.85 while
    the rate rises, and comes back; an optimizer without momentum gets none.

    Args:
        max_rate: the highest rate, for all parameter groups; each has that of the optimizer unless given.
        rise: the fraction of the run in which the rate rises.

    Raises:
        OptionError: `max_rate` is not above 0, or `rise` is not between 0 and 1.
    """

    def __init__(self, max_rate: float | None = None, rise: float = 0.3) -> None:
        self._owner = "scheduler 'one_cycle'"
        self.max_rate = None if max_rate is None else check_positive(self._owner, "max_rate", max_rate)
        self.rise = check_between(self._owner, "rise", rise)

    @hookimpl
    def scheduler_build(self, optimizer: "torch.optim.Optimizer", total_steps: int | None) -> Any:
        """Build the scheduler; the run must have a known number of steps."""
        from torch.optim.lr_scheduler import OneCycleLR

        total = _check_known(self._owner, total_steps)

        class FollowingOneCycle(OneCycleLR):
            """Goes over to the cycle of the present length, should it have been saved in another."""

            def load_state_dict(self, state_dict: dict[str, Any]) -> None:
                present = {"total_steps": total, "_schedule_phases": self._schedule_phases}
                super().load_state_dict({**state_dict, **present})
                if state_dict["total_steps"] != total and self.last_epoch <= total:
                    self.last_epoch -= 1
                    self.step()

        if self.rise * total == 1:  # torch would divide by zero
            raise OptionError(
                f"{self._owner}, option rise: {self.rise!r} of {total} steps is one step, in which nothing can "
                f"rise; choose a larger fraction"
            )
        groups = optimizer.param_groups
        return FollowingOneCycle(
            optimizer,
            [float(group["lr"]) if self.max_rate is None else self.max_rate for group in groups],
            total_steps=total,
            pct_start=self.rise,
            cycle_momentum=all(group.get("momentum") or group.get("betas") for group in groups),
        )


def _rise(step: int, warmup: int, start: float) -> float:
    """Return the factor of a step of a warm-up that begins at `start`; 1 for every later step."""
    return 1.0 if step >= warmup else start + (1 - start) * step / warmup


def _rise_and_fall(
    curve: Callable[[float], float], warmup: int, total_steps: int, floor: float, fall_start: int | None = None
) -> Callable[[int], float]:
    """Return a function that gives the factor of a step: a warm-up, 1 until `fall_start`, then `curve` from 1 to 0.

    The curve begins right after the warm-up if there is no `fall_start`.
    """
    start = warmup if fall_start is None else fall_start

    def factor(step: int) -> float:
        if step < warmup:
            return _rise(step, warmup, _START)
        if step < start:
            return 1.0
        done = 1.0 if step >= total_steps else (step - start) / (total_steps - start)
        return floor + (1 - floor) * curve(done)

    return factor


def _following(kind: type, factor: Callable[[int], float], **options: Any) -> Any:
    """Return a subclass of a torch scheduler that goes over to the present curve, should it have been saved on another.

    Args:
        kind: the class.
        factor: that of each step on the present curve.
        options: the attributes of the class that the curve depends on; they stay as they are now.
    """

    def state_dict(self: Any) -> dict[str, Any]:
        return {**kind.state_dict(self), "factor": factor(self.last_epoch)}  # type: ignore[attr-defined]

    def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
        state = {name: value for name, value in state_dict.items() if name != "factor"}
        kind.load_state_dict(self, {**state, **options})  # type: ignore[attr-defined]
        if state_dict["factor"] != factor(self.last_epoch):
            for group, base_rate in zip(self.optimizer.param_groups, self.base_lrs, strict=False):
                rate = base_rate * factor(self.last_epoch)
                group["lr"] = group["lr"].fill_(rate) if hasattr(rate, "fill_") else rate  # the same tensor

    return type(f"Following{kind.__name__}", (kind,), {"state_dict": state_dict, "load_state_dict": load_state_dict})


def _build_lambda(optimizer: "torch.optim.Optimizer", factor: Callable[[int], float]) -> Any:
    """Return a `LambdaLR` that goes over to the present curve, should it have been saved on another."""
    from torch.optim.lr_scheduler import LambdaLR

    return _following(LambdaLR, factor)(optimizer, factor)


def _check_known(owner: str, total_steps: int | None) -> int:
    """Return the number of steps, or raise an `OptionError` if the run has no known end."""
    if total_steps is None:
        raise OptionError(
            f"{owner} needs to know how many steps the run has: set max_steps, or max_epochs with a train loader that "
            f"has a length"
        )
    return total_steps


def _count_warmup(
    owner: str, warmup: Interval | None, total_steps: int | None, steps_per_epoch: int | None, least_after: int = 1
) -> int:
    """Return the length of a warm-up in optimizer steps, 0 for none; warn if it leaves fewer than `least_after`."""
    if warmup is None:
        return 0
    steps = count_steps(owner, "warmup", warmup, steps_per_epoch)
    if total_steps is not None and steps + least_after > total_steps:
        _warn(
            f"{owner}: a warm-up of {warmup} ({steps} steps) fills all of its {total_steps} steps, so the rate only "
            f"rises"
        )
    return steps


def _warn(text: str) -> None:
    warnings.warn(text, BlowtorchWarning, stacklevel=2)
