"""Learning-rate schedules by name, on top of those of torch.

Rates are fractions of those that the optimizer was made with, so parameter groups keep their ratios. When a run is
continued, the checkpoint says how far a schedule is, and the options and the length of the run are those of now.
"""

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blowtorch import BlowtorchWarning, Interval, OptionError, Schedule, hookimpl

if TYPE_CHECKING:
    import torch

_START = 0.01  # where a warm-up begins


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
        self.warmup = _read_warmup("cosine", warmup)
        self.floor = _check_fraction("cosine", "floor", floor)

    @hookimpl
    def scheduler_build(
        self, optimizer: "torch.optim.Optimizer", total_steps: int | None, steps_per_epoch: int | None
    ) -> Any:
        """Build it; the run must have a known number of steps."""
        from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

        total = _check_known("cosine", total_steps)
        warmup = _count_steps("cosine", self.warmup, total, steps_per_epoch)
        factor = _rise_and_fall(lambda done: (1 + math.cos(math.pi * done)) / 2, warmup, total, self.floor)

        class ResumableCosine(CosineAnnealingLR):
            """Goes over to the curve of the run's present length, should that have been another."""

            def load_state_dict(self, state_dict: dict[str, Any]) -> None:
                super().load_state_dict({**state_dict, "T_max": total})
                if state_dict["T_max"] != total:
                    for group, base_rate in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
                        group["lr"] = base_rate * factor(self.last_epoch)

        return LambdaLR(optimizer, factor) if warmup or self.floor else ResumableCosine(optimizer, total)


class Linear:
    """A straight line from the optimizer's rate down to `floor`, after an optional warm-up.

    Args:
        warmup: how long the rate first rises, in a straight line, such as `"500 steps"` or `"1 epoch"`.
        floor: the rate at the end, as a fraction of the optimizer's.

    Raises:
        OptionError: `warmup` is no interval of steps or epochs, or `floor` is not from 0 to 1.
    """

    def __init__(self, warmup: str | None = None, floor: float = 0.0) -> None:
        self.warmup = _read_warmup("linear", warmup)
        self.floor = _check_fraction("linear", "floor", floor)

    @hookimpl
    def scheduler_build(
        self, optimizer: "torch.optim.Optimizer", total_steps: int | None, steps_per_epoch: int | None
    ) -> Any:
        """Build it; the run must have a known number of steps."""
        from torch.optim.lr_scheduler import LambdaLR

        total = _check_known("linear", total_steps)
        warmup = _count_steps("linear", self.warmup, total, steps_per_epoch)
        return LambdaLR(optimizer, _rise_and_fall(lambda done: 1 - done, warmup, total, self.floor))


class Warmup:
    """A straight line up to the optimizer's rate, which then stays.

    Args:
        warmup: how long the rate rises, such as `"500 steps"` or `"1 epoch"`.
        start_factor: the rate of the first step, as a fraction of the optimizer's.

    Raises:
        OptionError: `warmup` is no interval of steps or epochs, or `start_factor` is not from 0 to 1.
    """

    def __init__(self, warmup: str, start_factor: float = _START) -> None:
        self.warmup = _read_warmup("warmup", warmup)
        self.start_factor = _check_fraction("warmup", "start_factor", start_factor)

    @hookimpl
    def scheduler_build(
        self, optimizer: "torch.optim.Optimizer", total_steps: int | None, steps_per_epoch: int | None
    ) -> Any:
        """Build it; the length of the run may be unknown."""
        from torch.optim.lr_scheduler import LambdaLR

        warmup = _count_steps("warmup", self.warmup, total_steps, steps_per_epoch)
        return LambdaLR(optimizer, lambda step: _rise(step, warmup, self.start_factor))


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
        if max_rate is not None and not (_is_number(max_rate) and max_rate > 0):
            raise OptionError(f"scheduler 'one_cycle', option max_rate: expected a rate above 0, got {max_rate!r}")
        self.max_rate = max_rate
        self.rise = _check_between("one_cycle", "rise", rise)

    @hookimpl
    def scheduler_build(self, optimizer: "torch.optim.Optimizer", total_steps: int | None) -> Any:
        """Build it; the run must have a known number of steps."""
        from torch.optim.lr_scheduler import OneCycleLR

        class ResumableOneCycle(OneCycleLR):
            """Saves how far it is, without the length of the run, which may be another when it is continued."""

            def state_dict(self) -> dict[str, Any]:
                return _without(super().state_dict(), "total_steps", "_schedule_phases")

        total = _check_known("one_cycle", total_steps)
        if self.rise * total == 1:  # torch would divide by zero
            raise OptionError(
                f"scheduler 'one_cycle', option rise: {self.rise!r} of {total} steps is one step, in which nothing can "
                f"rise; choose a larger fraction"
            )
        groups = optimizer.param_groups
        return ResumableOneCycle(
            optimizer,
            [float(group["lr"]) if self.max_rate is None else self.max_rate for group in groups],
            total_steps=total,
            pct_start=self.rise,
            cycle_momentum=all(group.get("momentum") or group.get("betas") for group in groups),
        )


