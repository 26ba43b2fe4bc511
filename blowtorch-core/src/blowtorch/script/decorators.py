"""The decorators of a training script: each takes a function, remembers what it is for, and returns it unchanged."""

import dataclasses
import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar, overload

from blowtorch.errors import ScriptError
from blowtorch.hookspecs import MOMENTS, check_moment
from blowtorch.script.functions import Function
from blowtorch.script.script import Script, ValidationRequest
from blowtorch.streams import GENERATORS, KeptGenerator

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


class Decorators:
    """What a script says about itself, by decorators.

    Args:
        script: where it is collected.
    """

    def __init__(self, script: Script) -> None:
        self._script = script
        self._num_validations = 0

    def init(self, function: AnyFunction) -> AnyFunction:
        """Call the function once, when the model is on its device and the optimizers are not made yet."""
        _register(self._script.init, Function(function, "init"))
        return function

    def configure_optimizers(self, function: AnyFunction) -> AnyFunction:
        """Use the function to make the optimizers; it may return schedulers too."""
        self._script.configure_optimizers = Function(function, "configure_optimizers")
        return function

    @overload
    def train_step(self, argument: AnyFunction, /) -> AnyFunction: ...
    @overload
    def train_step(self, argument: Iterable[Any] | None = None, /) -> Callable[[AnyFunction], AnyFunction]: ...
    def train_step(self, argument: Any = None, /) -> Any:
        """Train with the function, one batch a call; `@run.train_step(loader)` gives the data with it."""
        return self._decorate("train_step", argument, self._set_train)

    @overload
    def predict_step(self, argument: AnyFunction, /) -> AnyFunction: ...
    @overload
    def predict_step(self, argument: Iterable[Any] | None = None, /) -> Callable[[AnyFunction], AnyFunction]: ...
    def predict_step(self, argument: Any = None, /) -> Any:
        """Predict with the function, one batch a call; `@run.predict_step(loader)` gives the data with it."""
        return self._decorate("predict_step", argument, self._set_predict)

    @overload
    def train_epoch(self, argument: AnyFunction, /) -> AnyFunction: ...
    @overload
    def train_epoch(self, argument: Iterable[Any] | None = None, /) -> Callable[[AnyFunction], AnyFunction]: ...
    def train_epoch(self, argument: Any = None, /) -> Any:
        """Train with the function, one epoch a call: it is given `data_loader` and drives everything itself."""
        return self._decorate("train_epoch", argument, self._set_train)

    @overload
    def validate_step(self, argument: AnyFunction, /) -> AnyFunction: ...
    @overload
    def validate_step(
        self,
        argument: Iterable[Any] | None = None,
        /,
        *,
        name: str = "val",
        every: str | None = None,
        at_start: bool | None = None,
    ) -> Callable[[AnyFunction], AnyFunction]: ...
    def validate_step(
        self, argument: Any = None, /, *, name: str = "val", every: str | None = None, at_start: bool | None = None
    ) -> Any:
        """Validate with the function, one batch a call.

        Args:
            argument: the data; without it, that of the call `run(model, train_loader, validate_loader)`. There,
                `validate_loader` may be a mapping of names to data.
            name: what the metrics are recorded under, such as `ood/loss`; there may be any number of names.
            every: when, such as `"2 epochs"`; the option `validate_every` unless given.
            at_start: also before the first step; the option `validate_at_start` unless given.
        """
        return self._ask_for_validation("validate_step", argument, name, every, at_start)

    @overload
    def validate_epoch(self, argument: AnyFunction, /) -> AnyFunction: ...
    @overload
    def validate_epoch(
        self,
        argument: Iterable[Any] | None = None,
        /,
        *,
        name: str = "val",
        every: str | None = None,
        at_start: bool | None = None,
    ) -> Callable[[AnyFunction], AnyFunction]: ...
    def validate_epoch(
        self, argument: Any = None, /, *, name: str = "val", every: str | None = None, at_start: bool | None = None
    ) -> Any:
        """Validate with the function, one validation a call; like `validate_step`.

        It is given `data_loader`. One that does not ask for it needs no data.
        """
        return self._ask_for_validation("validate_epoch", argument, name, every, at_start)

    def on(self, moment: str, ranks: Literal["all", "first"] = "all") -> Callable[[AnyFunction], AnyFunction]:
        """Call the function at a moment of the loop, such as `epoch_end`.

        Args:
            moment: when.
            ranks: in which of several processes that train together: in `all`, or in the `first` alone.

        Raises:
            ScriptError: there is no such moment, or `ranks` is something else.
        """
        check_moment(moment)
        if ranks not in ("all", "first"):
            raise ScriptError(f"@run.on({moment!r}, ranks=...) expects 'all' or 'first', got {ranks!r}")

        def register(function: AnyFunction) -> AnyFunction:
            registered = Function(function, "on", MOMENTS[moment], is_for_first=ranks == "first")
            _register(self._script.moments.setdefault(moment, []), registered)
            return function

        return register

    def keep_state(self, name: str, instance: Any) -> None:
        """Put an object with `state_dict` and `load_state_dict`, or a random generator, into the checkpoints.

        Raises:
            ScriptError: it is no generator of torch, NumPy or Python, and lacks one of these methods.
        """
        if isinstance(instance, GENERATORS):
            instance = KeptGenerator(instance)
        if not all(callable(getattr(instance, method, None)) for method in ("state_dict", "load_state_dict")):
            raise ScriptError(
                f"keep_state({name!r}) expects an object with state_dict and load_state_dict, or a random generator, "
                f"got {instance!r}"
            )
        self._script.kept[name] = instance

    def _decorate(self, kind: str, argument: Any, register: Callable[[Function, Any], None]) -> Any:
        """Register now where the decorator stands bare, else when it is given the function."""
        if is_function(argument):
            register(Function(argument, kind), None)
            return argument

        def decorator(function: AnyFunction) -> AnyFunction:
            register(Function(function, kind), argument)
            return function

        return decorator

    def _set_train(self, function: Function, loader: Any) -> None:
        self._script.train = function
        self._script.train_loader = loader

    def _set_predict(self, function: Function, loader: Any) -> None:
        self._script.predict = function
        self._script.predict_loader = loader

    def _add_validation(self, request: ValidationRequest) -> Callable[[Function, Any], None]:
        def register(function: Function, loader: Any) -> None:
            self._script.add_validation(dataclasses.replace(request, function=function, loader=loader))

        return register

    def _ask_for_validation(self, kind: str, argument: Any, name: str, every: str | None, at_start: bool | None) -> Any:
        """Register a validation in the place in which it is written: decorators are made from the top, and applied from
        the bottom; a bare one is only applied.
        """
        self._num_validations += 1
        place: float = self._num_validations
        if is_function(argument):
            below = [
                request.place
                for request in self._script.validations.values()
                if request.function is not None and request.function.function is argument
            ]
            place = min((other - 0.5 for other in below), default=place)
        return self._decorate(
            kind, argument, self._add_validation(ValidationRequest(name, every, at_start, place=place))
        )


def _register(functions: list[Function], function: Function) -> None:
    """Add a function; in a notebook, whose cells are run again, it replaces the one of its name."""
    names = [_name_in_notebook(registered) for registered in functions]
    name = _name_in_notebook(function)
    if name is not None and name in names:
        functions[names.index(name)] = function
    else:
        functions.append(function)


def _name_in_notebook(function: Function) -> str | None:
    """Return the name of a function that a cell has defined; None for lambdas and those of libraries and scripts."""
    name = getattr(function.function, "__qualname__", "<")
    is_script = hasattr(sys.modules["__main__"], "__file__")
    return None if "<" in name or is_script or function.function.__module__ != "__main__" else name


def is_function(argument: Any) -> bool:
    """Return whether a decorator's argument is the function itself and not a loader."""
    return callable(argument) and not hasattr(argument, "__iter__")
