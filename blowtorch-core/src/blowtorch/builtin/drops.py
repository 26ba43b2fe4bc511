"""Schedulers whose rate drops now and then, and stays in between: those of torch, by name.

When a run is continued, the rate goes on from where it was, and the options are those of now.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blowtorch import OptionError, Schedule, hookimpl
from blowtorch.builtin.checks import check_between, check_fraction, check_positive, read_interval

if TYPE_CHECKING:
    import torch


class Exponential:
    """The rate is multiplied by `factor` again and again: `torch.optim.lr_scheduler.ExponentialLR`.

    Args:
        factor: what the rate is multiplied by.
        every: when: `"1 step"` is after each step, `"1 epoch"` after each epoch.

    Raises:
        OptionError: `factor` is not between 0 and 1, or `every` is no interval of steps or epochs.
    """

    def __init__(self, factor: float, every: str = "1 epoch") -> None:
        self.factor = check_between("scheduler 'exponential'", "factor", factor)
        self.every = read_interval("scheduler 'exponential'", "every", every)

    @hookimpl
    def scheduler_build(self, optimizer: "torch.optim.Optimizer") -> Schedule:
        """Build torch's scheduler; the length of the run does not matter."""
        from torch.optim.lr_scheduler import ExponentialLR

        return Schedule(_forgetting(ExponentialLR, "gamma")(optimizer, self.factor), every=str(self.every))


class Step:
    """The rate is multiplied by `factor` after each `every`: `torch.optim.lr_scheduler.StepLR`.

    Args:
        every: such as `"1k steps"`, which counts steps, or `"30 epochs"`, which counts epochs.
        factor: what the rate is multiplied by.

    Raises:
        OptionError: `every` is no interval of steps or epochs, or `factor` is not between 0 and 1.
    """

    def __init__(self, every: str, factor: float = 0.1) -> None:
        self.every = read_interval("scheduler 'step'", "every", every)
        self.factor = check_between("scheduler 'step'", "factor", factor)

    @hookimpl
    def scheduler_build(self, optimizer: "torch.optim.Optimizer") -> Schedule:
        """Build torch's scheduler; the length of the run does not matter."""
        from torch.optim.lr_scheduler import StepLR

        kind = _forgetting(StepLR, "step_size", "gamma")
        return Schedule(kind(optimizer, int(self.every.amount), self.factor), every=f"1 {self.every.unit}")


class Milestones:
    """The rate is multiplied by `factor` at certain moments: `torch.optim.lr_scheduler.MultiStepLR`.

    Args:
        at: moments counted from the beginning, all in steps or all in epochs, such as `["30 epochs", "60 epochs"]`.
        factor: what the rate is multiplied by.

    Raises:
        OptionError: `at` is no such list, or `factor` is not between 0 and 1.
    """

    def __init__(self, at: Sequence[str], factor: float = 0.1) -> None:
        if isinstance(at, str) or not isinstance(at, Sequence) or not at:
            raise OptionError(
                f"scheduler 'milestones', option at: expected a list such as ['30 epochs', '60 epochs'], got {at!r}"
            )
        self.at = [read_interval("scheduler 'milestones'", "at", moment) for moment in at]
        if len({moment.unit for moment in self.at}) > 1:
            raise OptionError(f"scheduler 'milestones', option at: expected all in steps or all in epochs, got {at!r}")
        self.factor = check_between("scheduler 'milestones'", "factor", factor)

    @hookimpl
    def scheduler_build(self, optimizer: "torch.optim.Optimizer") -> Schedule:
        """Build torch's scheduler; the length of the run does not matter."""
        from torch.optim.lr_scheduler import MultiStepLR

        kind = _forgetting(MultiStepLR, "milestones", "gamma")
        moments = [int(moment.amount) for moment in self.at]
        return Schedule(kind(optimizer, moments, self.factor), every=f"1 {self.at[0].unit}")


class Constant:
    """The optimizer's rate, kept: `torch.optim.lr_scheduler.ConstantLR(optimizer, factor)`.

    Args:
        factor: of the optimizer's rate.

    Raises:
        OptionError: `factor` is not a number above 0.
    """

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = check_positive("scheduler 'constant'", "factor", factor)

    @hookimpl
    def scheduler_build(self, optimizer: "torch.optim.Optimizer") -> Any:
        """Build torch's scheduler, which never comes to its end; the length of the run does not matter."""
        from torch.optim.lr_scheduler import ConstantLR

        return _forgetting(ConstantLR, "factor", "total_iters")(optimizer, self.factor, sys.maxsize)


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
        self.factor = check_between("scheduler 'plateau'", "factor", factor)
        self.patience = patience
        self.smaller_is_better = smaller_is_better
        self.floor = check_fraction("scheduler 'plateau'", "floor", floor)

    @hookimpl
    def scheduler_build(self, optimizer: "torch.optim.Optimizer") -> Schedule:
        """Build torch's scheduler; the length of the run does not matter."""
        from torch.optim.lr_scheduler import ReduceLROnPlateau

        kind = _forgetting(ReduceLROnPlateau, "mode", "factor", "patience", "min_lrs", "default_min_lr")
        scheduler = kind(
            optimizer,
            mode="min" if self.smaller_is_better else "max",
            factor=self.factor,
            patience=self.patience,
            min_lr=[self.floor * float(group["lr"]) for group in optimizer.param_groups],
        )
        return Schedule(scheduler, metric=self.metric)


def _forgetting(kind: type, *options: str) -> Any:
    """Return a subclass of a torch scheduler that saves what it has seen, and none of its options, which may change."""

    def state_dict(self: Any) -> dict[str, Any]:
        state = kind.state_dict(self)  # type: ignore[attr-defined]
        return {name: value for name, value in state.items() if name not in options}

    return type(f"Forgetting{kind.__name__}", (kind,), {"state_dict": state_dict})
