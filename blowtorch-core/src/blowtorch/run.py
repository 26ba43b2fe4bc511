"""`Run`: what a training script touches. It reads configuration, collects the script's functions, and runs them."""

import contextlib
import dataclasses
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from torch import nn
from torch.utils.data import get_worker_info

from blowtorch.callbacks import MOMENTS, check_moment
from blowtorch.config import Config, load_config, split_source
from blowtorch.data import Batches
from blowtorch.errors import BlowtorchWarning, ConfigError, OptionError, ScriptError
from blowtorch.hookspecs import Checkpoint, ConfigSourceSpec
from blowtorch.interruption import interruptible
from blowtorch.loop import train
from blowtorch.media import log_file, log_histogram, log_image, log_text
from blowtorch.options import resolve_options
from blowtorch.plugins import Plugins
from blowtorch.reproducibility import draw_seed, make_deterministic, seed_everything
from blowtorch.script import Script, ValidationRequest
from blowtorch.session import Session
from blowtorch.start import choose_device, detached_state, recorded_seed
from blowtorch.state import RunState
from blowtorch.steps import Function, Returns
from blowtorch.validation import Validation, validate

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        status: `finished`, or `stopped`: there is more to do, and `resume="auto"` goes on with it.
        folder: the run folder.
        epoch: the epoch that was reached; the first is 1.
        step: optimizer steps done.
        metrics: the last value of every metric, by its recorded name.
        best: the best checkpoint, or None.
    """

    status: str
    folder: Path
    epoch: int
    step: int
    metrics: dict[str, float]
    best: Checkpoint | None

    def raise_if_stopped(self) -> None:
        """Exit with code 75, for queue systems that then start the script again, if the run was stopped."""
        if self.status == "stopped":
            raise SystemExit(75)


class Run:
    """A training script's run: its configuration, its functions, and, when called, the training itself.

    Args:
        config_files: configuration sources in order; later ones win.
        random_seed: seeds Python, NumPy and torch now; drawn and recorded when not given.
        config: the lowest layer of the configuration.
        deterministic: use deterministic kernels only; torch warns of operations that have none.
        command_line: `sys.argv` unless given; what follows the word `with` is configuration.

    Raises:
        ConfigError: a source or override that cannot be read.
    """

    def __init__(
        self,
        config_files: str | Path | Sequence[str | Path] = (),
        random_seed: int | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        deterministic: bool = False,
        command_line: Sequence[str] | None = None,
    ) -> None:
        if isinstance(command_line, str):
            raise ConfigError(f"command_line is a list of words like sys.argv, got the string {command_line!r}")
        files = [config_files] if isinstance(config_files, str | Path) else config_files
        if not isinstance(files, Sequence) or not all(isinstance(file, str | Path) for file in files):
            raise ConfigError(f"config_files is the path of a file, or a list of paths, got {config_files!r}")
        self._is_in_worker = is_loader_worker()
        self._plugins = Plugins()
        self._script = Script(command_line=list(sys.argv if command_line is None else command_line))
        self._state: RunState | None = None
        with warnings.catch_warnings():
            if self._is_in_worker:
                warnings.simplefilter("ignore", BlowtorchWarning)
            self.config: Config = load_config(config, files, self._script.command_line, self._read_source)
        if self._is_in_worker:
            return
        configured = self._configured_options()
        seed = recorded_seed(resolve_options({}, configured), self._script) if "resume" in configured else None
        if seed is None:
            seed = draw_seed() if random_seed is None else random_seed
        self._script.seed = seed
        if deterministic:
            make_deterministic()
        seed_everything(seed)

    @property
    def seed(self) -> int:
        """The seed from which every random stream of the run is derived."""
        return self._script.seed

    def __getitem__(self, key: str) -> Any:
        """A value of the configuration, by its dotted key; a missing key names the nearest one."""
        return self.config[key]

    def __contains__(self, key: object) -> bool:
        return key in self.config

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the configuration, or `default`."""
        return self.config.get(key, default)

    def init(self, function: AnyFunction) -> AnyFunction:
        """Call the function once, when the model is on its device and the optimizers are not made yet."""
        self._script.init.append(Function(function, "init"))
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
            argument: the data; without it, that of the call `run(model, train_loader, validate_loader)`.
            name: what the metrics are recorded under, such as `ood/loss`; there may be any number of names.
            every: when, such as `"2 epochs"`; the option `validate_every` unless given.
            at_start: also before the first step; the option `validate_at_start` unless given.
        """
        return self._decorate("validate_step", argument, self._add_validation(ValidationRequest(name, every, at_start)))

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
        """Validate with the function, one validation a call: it is given `data_loader`. Else like `validate_step`."""
        return self._decorate(
            "validate_epoch", argument, self._add_validation(ValidationRequest(name, every, at_start))
        )

    def on(self, moment: str) -> Callable[[AnyFunction], AnyFunction]:
        """Call the function at a moment of the loop, such as `epoch_end`."""
        check_moment(moment)

        def register(function: AnyFunction) -> AnyFunction:
            self._script.moments.setdefault(moment, []).append(Function(function, "on", MOMENTS[moment]))
            return function

        return register

    def keep_state(self, name: str, instance: Any) -> None:
        """Put an object with `state_dict` and `load_state_dict` into the checkpoints.

        Raises:
            ScriptError: it lacks one of these methods.
        """
        if not all(callable(getattr(instance, method, None)) for method in ("state_dict", "load_state_dict")):
            raise ScriptError(
                f"keep_state({name!r}) expects an object with state_dict and load_state_dict, got {instance!r}"
            )
        self._script.kept[name] = instance

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Record more from within a step, averaged and named like what the step returns.

        Raises:
            ScriptError: no run is under way.
        """
        if self._state is None:
            raise ScriptError("run.log was called while nothing is being trained, validated or evaluated")
        self._state.log(metrics)

    def log_image(self, name: str, image: Any) -> None:
        """Record an image as of now; it is kept as PNG in the folder `media` of the run, and loggers are given it.

        Like the other three of its kind, it may be called from anywhere while a run is under way; outside of one, in
        `evaluate`, there is no folder to keep it in and nothing is done.

        Args:
            name: what it is called; logged again at the same step, it is another one.
            image: a tensor of shape (height, width) or (channels, height, width), an array or a picture of shape
                (height, width) or (height, width, channels), or a figure of matplotlib. Integers are 0 to 255,
                floats 0 to 1.

        Raises:
            ScriptError: it is no image, or no run is under way.
        """
        self._log_media(log_image, "log_image", name, image)

    def log_histogram(self, name: str, values: Any, bins: int = 64) -> None:
        """Record how numbers are distributed as of now; those that are not finite are left out.

        Args:
            name: what it is called.
            values: a tensor, an array or numbers, of any shape.
            bins: so many of equal width, from the smallest number to the largest.
        """
        self._log_media(log_histogram, "log_histogram", name, values, bins)

    def log_text(self, name: str, text: str) -> None:
        """Record a text as of now."""
        self._log_media(log_text, "log_text", name, text)

    def log_file(self, name: str, path: str | Path) -> None:
        """Record a copy of a file as of now; it is kept in the folder `media` of the run.

        Raises:
            ScriptError: there is no such file, or no run is under way.
        """
        self._log_media(log_file, "log_file", name, path)

    def __call__(
        self, model: nn.Module, train_loader: Any = None, validate_loader: Any = None, **options: Any
    ) -> RunResult:
        """Train; see `RunOptions` for the options.

        Raises:
            BlowtorchError: something cannot work; nothing has been trained then.
        """
        self._refuse_in_worker()
        resolved = resolve_options(options, self._configured_options())
        data = (model, train_loader, validate_loader)
        with (
            Session(self._script, self.config, resolved, self._plugins, data) as session,
            interruptible(session.state),
            self._in_progress(session.state) as state,
        ):
            session.prepare()
            train(session.training, state)
        return RunResult(session.status, state.folder, state.epoch, state.step, session.metrics(), state.best)

    def evaluate(self, model: nn.Module, loader: Iterable[Any], **options: Any) -> dict[str, float]:
        """Validate a model without training, with the validation step.

        Returns:
            The means by the names under which a run records them, such as `val/loss`.

        Raises:
            ScriptError: no validation step is registered.
        """
        self._refuse_in_worker()
        resolved = resolve_options(options, self._configured_options())
        if not self._script.validations:
            raise ScriptError("run.evaluate needs a function decorated with @run.validate_step or @run.validate_epoch")
        request = self._script.validations.get("val") or next(iter(self._script.validations.values()))
        assert request.function is not None
        device = choose_device(resolved.device)
        detached = detached_state(model.to(device), resolved, self.config, self.seed, device)
        batches = Batches(loader, self.seed, device, resolved.limit_validate_batches, request.name)
        with self._in_progress(detached) as state, contextlib.closing(batches):
            returns = Returns(request.function.name, state.warn)
            function = request.function.bind(state, is_validate=True)
            return validate(Validation(request.name, function, batches, returns, None, False), state)

    def _log_media(self, log: Callable[..., None], method: str, *arguments: Any) -> None:
        if self._state is None:
            raise ScriptError(f"run.{method} was called while nothing is being trained, validated or evaluated")
        if self._state.info.id:  # an evaluation belongs to no run
            log(self._state, *arguments)

    @contextlib.contextmanager
    def _in_progress(self, state: RunState) -> Iterator[RunState]:
        """Let `log` reach a state inside; an evaluation may take place inside of a training."""
        outer, self._state = self._state, state
        try:
            yield state
        finally:
            self._state = outer

    def _configured_options(self) -> dict[str, Any]:
        section = self.config.get("run") or {}  # an empty section of a file is null
        if not isinstance(section, Mapping):
            raise OptionError(f"the configuration section 'run' holds options, got {section!r}")
        return section.to_dict() if isinstance(section, Config) else dict(section)

    def _read_source(self, source: str) -> Mapping[str, Any]:
        name, argument = split_source(source)
        mapping: Mapping[str, Any] = self._plugins.create("config-source", name).call(
            ConfigSourceSpec.config_read, source=argument
        )
        return mapping

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

    def _add_validation(self, request: ValidationRequest) -> Callable[[Function, Any], None]:
        def register(function: Function, loader: Any) -> None:
            complete = dataclasses.replace(request, function=function, loader=loader)
            self._script.validations[complete.name] = complete

        return register

    def _refuse_in_worker(self) -> None:
        if self._is_in_worker:
            raise ScriptError(
                "a data loader's worker has imported this script and reached the call of run(...); put the call "
                'behind `if __name__ == "__main__":`'
            )


def is_function(argument: Any) -> bool:
    """Whether a decorator's argument is the function itself and not a loader."""
    return callable(argument) and not hasattr(argument, "__iter__")


def is_loader_worker() -> bool:
    """Whether this process is a data loader's worker, or one that is only now importing the script for it."""
    is_importing = getattr(multiprocessing.current_process(), "_inheriting", False)  # as multiprocessing itself asks
    return is_importing or get_worker_info() is not None