class Plateau:
    """Lowers the rate when a metric no longer gets better: `torch.optim.lr_scheduler.ReduceLROnPlateau`.

    Args:
        metric: its recorded name; each validation that measures it counts.
        factor: what the rate is multiplied by.
        patience: how many validations in a row may bring nothing better; the next one lowers the rate.
        smaller_is_better: whether a smaller value of the metric is better.
        floor: the smallest rate, as a fraction of the optimizer's.

    Raises:
        OptionError: `factor` is not between 0 and 1, `patience` is negative, or `floor` is not from 0 to 1.
    """

    def __init__(
        self,
        metric: str = "val/loss",
        factor: float = 0.1,
        patience: int = 10,
        smaller_is_better: bool = True,
        floor: float = 0.0,
    ) -> None:
        if not isinstance(patience, int) or patience < 0:
            raise OptionError(f"scheduler 'plateau', option patience: expected a number from 0, got {patience!r}")
        self.metric = metric
        self.factor = _check_between("plateau", "factor", factor)
        self.patience = patience
        self.smaller_is_better = smaller_is_better
        self.floor = _check_fraction("plateau", "floor", floor)

    @hookimpl
    def scheduler_build(self, optimizer: "torch.optim.Optimizer") -> Any:
        """Build it; the length of the run does not matter."""
        from torch.optim.lr_scheduler import ReduceLROnPlateau

        class ResumablePlateau(ReduceLROnPlateau):
            """Saves what it has seen, without its options, which may be others when the run is continued."""

            def state_dict(self) -> dict[str, Any]:
                return _without(super().state_dict(), "mode", "factor", "patience", "min_lrs", "default_min_lr")

        scheduler = ResumablePlateau(
            optimizer,
            mode="min" if self.smaller_is_better else "max",
            factor=self.factor,
            patience=self.patience,
            min_lr=[self.floor * float(group["lr"]) for group in optimizer.param_groups],
        )
        return Schedule(scheduler, metric=self.metric)


def _rise(step: int, warmup: int, start: float) -> float:
    """The factor of a step of a warm-up that begins at `start`; 1 for every later step."""
    return 1.0 if step >= warmup else start + (1 - start) * step / warmup


def _rise_and_fall(
    curve: Callable[[float], float], warmup: int, total_steps: int, floor: float
) -> Callable[[int], float]:
    """The factor of a step: a warm-up, then `curve`, which leads from 1 to 0 as its argument goes from 0 to 1."""

    def factor(step: int) -> float:
        if step < warmup:
            return _rise(step, warmup, _START)
        done = 1.0 if step >= total_steps else (step - warmup) / (total_steps - warmup)
        return floor + (1 - floor) * curve(done)

    return factor


def _without(state: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name not in names}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_fraction(scheduler: str, option: str, value: float) -> float:
    """The value, or an `OptionError` if it is not from 0 to 1."""
    if not (_is_number(value) and 0 <= value <= 1):
        raise OptionError(f"scheduler {scheduler!r}, option {option}: expected a fraction from 0 to 1, got {value!r}")
    return value


def _check_between(scheduler: str, option: str, value: float) -> float:
    """The value, or an `OptionError` if it is not more than 0 and less than 1."""
    if not (_is_number(value) and 0 < value < 1):
        raise OptionError(
            f"scheduler {scheduler!r}, option {option}: expected more than 0 and less than 1, got {value!r}"
        )
    return value


def _check_known(scheduler: str, total_steps: int | None) -> int:
    """The number of steps, or an `OptionError` if the run has no known end."""
    if total_steps is None:
        raise OptionError(
            f"scheduler {scheduler!r} needs to know how many steps the run has: set max_steps, or max_epochs with a "
            f"train loader that has a length"
        )
    return total_steps


def _read_warmup(scheduler: str, text: str | None) -> Interval | None:
    """The length of a warm-up; None for none."""
    if text is None:
        return None
    try:
        interval = Interval.parse(text)
    except OptionError as error:
        raise OptionError(f"scheduler {scheduler!r}, option warmup: {error}") from None
    if interval.unit not in ("steps", "epochs"):
        raise OptionError(f"scheduler {scheduler!r}, option warmup: expected steps or epochs, got {text!r}")
    return interval


def _count_steps(scheduler: str, warmup: Interval | None, total_steps: int | None, steps_per_epoch: int | None) -> int:
    """The length of a warm-up in optimizer steps; 0 for none."""
    if warmup is None:
        return 0
    if warmup.unit == "epochs" and steps_per_epoch is None:
        raise OptionError(
            f"scheduler {scheduler!r}, option warmup: '{warmup}' cannot be counted in steps, since the train loader "
            f"has no length; write it in steps"
        )
    steps = int(warmup.amount) * (1 if warmup.unit == "steps" else steps_per_epoch or 0)
    if total_steps is not None and steps >= total_steps:
        warnings.warn(
            f"scheduler {scheduler!r}: a warm-up of {warmup} ({steps} steps) fills the whole run of {total_steps} "
            f"steps, so the rate only rises",
            BlowtorchWarning,
            stacklevel=2,
        )
    return steps
