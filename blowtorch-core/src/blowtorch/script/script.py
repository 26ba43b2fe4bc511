"""What a training script has said: its functions and loaders, and whether they make a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from blowtorch.clock import Interval
from blowtorch.data.loaders import is_empty
from blowtorch.errors import ScriptError, nearest, warn
from blowtorch.script.command_line import find_script
from blowtorch.script.functions import Function
from blowtorch.state import RunState

_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")  # of torch, which would exchange gradients too
_NO_DATA = [None]  # for a function that takes no batches


@dataclass(frozen=True)
class ValidationRequest:
    """What a decorator asked for.

    Attributes:
        name: what the metrics are recorded under.
        every: when; the option `validate_every` where it is None.
        at_start: also before the first step; the option `validate_at_start` where it is None.
        function: the decorated function.
        loader: its data; that of the call where it is None.
        place: in the order of validations.
    """

    name: str = "val"
    every: str | None = None
    at_start: bool | None = None
    function: Function | None = None
    loader: Any = None
    place: float = 0

    @property
    def needs_data(self) -> bool:
        """Whether the function is given batches; one that drives a validation and does not ask for them is not."""
        function = self.function
        return function is None or function.kind != "validate_epoch" or "data_loader" in function.asks_for

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

    def functions(self) -> list[Function]:
        """Return every function that was decorated."""
        single = [self.train, self.predict, self.configure_optimizers]
        validations = [request.function for request in self.validations.values()]
        moments = [function for functions in self.moments.values() for function in functions]
        return [function for function in (*single, *validations, *self.init, *moments) if function is not None]

    def loaders(self) -> list[Any]:
        """Return every loader that was given to a decorator."""
        validations = [request.loader for request in self.validations.values()]
        return [loader for loader in (self.train_loader, self.predict_loader, *validations) if loader is not None]

    def check(self, model: Any, optimize_metric: str | None) -> None:
        """Raise a `ScriptError` if nothing can be trained: something is missing, or two things do not go together."""
        if not isinstance(model, nn.Module):
            raise ScriptError(f"run(model, ...) expects a torch.nn.Module, got {model!r:.100}")
        if type(model).__name__ in _WRAPPERS:
            raise ScriptError(
                f"run(model, ...) was given a {type(model).__name__}; give it the module that this wraps, since "
                f"several processes are taken care of here"
            )
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

    def make_optimizers(self, state: RunState) -> Any:
        """Call the function that is decorated with `@run.configure_optimizers`, and return what it does."""
        assert self.configure_optimizers is not None
        try:
            return self.configure_optimizers.bind(state).call()
        except ValueError as error:
            if next(state.model.parameters(), None) is not None:
                if "empty parameter list" not in str(error):
                    raise
                is_frozen = not any(each.requires_grad for each in state.model.parameters())
                reason = "none of the model asks for a gradient" if is_frozen else "was a generator of them used twice?"
                raise ScriptError(f"an optimizer was given no parameters: {reason}") from error
            raise ScriptError(
                f"{self.configure_optimizers.name} raised {error!r}, and the model, a {type(state.model).__name__}, "
                f"has no parameters to train; modules that it keeps in a plain list or dict belong into an "
                f"nn.ModuleList or nn.ModuleDict"
            ) from error

    def choose_train_loader(self, of_call: Any) -> Any:
        """Return the data to train on: that of the call, else that of the decorator."""
        loader = self.train_loader if of_call is None else of_call
        if loader is None:
            raise ScriptError(
                "there is nothing to train on; give a loader to the call, run(model, train_loader), or to the "
                "decorator, @run.train_step(train_loader)"
            )
        return check_not_empty(loader, "train loader")

    def choose_validations(
        self, of_call: Any, name: str | None = None, call_comes_first: bool = False
    ) -> list[ValidationRequest]:
        """Return the validations that can be done, each with its data.

        Args:
            of_call: the data of the call; or a mapping of names to data, which come before those of the decorators.
            name: of the only one that is wanted.
            call_comes_first: whether the data of the call come before those of the decorators too.

        Raises:
            ScriptError: there is no validation of a name, or one that is named has no data, or data are not used.
        """
        requests = self._find_validations(name)
        by_name = of_call if isinstance(of_call, Mapping) else {}
        self._check_names(by_name, requests)
        shared, chosen, without = None if of_call is by_name else of_call, [], []
        for request in requests:
            candidates = (shared, request.loader) if call_comes_first else (request.loader, shared)
            candidates = (by_name.get(request.name), *candidates) if request.needs_data else (_NO_DATA,)
            loader = next((candidate for candidate in candidates if candidate is not None), None)
            if loader is None:
                without.append(request.name)
                continue
            check_not_empty(loader, f"loader of validation {request.name!r}")
            chosen.append(replace(request, loader=loader))
        if shared is not None and not any(request.loader is shared for request in chosen):
            raise ScriptError(
                "a validation loader was given, but no validation step uses it; decorate a function with "
                "@run.validate_step, name the validation that is meant, or leave the loader out"
            )
        if without and name is not None:
            raise ScriptError(f"validation {name!r} has no data; give it a loader")
        if without:
            warn(f"validation {', '.join(map(repr, without))} has no loader, so it is left out")
        return chosen

    def add_validation(self, request: ValidationRequest) -> None:
        """Add a validation, or replace the one of its name; they are done in the order of their places."""
        earlier = self.validations.get(request.name)
        added = self.validations | {request.name: replace(request, place=(earlier or request).place)}
        self.validations = dict(sorted(added.items(), key=lambda item: item[1].place))

    def _find_validations(self, name: str | None) -> list[ValidationRequest]:
        if name is not None and name not in self.validations:
            raise ScriptError(
                f"there is no validation {name!r}.{nearest(str(name), self.validations)} There are "
                f"{', '.join(self.validations) or 'none'}"
            )
        return [request for request in self.validations.values() if name in (None, request.name)]

    def _check_names(self, by_name: Mapping[Any, Any], requests: Sequence[ValidationRequest]) -> None:
        """Raise a `ScriptError` if a mapping of validation loaders names something else than validations with data."""
        names = [request.name for request in requests if request.needs_data]
        for key in by_name:
            if key not in names:
                raise ScriptError(
                    f"validation loaders are given by name, and {key!r} is no validation that takes data."
                    f"{nearest(str(key), names)} There are {', '.join(names) or 'none'}"
                )


def check_not_empty(loader: Any, name: str) -> Any:
    """Return the loader, or raise a `ScriptError` if it says that it is empty."""
    if is_empty(loader):
        raise ScriptError(f"the {name} is empty; is drop_last set and the dataset smaller than a batch?")
    return loader
