"""The learning rates at which a schedule stands: what it takes to go over to another base rate, amid a run."""

import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import lr_scheduler

from blowtorch.schedule.sequence import SequentialScheduler

_CURVES = (
    lr_scheduler.LambdaLR,
    lr_scheduler.OneCycleLR,
    lr_scheduler.CyclicLR,
    lr_scheduler.CosineAnnealingWarmRestarts,
)
_CHAINED_CURVES = (  # these step from rate to rate, and torch knows their curve too
    lr_scheduler.CosineAnnealingLR,
    lr_scheduler.LinearLR,
    lr_scheduler.ConstantLR,
    lr_scheduler.PolynomialLR,
)
_POSITIONS = ("last_epoch", "_step_count", "T_cur", "best", "num_bad_epochs", "cooldown_counter", "_last_lr")


def scheduler_under_way(scheduler: Any) -> Any:
    """Return the scheduler that a sequence follows now; one that is no sequence, itself."""
    if isinstance(scheduler, SequentialScheduler):
        return scheduler_under_way(scheduler.under_way)
    if isinstance(scheduler, lr_scheduler.SequentialLR):
        return scheduler_under_way(scheduler._schedulers[bisect_right(scheduler._milestones, scheduler.last_epoch)])
    return scheduler


def rates_on_curve(scheduler: Any) -> Sequence[Any] | None:
    """Return the rates of now of a scheduler that follows a curve; None for one that goes on from the rates before."""
    scheduler = scheduler_under_way(scheduler)
    if isinstance(scheduler, lr_scheduler.CosineAnnealingWarmRestarts):
        with _quiet():
            scheduler.step(scheduler.last_epoch)  # its lengths may have changed, of which it keeps the present one
    if isinstance(scheduler, _CURVES):
        with _quiet():
            rates: Sequence[Any] = scheduler.get_lr()  # which sets the momentum too, where that is cycled
            return rates
    if isinstance(scheduler, _CHAINED_CURVES):
        rates = scheduler._get_closed_form_lr()
        return rates
    return None


def merge_states(saved: Any, earlier: Any, now: Any) -> Any:
    """Return a saved state in which what the script sets otherwise than before is as it sets it now.

    Args:
        saved: in the checkpoint.
        earlier: as the script had made it before the first step of the process that saved it.
        now: as the script has made it this time.
    """
    if is_same(earlier, now):
        return saved
    states = (saved, earlier, now)
    if all(type(state) is dict for state in states):
        merged = {
            key: merge_states(value, earlier[key], now[key])
            if key in earlier and key in now and key not in _POSITIONS
            else value
            for key, value in saved.items()
        }
        return {**{key: value for key, value in now.items() if key not in saved and key not in earlier}, **merged}
    if all(isinstance(state, list | tuple) for state in states) and len(earlier) == len(now) <= len(saved):
        merged_items = [merge_states(*items) for items in zip(saved, earlier, now, strict=False)]
        return type(now)([*merged_items, *saved[len(now) :]])
    if isinstance(saved, list) and any(isinstance(item, Mapping) for item in saved):
        return saved  # the states of another number of schedulers, which will be refused
    return now


def find_set_otherwise(earlier: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """Return what the script sets otherwise than before in a scheduler, rates apart: (old, new) by name."""
    if not isinstance(earlier, Mapping) or not isinstance(now, Mapping):
        return {}
    left_out = (*_POSITIONS, "base_lrs", "base_values", "T_i")  # what follows from the rates, or from another setting
    names = [name for name in now if name in earlier and name not in left_out]
    changed = {name: (earlier[name], now[name]) for name in names if not is_same(earlier[name], now[name])}
    inner = changed.pop("_schedulers", ((), ()))
    for old, new in zip(*inner, strict=False):
        changed |= find_set_otherwise(old, new)
    return changed


def is_same(one: Any, other: Any) -> bool:
    """Return whether two plain values are equal; tensors by their numbers, and NaN to NaN."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return _are_numbers(one, other) and torch.equal(torch.as_tensor(one).cpu(), torch.as_tensor(other).cpu())
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(is_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return bool(one == other) or repr(one) == repr(other) == "nan"


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, torch.Tensor | int | float) for value in values)


def _quiet() -> Any:
    """Return a context without torch's warnings that a scheduler is asked for its rates, as nobody usually does."""
    return warnings.catch_warnings(action="ignore")
