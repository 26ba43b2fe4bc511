"""The user's functions, and the arguments that each is given.

A function is given what its parameters are called. That is worked out once, when it is registered and when a run
begins; on a step only the batch is put into place, and the function is called directly.
"""

import copy
import dis
import inspect
import itertools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from blowtorch.errors import ScriptError, nearest
from blowtorch.state import RunState

_ALWAYS = ("model", "device", "config", "state", "epoch", "step", "log", "is_validate")
_TRAINING = ("optimizers", "backward")
_PLAIN_MODEL = ("init", "configure_optimizers", "on")  # functions that look at the model rather than compute with it

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "init": ("model", "device", "config", "state"),
    "configure_optimizers": ("model", "device", "config", "state"),
    "train_step": ("batch", *_ALWAYS, *_TRAINING),
    "validate_step": ("batch", "batch_index", *_ALWAYS, *_TRAINING),
    "predict_step": (
        "batch",
        "batch_index",
        *(name for name in _ALWAYS if name != "log"),
    ),  # what is predicted is not recorded
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
        is_for_first: whether of several processes the first alone calls it.

    Raises:
        ScriptError: a parameter that cannot be filled, naming those that can.
    """

    def __init__(
        self, function: Callable[..., Any], kind: str, at_hand: tuple[str, ...] = (), is_for_first: bool = False
    ) -> None:
        self.function = function
        self.is_for_first = is_for_first
        self.name = getattr(function, "__name__", type(function).__name__)
        self.kind = kind
        self.asks_for = _asked_names(function, kind, (*ARGUMENTS[kind], *at_hand))
        self.arguments: dict[str, Any] = {}
        self.wants_counts = bool({"step", "epoch"} & set(self.asks_for))
        self._state: RunState | None = None

    @property
    def drives_itself(self) -> bool:
        """Whether it goes backward and steps the optimizers itself, so that the loop does not."""
        return self.kind == "train_epoch" or "optimizers" in self.asks_for

    @property
    def has_no_return(self) -> bool:
        """Whether it cannot return anything but None, as where its author forgot to."""
        return _has_no_return(self.function)

    def bind(
        self, state: RunState, is_validate: bool = False, backward: Callable[..., None] = Tensor.backward
    ) -> "Function":
        """Return a copy for one run, with the arguments that stay the same while it lasts."""
        bound = copy.copy(self)
        bound._state = state
        is_plain = self.kind in _PLAIN_MODEL or state.compiled_model is None
        available = {
            "model": state.model if is_plain else state.compiled_model,
            "device": state.device,
            "config": state.config,
            "state": state,
            "log": state.log,
            "optimizers": dict(state.optimizers),
            "backward": backward,
            "is_validate": is_validate,
        }
        if self.kind.endswith("_step") and "batch" not in self.asks_for:
            bound.function = _without_batch(self.function)
        bound.arguments = {name: available[name] for name in self.asks_for if name in available}
        return bound

    def call(self, **at_hand: Any) -> Any:
        """Call the function with what it asks for, and return what it returns."""
        return self.function(**self.fill(**at_hand))

    def fill(self, **at_hand: Any) -> dict[str, Any]:
        """Bring the arguments up to date for a call now, and return them.

        `step` is the number of the step under way.
        """
        arguments = self.arguments
        for name, value in at_hand.items():
            if name in self.asks_for or (name == "batch" and self.kind.endswith("_step")):
                arguments[name] = value
        if self.wants_counts:
            self.count()
        return arguments

    def count(self) -> None:
        """Bring `step` and `epoch` among the arguments up to date."""
        assert self._state is not None
        if "step" in self.asks_for:
            self.arguments["step"] = self._state.step + (self.kind == "train_step")
        if "epoch" in self.asks_for:
            self.arguments["epoch"] = self._state.epoch


def _has_no_return(function: Callable[..., Any]) -> bool:
    """Return whether all that a function of Python's can return is None; where it does so depends on the version."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE):
        return False
    instructions = [instruction for instruction in dis.get_instructions(code) if instruction.opname != "NOP"]
    for before, instruction in itertools.pairwise(instructions):
        is_none = before.opname == "LOAD_CONST" and before.argval is None and not instruction.is_jump_target
        if instruction.opname == "RETURN_VALUE" and not is_none:
            return False
        if instruction.opname == "RETURN_CONST" and instruction.argval is not None:
            return False
    return True


def _without_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    """Drop the batch, which the loop gives to every step, for a step that does not ask for it."""
    return lambda batch, **arguments: function(**arguments)


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
                f"{nearest(parameter.name, valid)} It can be given {', '.join(dict.fromkeys(valid))}"
            )
    return tuple(asked)
