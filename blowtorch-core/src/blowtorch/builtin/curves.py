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

if TYPE_CHECKING:
    import torch

_START = 0.01  # where a warm-up begins
_SHAPES: Mapping[str, Callable[[float], float]] = {  # from 1 to 0 as the argument goes from 0 to 1
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "square_root": lambda done: 1 - math.sqrt(done),
}


class Cosine:
    """Half a cosine from the optimizer's rate down to `floor`, after an optional warm-up.

    Without options this is `torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_steps)`, stepped every step.

    Args:
        warmup: how long the rate first rises, in a straight line, such as `"500 steps"` or `"1 epoch"`.
        floor: the rate at the end, as a fraction of the optimizer's.

    Raises:
        OptionError: `warmup` is no interval of steps or epochs, or `floor` is not from 0 to 1.
    """

    def __init__(self, warmup: str | None = None, floor: float = 0.0) -> None:
        self.warmup = None if warmup is None else _read_length("cosine", "warmup", warmup)
        self.floor = _check_fraction("cosine", "floor", floor)

    @hookimpl
    def scheduler_build(
        self, optimizer: "torch.optim.Optimizer", total_steps: int | None, steps_per_epoch: int | None
    ) -> Any:
        """Build it; the run must have a known number of steps."""
        from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

        total = _check_known("cosine", total_steps)
        warmup = _count_steps("cosine", self.warmup, total, steps_per_epoch)
        factor = _rise_and_fall(_SHAPES["cosine"], warmup, total, self.floor)

        if warmup or self.floor:
            return _following(LambdaLR, factor)(optimizer, factor)
        return _following(CosineAnnealingLR, factor, T_max=total)(optimizer, total)


class Linear:
    """A straight line from the optimizer's rate down to `floor`, after an optional warm-up.

    Without a warm-up this is `torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, floor, total_steps)`.

    Args:
        warmup: how long the rate first rises, in a straight line, such as `"500 steps"` or `"1 epoch"`.
        floor: the rate at the end, as a fraction of the optimizer's.

    Raises:
        OptionError: `warmup` is no interval of steps or epochs, or `floor` is not from 0 to 1.
    """

    def __init__(self, warmup: str | None = None, floor: float = 0.0) -> None:
        self.warmup = None if warmup is None else _read_length("linear", "warmup", warmup)
        self.floor = _check_fraction("linear", "floor", floor)

    @hookimpl
    def scheduler_build(
        self, optimizer: "torch.optim.Optimizer", total_steps: int | None, steps_per_epoch: int | None
    ) -> Any:
        """Build it; the run must have a known number of steps."""
        from torch.optim.lr_scheduler import LambdaLR, LinearLR

        total = _check_known("linear", total_steps)
        warmup = _count_steps("linear", self.warmup, total, steps_per_epoch)
        factor = _rise_and_fall(_SHAPES["linear"], warmup, total, self.floor)
        if warmup:
            return _following(LambdaLR, factor)(optimizer, factor)
        kind = _following(LinearLR, factor, end_factor=self.floor, total_iters=total)
        return kind(optimizer, 1.0, self.floor, total)


class Polynomial:
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
        self.power = _check_positive("polynomial", "power", power)
        self.warmup = None if warmup is None else _read_length("polynomial", "warmup", warmup)
        self.floor = _check_fraction("polynomial", "floor", floor)

    @hookimpl
    def scheduler_build(
        self, optimizer: "torch.optim.Optimizer", total_steps: int | None, steps_per_epoch: int | None
    ) -> Any:
        """Build it; the run must have a known number of steps."""
        from torch.optim.lr_scheduler import LambdaLR, PolynomialLR

        total = _check_known("polynomial", total_steps)
        warmup = _count_steps("polynomial", self.warmup, total, steps_per_epoch)
        factor = _rise_and_fall(lambda done: float((1 - done) ** self.power), warmup, total, self.floor)
        if warmup or self.floor:
            return _following(LambdaLR, factor)(optimizer, factor)
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
        name = "warmup_stable_decay"
        self.warmup = None if warmup is None else _read_length(name, "warmup", warmup)
        self.decay = _read_decay(name, decay)
        if shape not in tuple(_SHAPES):
            raise OptionError(
                f"scheduler {name!r}, option shape: expected {', '.join(map(repr, _SHAPES))}, got {shape!r}"
            )
        self.shape = shape
        self.floor = _check_fraction(name, "floor", floor)

    @hookimpl
    def scheduler_build(
        self, optimizer: "torch.optim.Optimizer", total_steps: int | None, steps_per_epoch: int | None
    ) -> Any:
        """Build it; the run must have a known number of steps."""
        from torch.optim.lr_scheduler import LambdaLR

        name = "warmup_stable_decay"
        total = _check_known(name, total_steps)
        warmup = _count_steps(name, self.warmup, total, steps_per_epoch)
        if isinstance(self.decay, Interval):
            decay = _in_steps(name, "decay", self.decay, steps_per_epoch)
        else:
            decay = round(self.decay * total)
        if warmup < total < warmup + decay:
            _warn(
                f"scheduler {name!r}: a warm-up of {warmup} steps and a decay of {decay} do not fit into its {total} "
                f"steps, so the decay is shortened"
            )
        begin = max(warmup, total - decay)
        factor = _rise_and_fall(_SHAPES[self.shape], warmup, total, self.floor, begin)
        return _following(LambdaLR, factor)(optimizer, factor)


