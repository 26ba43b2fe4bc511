"""The user's functions: which arguments they are given, what they return, and the optimizer step.

A function is given what its parameters are called. That is worked out once, when it is registered and when a run
begins; on a step only the batch is put into place, and the function is called directly.
"""

import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import torch

from blowtorch.errors import ScriptError, nearest
from blowtorch.state import RunState

_ALWAYS = ("model", "device", "config", "state", "epoch", "step", "log", "is_validate")
_TRAINING = ("optimizers", "backward")

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "init": ("model", "device", "config", "state"),
    "configure_optimizers": ("model", "device", "config", "state"),
    "train_step": ("batch", *_ALWAYS, *_TRAINING),
    "validate_step": ("batch", *_ALWAYS, *_TRAINING),
    "train_epoch": ("data_loader", *_ALWAYS, *_TRAINING),
    "validate_epoch": ("data_loader", *_ALWAYS, *_TRAINING),
    "on": (*_ALWAYS, *_TRAINING),
}


class Function:
    """A function of the user's, and the arguments that its parameters ask for.

    Args:
        function: what was decorated.
        kind: the decorator, one of `ARGUMENTS`.
        at_hand: further names that can be given, besides those of `ARGUMENTS[kind]`.

    Raises:
        ScriptError: a parameter that cannot be filled, naming those that can.
    """

    def __init__(self, function: Callable[..., Any], kind: str, at_hand: tuple[str, ...] = ()) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        self.kind = kind
        self.asks_for = _asked_names(function, kind, (*ARGUMENTS[kind], *at_hand))
        self._arguments: dict[str, Any] = {}
        self._state: RunState | None = None
        self._counts = {"step", "epoch"} & set(self.asks_for)

    def bind(self, state: RunState, is_validate: bool = False) -> "Function":
        """Fill in everything that stays the same while a run lasts; returns a copy for that run."""
        bound = Function.__new__(Function)
        bound.__dict__.update(self.__dict__)
        bound._state = state
        available = {
            "model": state.model,
            "device": state.device,
            "config": state.config,
            "state": state,
            "log": state.log,
            "optimizers": state.optimizers,
            "backward": torch.Tensor.backward,
            "is_validate": is_validate,
        }
        bound._arguments = {name: available[name] for name in self.asks_for if name in available}
        return bound

    def given(self, **at_hand: Any) -> dict[str, Any]:
        """The keywords for a call now; `step` is the number of the step under way."""
        arguments = self._arguments
        for name, value in at_hand.items():
            if name in self.asks_for:
                arguments[name] = value
        if self._counts:
            assert self._state is not None
            if "step" in self._counts:
                arguments["step"] = self._state.step + (self.kind == "train_step")
            if "epoch" in self._counts:
                arguments["epoch"] = self._state.epoch
        return arguments

    def given_batch(self, batch: Any) -> dict[str, Any]:
        """Like `given(batch=batch)`, for the hot path."""
        if self._counts or "batch" not in self.asks_for:
            return self.given(batch=batch)
        self._arguments["batch"] = batch
        return self._arguments


def _asked_names(function: Callable[..., Any], kind: str, valid: tuple[str, ...]) -> tuple[str, ...]:
    if not callable(function):
        raise ScriptError(f"@run.{kind} expects a function, got {function!r}")
    name = getattr(function, "__name__", repr(function))
    asked = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        has_default = parameter.default is not parameter.empty
        if parameter.name in valid and parameter.kind is not parameter.POSITIONAL_ONLY:
            asked.append(parameter.name)
        elif not has_default:
            raise ScriptError(
                f"{name} asks for an argument {parameter.name!r}, which a {kind} function cannot be given."
                f"{nearest(parameter.name, valid)} It can be given {', '.join(valid)}"
            )
    return tuple(asked)


