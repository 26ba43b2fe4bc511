"""What `configure_optimizers` may return, sorted into optimizers and schedulers; and what else is meant by it."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from blowtorch.errors import ScriptError
from blowtorch.hookspecs import Schedule

_FORMS = (
    "expected an optimizer, a dict of named optimizers such as {'generator': optimizer, 'critic': other}, or a pair "
    "(optimizers, schedulers)"
)


def read_configured(returned: Any) -> tuple[dict[str, torch.optim.Optimizer], dict[str, Any]]:
    """Sort what `configure_optimizers` returned into optimizers and schedulers by name.

    Lists of one optimizer, and a mapping of `optimizer` and `lr_scheduler`, are understood too.

    Raises:
        ScriptError: it is neither an optimizer, nor a dict of them, nor a pair (optimizers, schedulers).
    """
    schedulers: Any = None
    optimizers = returned
    if isinstance(optimizers, list) and len(optimizers) == 1:
        optimizers = optimizers[0]
    if isinstance(optimizers, Mapping) and "lr_scheduler" in optimizers:
        optimizers, schedulers = _read_pair(optimizers)
    elif isinstance(optimizers, tuple) and len(optimizers) == 2 and not is_optimizer(optimizers[1]):
        optimizers, schedulers = optimizers
        if isinstance(optimizers, list) and len(optimizers) == 1:
            optimizers = optimizers[0]
    if is_optimizer(optimizers):
        optimizers = {"optimizer": optimizers}
    _check_optimizers(optimizers)
    if schedulers is None:
        schedulers = {}
    if isinstance(schedulers, list | tuple):
        schedulers = {str(index): scheduler for index, scheduler in enumerate(schedulers)}
        if len(schedulers) == 1:
            schedulers = {"scheduler": schedulers["0"]} if isinstance(schedulers["0"], Mapping) else schedulers
    elif not isinstance(schedulers, Mapping) or "scheduler" in schedulers:
        schedulers = {"scheduler": schedulers}
    read = {str(name): _read_settings(each) for name, each in schedulers.items()}
    for name, each in read.items():
        _check_owner(name, each, optimizers)
    return dict(optimizers), read


def is_optimizer(value: Any) -> bool:
    """Return whether a value is an optimizer, or does what one does: some wrap another one and are none of torch."""
    methods = ("step", "zero_grad", "state_dict", "load_state_dict")
    return isinstance(value, torch.optim.Optimizer) or (
        not isinstance(value, type)
        and hasattr(value, "param_groups")
        and all(callable(getattr(value, method, None)) for method in methods)
    )


def as_schedule(name: str, scheduler: Any, checkpoint_metric: str) -> Schedule:
    """Return the schedule of a scheduler that the script made.

    It is stepped after each epoch, as in torch's own examples; a `ReduceLROnPlateau` when the metric is measured.
    """
    if isinstance(scheduler, Schedule):
        if isinstance(scheduler.scheduler, ReduceLROnPlateau) and scheduler.metric is None:
            raise ScriptError(f"scheduler {name!r}: ReduceLROnPlateau needs Schedule(..., metric='val/loss')")
        return scheduler
    if isinstance(scheduler, ReduceLROnPlateau):
        return Schedule(scheduler, metric=checkpoint_metric)
    if isinstance(scheduler, type) or not callable(getattr(scheduler, "step", None)):
        raise ScriptError(f"configure_optimizers returned {scheduler!r} as scheduler {name!r}; it has no method step")
    return Schedule(scheduler, every="1 epoch")


def _read_pair(returned: Mapping[Any, Any]) -> tuple[Any, Any]:
    """Read the mapping of `optimizer` and `lr_scheduler` of which other frameworks know."""
    if set(returned) != {"optimizer", "lr_scheduler"}:
        raise ScriptError(
            f"configure_optimizers returned a mapping of {', '.join(map(repr, returned))}; beside 'lr_scheduler' there "
            f"is 'optimizer' alone. Or return a pair (optimizers, schedulers)"
        )
    return returned["optimizer"], returned["lr_scheduler"]


def _read_settings(scheduler: Any) -> Any:
    """Read a scheduler with its settings, as in `{"scheduler": s, "interval": "step"}`; return another one as it is."""
    if not isinstance(scheduler, Mapping):
        return scheduler
    settings = {"interval": "epoch", "frequency": 1, "monitor": None, **scheduler}
    known = ("scheduler", "interval", "frequency", "monitor")
    if set(settings) != set(known) or settings["interval"] not in ("step", "epoch"):
        raise ScriptError(
            f"configure_optimizers returned a scheduler as a mapping of {', '.join(map(repr, scheduler))}; return "
            f"Schedule(scheduler, every='1 step', metric=None), or a mapping of {', '.join(map(repr, known))} alone, "
            f"with the interval 'step' or 'epoch'"
        )
    every, metric = f"{settings['frequency']} {settings['interval']}s", settings["monitor"]
    if isinstance(settings["scheduler"], ReduceLROnPlateau):
        return settings["scheduler"] if metric is None else Schedule(settings["scheduler"], every=every, metric=metric)
    return Schedule(settings["scheduler"], every=every)  # which looks at no metric


def _check_optimizers(optimizers: Any) -> None:
    """Raise a `ScriptError` unless there are optimizers by name."""
    if isinstance(optimizers, Mapping) and optimizers and all(is_optimizer(each) for each in optimizers.values()):
        return
    advice = _FORMS
    values = optimizers.values() if isinstance(optimizers, Mapping) else (optimizers,)
    wrong = next((each for each in values if not is_optimizer(each)), None)
    if optimizers is None:
        advice += "; does it forget to return its optimizer?"
    elif isinstance(wrong, type | functools.partial) or callable(wrong):
        name = getattr(getattr(wrong, "func", wrong), "__name__", "Optimizer")
        advice += f"; {name} has to be made, {name}(model.parameters(), lr=...)"
    elif isinstance(wrong, list | tuple) and all(map(is_optimizer, wrong)):
        advice += "; give each of several optimizers a name in a dict"
    words = _shorten(optimizers)
    if isinstance(optimizers, Mapping) and optimizers:
        words = f"a dict with {_shorten(wrong)}"
    raise ScriptError(f"configure_optimizers returned {words}; {advice}")


def _shorten(value: Any) -> str:
    """Write a value on one line, optimizers by their classes."""
    if isinstance(value, list | tuple):
        inner = ", ".join(map(_shorten, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    return type(value).__name__ if is_optimizer(value) else " ".join(f"{value!r:.100}".split())


def _check_owner(name: str, scheduler: Any, optimizers: Mapping[str, Any]) -> None:
    """Raise a `ScriptError` for an optimizer in a scheduler's place, and for the scheduler of another optimizer."""
    if isinstance(scheduler, Schedule):
        scheduler = scheduler.scheduler
    if is_optimizer(scheduler):
        raise ScriptError(
            f"scheduler {name!r}: expected a scheduler, got the optimizer {type(scheduler).__name__}; {_FORMS}"
        )
    owner = getattr(scheduler, "optimizer", None)
    if owner is None or not is_optimizer(owner):
        return
    inner = [each for optimizer in optimizers.values() for each in vars(optimizer).values() if is_optimizer(each)]
    mine: Sequence[Any] = [*optimizers.values(), *inner]
    if all(each is not owner and each.param_groups is not owner.param_groups for each in mine):
        raise ScriptError(
            f"scheduler {name!r} changes the rates of a {type(owner).__name__} that configure_optimizers does not "
            f"return; make it with the optimizer that is returned"
        )