class Warmup:
    """A straight line up to the optimizer's rate, which then stays.

    Args:
        warmup: how long the rate rises, such as `"500 steps"` or `"1 epoch"`.
        start_factor: the rate of the first step, as a fraction of the optimizer's.

    Raises:
        OptionError: `warmup` is no interval of steps or epochs, or `start_factor` is not from 0 to 1.
    """

    def __init__(self, warmup: str, start_factor: float = _START) -> None:
        self.warmup = _read_length("warmup", "warmup", warmup)
        self.start_factor = _check_fraction("warmup", "start_factor", start_factor)

    @hookimpl
    def scheduler_build(
        self, optimizer: "torch.optim.Optimizer", total_steps: int | None, steps_per_epoch: int | None
    ) -> Any:
        """Build it; the length of the run may be unknown."""
        from torch.optim.lr_scheduler import LambdaLR

        warmup = _count_steps("warmup", self.warmup, total_steps, steps_per_epoch, least_after=0)
        factor = functools.partial(_rise, warmup=warmup, start=self.start_factor)
        return _following(LambdaLR, factor)(optimizer, factor)


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
        self.max_rate = None if max_rate is None else _check_positive("one_cycle", "max_rate", max_rate)
        if not (_is_number(rise) and 0 < rise < 1):
            raise OptionError(f"scheduler 'one_cycle', option rise: expected more than 0 and less than 1, got {rise!r}")
        self.rise = rise

    @hookimpl
    def scheduler_build(self, optimizer: "torch.optim.Optimizer", total_steps: int | None) -> Any:
        """Build it; the run must have a known number of steps."""
        from torch.optim.lr_scheduler import OneCycleLR

        total = _check_known("one_cycle", total_steps)

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
                f"scheduler 'one_cycle', option rise: {self.rise!r} of {total} steps is one step, in which nothing can "
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
    """The factor of a step of a warm-up that begins at `start`; 1 for every later step."""
    return 1.0 if step >= warmup else start + (1 - start) * step / warmup


def _rise_and_fall(
    curve: Callable[[float], float], warmup: int, total_steps: int, floor: float, begin: int | None = None
) -> Callable[[int], float]:
    """The factor of a step: a warm-up, 1 until `begin`, and then `curve`, which leads from 1 to 0.

    The curve begins right after the warm-up unless told.
    """
    start = warmup if begin is None else begin

    def factor(step: int) -> float:
        if step < warmup:
            return _rise(step, warmup, _START)
        if step < start:
            return 1.0
        done = 1.0 if step >= total_steps else (step - start) / (total_steps - start)
        return floor + (1 - floor) * curve(done)

    return factor


def _following(kind: type, factor: Callable[[int], float], **options: Any) -> Any:
    """A subclass of a torch scheduler that goes over to the present curve, should it have been saved on another.

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
            for group, base_rate in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
                rate = base_rate * factor(self.last_epoch)
                group["lr"] = group["lr"].fill_(rate) if hasattr(rate, "fill_") else rate  # the same tensor

    return type(f"Following{kind.__name__}", (kind,), {"state_dict": state_dict, "load_state_dict": load_state_dict})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_positive(scheduler: str, option: str, value: float) -> float:
    """The value, or an `OptionError` if it is not a finite number above 0."""
    if not (_is_number(value) and 0 < value < math.inf):
        raise OptionError(f"scheduler {scheduler!r}, option {option}: expected a number above 0, got {value!r}")
    return value


def _check_fraction(scheduler: str, option: str, value: float) -> float:
    """The value, or an `OptionError` if it is not from 0 to 1."""
    if not (_is_number(value) and 0 <= value <= 1):
        raise OptionError(f"scheduler {scheduler!r}, option {option}: expected a fraction from 0 to 1, got {value!r}")
    return value


def _check_known(scheduler: str, total_steps: int | None) -> int:
    """The number of steps, or an `OptionError` if the run has no known end."""
    if total_steps is None:
        raise OptionError(
            f"scheduler {scheduler!r} needs to know how many steps the run has: set max_steps, or max_epochs with a "
            f"train loader that has a length"
        )
    return total_steps


def _read_length(scheduler: str, option: str, text: str) -> Interval:
    """The length of a warm-up or a decay, or an `OptionError`."""
    try:
        return Interval.parse(text, units=("steps", "epochs"))
    except OptionError as error:
        raise OptionError(f"scheduler {scheduler!r}, option {option}: {error}") from None


def _read_decay(scheduler: str, given: float | str) -> Interval | float:
    """The length of a decay: an interval, or a fraction of the run."""
    interval = _read_length(scheduler, "decay", given) if isinstance(given, str) else given
    if not isinstance(interval, Interval) and not (_is_number(interval) and 0 < interval <= 1):
        raise OptionError(
            f"scheduler {scheduler!r}, option decay: expected an interval such as '2k steps', or a fraction of the run "
            f"above 0 and up to 1, got {given!r}"
        )
    return interval


def _in_steps(scheduler: str, option: str, length: Interval, steps_per_epoch: int | None) -> int:
    """A length in optimizer steps, or an `OptionError` if it cannot be counted."""
    try:
        return length.in_steps(steps_per_epoch)
    except OptionError as error:
        raise OptionError(f"scheduler {scheduler!r}, option {option}: {error}") from None


def _count_steps(
    scheduler: str, warmup: Interval | None, total_steps: int | None, steps_per_epoch: int | None, least_after: int = 1
) -> int:
    """The length of a warm-up in optimizer steps, 0 for none; a warning if it leaves fewer than `least_after`."""
    if warmup is None:
        return 0
    steps = _in_steps(scheduler, "warmup", warmup, steps_per_epoch)
    if total_steps is not None and steps + least_after > total_steps:
        _warn(
            f"scheduler {scheduler!r}: a warm-up of {warmup} ({steps} steps) fills all of its {total_steps} steps, so "
            f"the rate only rises"
        )
    return steps


def _warn(text: str) -> None:
    warnings.warn(text, BlowtorchWarning, stacklevel=2)