class Returns:
    """Reads what steps return: names, a scalar for each, and the size of the batch.

    One of these belongs to one function, whose first return is looked at closely.
    """

    def __init__(self, function: str, warn: Callable[[str], None]) -> None:
        self._function = function
        self._warn = warn
        self._is_first = True
        self._has_warned = False

    def read(self, returned: Any, logged: dict[str, Any]) -> dict[str, Any]:
        """Name → scalar tensor or number, of what a step returned and logged; a lone tensor is called `loss`.

        Raises:
            ScriptError: it is nothing of that kind.
        """
        is_plain = type(returned) is dict and not logged and "batch_size" not in returned
        metrics = returned if is_plain else self._merge(returned, logged)
        for name, value in metrics.items():
            if isinstance(value, torch.Tensor):
                if value.ndim:
                    metrics = self._average(metrics)
                    break
            elif type(value) is not float and type(value) is not int:
                self._check_number(name, value)
        if self._is_first:
            self._check_names(metrics)
        return metrics

    def _merge(self, returned: Any, logged: dict[str, Any]) -> dict[str, Any]:
        if isinstance(returned, torch.Tensor):
            returned = {"loss": returned}
        elif returned is None and logged:
            returned = {}
        elif not isinstance(returned, Mapping):
            raise ScriptError(
                f"{self._function} returned {_described(returned)}; expected a scalar tensor or a dict of name to "
                f"tensor or number, such as {{'loss': loss}}"
            )
        metrics = {**returned, **logged}
        logged.clear()
        return metrics

    def _average(self, metrics: dict[str, Any]) -> dict[str, Any]:
        averaged = dict(metrics)
        for name, value in metrics.items():
            if isinstance(value, torch.Tensor) and value.ndim:
                if not self._has_warned:
                    self._has_warned = True
                    self._warn(
                        f"{self._function} returned {name!r} with shape {tuple(value.shape)}; values that are no "
                        f"scalars are averaged"
                    )
                averaged[name] = value.mean() if value.is_floating_point() else value.float().mean()
        return averaged

    def _check_number(self, name: str, value: Any) -> None:
        if not isinstance(value, numbers.Real):
            raise ScriptError(
                f"{self._function} returned {name!r} as {_described(value)}; a metric is a tensor or a number"
            )

    def _check_names(self, metrics: Mapping[str, Any]) -> None:
        for name in metrics:
            if not isinstance(name, str):
                raise ScriptError(f"{self._function} returned a metric named {name!r}; names are strings")
        self._is_first = False


class Optimization:
    """Backward and optimizer step of a train step, by the metric that is optimised.

    A step that asks for `optimizers` drives itself; then nothing is done here.
    """

    def __init__(self, step: Function, optimizers: Mapping[str, torch.optim.Optimizer], metric: str | None) -> None:
        self._is_manual = "optimizers" in step.asks_for
        self._function = step.name
        self._optimizers = list(optimizers.values())
        self._metric = metric
        self._is_first = True

    def zero_grad(self) -> None:
        """Drop the gradients of the step before; done here, callbacks can still read them after a step."""
        if not self._is_manual:
            for optimizer in self._optimizers:
                optimizer.zero_grad()

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Backward from the optimised metric, and one step of every optimizer.

        Raises:
            ScriptError: there is no such metric, or it carries no gradient.
        """
        if self._is_manual:
            return
        if self._is_first:
            self._metric = self._choose(metrics)
            self._is_first = False
        metrics[self._metric].backward()  # type: ignore[index]
        for optimizer in self._optimizers:
            optimizer.step()

    def _choose(self, metrics: Mapping[str, Any]) -> str:
        wanted = self._metric or ("loss" if "loss" in metrics else None)
        with_gradient = [
            name for name, value in metrics.items() if isinstance(value, torch.Tensor) and value.requires_grad
        ]
        if wanted is None and len(with_gradient) == 1:
            return with_gradient[0]
        names = ", ".join(map(repr, metrics)) or "nothing"
        if wanted is None:
            carrying = ", ".join(map(repr, with_gradient)) or "none"
            raise ScriptError(
                f"{self._function} returned {names}, of which {carrying} carry a gradient; return one called 'loss' "
                f"or set the option optimize_metric"
            )
        if wanted not in metrics:
            raise ScriptError(f"optimize_metric is {wanted!r}, but {self._function} returned {names}."
                              f"{nearest(wanted, metrics)}")
        if wanted not in with_gradient:
            raise ScriptError(
                f"{self._function} returned {wanted!r} without a gradient; it must be a tensor computed from the "
                f"model's parameters, not detached and not a number"
            )
        return wanted


def _described(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__} ({value!r:.60})"
