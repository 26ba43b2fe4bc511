"""Learning-rate schedules by name, on top of those of torch; the rates of all parameter groups keep their ratios."""

import math
from typing import TYPE_CHECKING, Any

from blowtorch import Interval, OptionError, Schedule, hookimpl

if TYPE_CHECKING:
    import torch


class Cosine:
    """Half a cosine from the optimizer's rate down to a floor, after a linear warm-up.

    Without options this is `torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_steps)`, stepped per step.

    Args:
        warmup: how long the rate rises from nearly nothing, such as `"500 steps"` or `"1 epoch"`.
        floor: the rate at the end, as a fraction of the optimizer's.
    """

    def __init__(self, warmup: str | None = None, floor: float = 0.0) -> None:
        self.warmup = warmup
        self.floor = check_fraction("floor", floor)

    @hookimpl
    def scheduler_build(
        self, optimizer: "torch.optim.Optimizer", total_steps: int | None, steps_per_epoch: int | None
    ) -> Any:
        """Build it for one optimizer."""
        from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

        total = check_known("cosine", total_steps)
        warmup = count_steps("cosine", self.warmup, steps_per_epoch, total)
        if not warmup and not self.floor:
            return CosineAnnealingLR(optimizer, total)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            progress = min(1.0, (step - warmup) / (total - warmup))
            return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))

        return LambdaLR(optimizer, factor)


class Linear:
    """A straight line from the optimizer's rate down to a floor, after a linear warm-up.

    Args:
        warmup: how long the rate rises from nearly nothing, such as `"500 steps"` or `"1 epoch"`.
        floor: the rate at the end, as a fraction of the optimizer's.
    """

    def __init__(self, warmup: str | None = None, floor: float = 0.0) -> None:
        self.warmup = warmup
        self.floor = check_fraction("floor", floor)

    @hookimpl
    def scheduler_build(
        self, optimizer: "torch.optim.Optimizer", total_steps: int | None, steps_per_epoch: int | None
    ) -> Any:
        """Build it for one optimizer."""
        from torch.optim.lr_scheduler import LambdaLR

        total = check_known("linear", total_steps)
        warmup = count_steps("linear", self.warmup, steps_per_epoch, total)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return 1 - (1 - self.floor) * min(1.0, (step - warmup) / (total - warmup))

        return LambdaLR(optimizer, factor)


class OneCycle:
    """One cycle up to a highest rate and down to nearly nothing: `torch.optim.lr_scheduler.OneCycleLR`.

    Args:
        max_rate: the highest rate; that of the optimizer, group by group, unless given.
        rise: the fraction of the run in which the rate rises.
    """

    def __init__(self, max_rate: float | None = None, rise: float = 0.3) -> None:
        self.max_rate = max_rate
        self.rise = check_fraction("rise", rise)

    @hookimpl
    def scheduler_build(self, optimizer: "torch.optim.Optimizer", total_steps: int | None) -> Any:
        """Build it for one optimizer."""
        from torch.optim.lr_scheduler import OneCycleLR

        rates = [group["lr"] if self.max_rate is None else self.max_rate for group in optimizer.param_groups]
        # One more, since it is stepped after the last step as well.
        return OneCycleLR(optimizer, rates, total_steps=check_known("one_cycle", total_steps) + 1, pct_start=self.rise)


class Plateau:
    """Lowers the rate when a metric no longer gets better: `torch.optim.lr_scheduler.ReduceLROnPlateau`.

    Args:
        metric: its recorded name.
        factor: by which the rate is multiplied.
        patience: how many validations in a row may bring nothing better.
        smaller_is_better: whether a smaller value of the metric is better.
        floor: the smallest rate.
    """

    def __init__(
        self,
        metric: str = "val/loss",
        factor: float = 0.1,
        patience: int = 10,
        smaller_is_better: bool = True,
        floor: float = 0.0,
    ) -> None:
        self.metric = metric
        self.options = {
            "mode": "min" if smaller_is_better else "max",
            "factor": factor,
            "patience": patience,
            "min_lr": floor,
        }

    @hookimpl
    def scheduler_build(self, optimizer: "torch.optim.Optimizer") -> Any:
        """Build it for one optimizer."""
        from torch.optim.lr_scheduler import ReduceLROnPlateau

        options: dict[str, Any] = self.options
        return Schedule(ReduceLROnPlateau(optimizer, **options), metric=self.metric)


class Warmup:
    """A straight line up to the optimizer's rate, which then stays.

    Args:
        duration: how long the rate rises, such as `"500 steps"` or `"1 epoch"`.
        start: the rate at the beginning, as a fraction of the optimizer's; above 0.
    """

    def __init__(self, duration: str, start: float = 0.01) -> None:
        self.duration = duration
        self.start = check_fraction("start", start)

    @hookimpl
    def scheduler_build(self, optimizer: "torch.optim.Optimizer", steps_per_epoch: int | None) -> Any:
        """Build it for one optimizer."""
        from torch.optim.lr_scheduler import LinearLR

        steps = count_steps("warmup", self.duration, steps_per_epoch, None)
        return LinearLR(optimizer, start_factor=self.start or 1e-9, total_iters=steps)


def check_fraction(name: str, value: float) -> float:
    """The value, or an `OptionError` if it is not from 0 to 1."""
    if not 0 <= value <= 1:
        raise OptionError(f"option {name}: expected a fraction from 0 to 1, got {value!r}")
    return value


def check_known(scheduler: str, total_steps: int | None) -> int:
    """The number of steps, or an `OptionError` if the run has no known end."""
    if total_steps is None:
        raise OptionError(
            f"scheduler {scheduler!r} needs to know how many steps the run has; set max_steps, or max_epochs and give "
            f"a loader with a length"
        )
    return total_steps


def count_steps(scheduler: str, duration: str | None, steps_per_epoch: int | None, total_steps: int | None) -> int:
    """A duration in optimizer steps; 0 for none."""
    if duration is None:
        return 0
    interval = Interval.parse(duration)
    if interval.unit == "steps":
        steps = int(interval.amount)
    elif interval.unit == "epochs" and steps_per_epoch is not None:
        steps = int(interval.amount * steps_per_epoch)
    else:
        raise OptionError(
            f"scheduler {scheduler!r}: expected a duration in steps, or in epochs of a known length, got {duration!r}"
        )
    if total_steps is not None and steps >= total_steps:
        raise OptionError(
            f"scheduler {scheduler!r}: a warm-up of {duration} ({steps} steps) does not fit into {total_steps} steps"
        )
    return steps
