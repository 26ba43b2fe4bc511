"""What a training script has said: its functions and loaders, and whether they make a run."""

import os
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from blowtorch.clock import Interval
from blowtorch.data.loaders import is_empty
from blowtorch.errors import ScriptError, warn
from blowtorch.script.command_line import find_script
from blowtorch.script.functions import Function
from blowtorch.state import RunState


@dataclass(frozen=True)
class ValidationRequest:
    """What a decorator asked for.

    Attributes:
        name: what the metrics are recorded under.
        every: when; the option `validate_every` where it is None.
        at_start: also before the first step; the option `validate_at_start` where it is None.
        function: the decorated function.
        loader: its data; that of the call where it is None.
    """

    name: str = "val"
    every: str | None = None
    at_start: bool | None = None
    function: Function | None = None
    loader: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name in ("", "train", "train_epoch", "lr"):
            raise ScriptError(f"a validation cannot be named {self.name!r}; choose a name that no other metrics have")
        if self.every is not None:
            Interval.parse(self.every)


@dataclass
class Script:
    """Everything that the decorators of a `Run` have collected.

    Attributes:
        command_line: with which the script was started.
        path: the absolute path of the script; empty where there is none, as in a notebook or for `python -c`.
        seed: from which every random stream is derived.
    """

    command_line: list[str]
    path: str = field(init=False)
    seed: int = 0
    train: Function | None = None
    train_loader: Any = None
    predict: Function | None = None
    predict_loader: Any = None
    configure_optimizers: Function | None = None
    init: list[Function] = field(default_factory=list)
    validations: dict[str, ValidationRequest] = field(default_factory=dict)
    moments: dict[str, list[Function]] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path = find_script(self.command_line)

    def check(self, model: Any, optimize_metric: str | None) -> None:
        """Raise a `ScriptError` if nothing can be trained: something is missing, or two things do not go together."""
        world_size = os.environ.get("WORLD_SIZE", "1")
        if world_size not in ("", "1"):
            raise ScriptError(f"WORLD_SIZE is {world_size!r}, and this version trains in one process only; unset it")
        if not isinstance(model, nn.Module):
            raise ScriptError(f"run(model, ...) expects a torch.nn.Module, got {model!r:.100}")
        if self.train is None:
            raise ScriptError("there is no train step; decorate a function with @run.train_step or @run.train_epoch")
        if optimize_metric is not None and self.train.kind != "train_step":
            raise ScriptError(
                f"the option optimize_metric is for a train step; {self.train.name} drives the whole epoch itself"
            )
        if self.configure_optimizers is None:
            raise ScriptError("there is no optimizer; decorate a function that makes it with @run.configure_optimizers")

    def prepare(self, state: RunState) -> None:
        """Call the functions that are decorated with `@run.init`."""
        for function in self.init:
            function.bind(state).call()

    def choose_train_loader(self, of_call: Any) -> Any:
        """Return the data to train on: that of the call, else that of the decorator."""
        loader = self.train_loader if of_call is None else of_call
        if loader is None:
            raise ScriptError(
                "there is nothing to train on; give a loader to the call, run(model, train_loader), or to the "
                "decorator, @run.train_step(train_loader)"
            )
        return check_not_empty(loader, "train loader")

    def choose_validations(self, of_call: Any) -> list[ValidationRequest]:
        """Return the validations that have data; those without a loader of their own take that of the call."""
        chosen, without = [], []
        for request in self.validations.values():
            loader = of_call if request.loader is None else request.loader
            if loader is None:
                without.append(request.name)
                continue
            check_not_empty(loader, f"loader of validation {request.name!r}")
            chosen.append(ValidationRequest(request.name, request.every, request.at_start, request.function, loader))
        if of_call is not None and all(request.loader is not None for request in self.validations.values()):
            raise ScriptError(
                "a validation loader was given, but no validation step uses it; decorate a function with "
                "@run.validate_step, or leave the loader out"
            )
        if without:
            warn(f"validation {', '.join(map(repr, without))} has no loader, so it is left out")
        return chosen


def check_not_empty(loader: Any, name: str) -> Any:
    """Return the loader, or raise a `ScriptError` if it says that it is empty."""
    if is_empty(loader):
        raise ScriptError(f"the {name} is empty; is drop_last set and the dataset smaller than a batch?")
    return loader
