"""`Run`: what a training script touches. It reads configuration, collects the script's functions, and runs them."""

import contextlib
import multiprocessing
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVarTuple

from torch import nn
from torch.utils.data import get_worker_info

from blowtorch.config.config import Config, load_config, split_source
from blowtorch.errors import BlowtorchWarning, ConfigError, OptionError, ProcessError, ScriptError
from blowtorch.hookspecs import ConfigSourceSpec
from blowtorch.options import RunOptions, resolve_options
from blowtorch.parallel.world import World, join
from blowtorch.plugins import Plugins
from blowtorch.progress import Checkpoint
from blowtorch.record.media import Media
from blowtorch.script.command_line import ScriptArguments, words_of_process
from blowtorch.script.decorators import Decorators
from blowtorch.script.script import Script
from blowtorch.streams import draw_seed, make_deterministic, seed_everything
from blowtorch.training.loop import train
from blowtorch.training.recording import last_metrics
from blowtorch.training.session import Session
from blowtorch.training.start import recorded_seed
from blowtorch.training.workspace import Workspace, count_shares
from blowtorch.trial.batch_size import find_batch_size
from blowtorch.trial.dry_run import do_dry_run
from blowtorch.trial.evaluation import evaluate, load_checkpoint, predict
from blowtorch.trial.evaluation import gather as join_predictions
from blowtorch.trial.untouched import detached_workspace

Arguments = TypeVarTuple("Arguments")


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


def as_result(session: Session) -> RunResult:
    """Return the result of a session that has ended."""
    state = session.training.state
    best = None if state.options.dry_run else state.best
    return RunResult(session.status, state.folder, state.epoch, state.step, last_metrics(session.training), best)


class Run(Decorators):
    """A training script's run: its configuration, its functions, and, when called, the training itself.

    Args:
        config_files: configuration sources in order; later ones win.
        random_seed: seeds Python, NumPy and torch now; drawn and recorded when not given.
        config: the lowest layer of the configuration.
        deterministic: use deterministic kernels only; torch warns of operations that have none.
        command_line: `sys.argv` unless given; what follows the word `with` is configuration.

    Attributes:
        script_arguments: what stands before `with`, for the script's own parser; `Run.script_arguments` can be had
            before a run is made.

    Raises:
        ConfigError: a source or override that cannot be read.
    """

    script_arguments = ScriptArguments()

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
        self._world = World() if self._is_in_worker else join()
        self._plugins = Plugins()
        super().__init__(Script(command_line=words_of_process() if command_line is None else list(command_line)))
        self._in_threads: dict[int, Workspace] = {}  # what `log` and its kind belong to, by thread
        self._last_folder: Path | None = None
        self._last_backend: Any = None  # kept, so that whoever reads that folder finds it where it is an object
        with warnings.catch_warnings():
            if self._is_in_worker:
                warnings.simplefilter("ignore", BlowtorchWarning)
            self.config: Config = load_config(config, files, self._script.command_line, self._read_source)
        if self._is_in_worker:
            return
        self._script.seed = self._world.decide(lambda: self._choose_seed(random_seed))
        if deterministic:
            make_deterministic()
        seed_everything(self._script.seed)

    @property
    def seed(self) -> int:
        """The seed from which every random stream of the run is derived."""
        return self._script.seed

    def __getitem__(self, key: str) -> Any:
        """Return a value of the configuration, by its dotted key; a missing key names the nearest one."""
        return self.config[key]

    def __contains__(self, key: object) -> bool:
        return key in self.config

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value of the configuration, or `default`."""
        return self.config.get(key, default)

    def log(self, metrics: Mapping[str, Any], reduce: str = "mean") -> None:
        """Record more from within a step, named like what the step returns; see `RunState.log`.

        Args:
            metrics: name to scalar tensor or number.
            reduce: what is recorded of the values: `mean`, `sum`, `max`, `min` or `last`.

        Raises:
            ScriptError: no run is under way.
        """
        current = self._current
        if current is None:
            raise ScriptError("run.log was called while nothing is being trained, validated or evaluated")
        current.state.log(metrics, reduce)

    def log_image(self, name: str, image: Any) -> None:
        """Record an image as of now; it is kept as PNG in the folder `media` of the run, and loggers are given it.

        Like the other three of its kind, it may be called from anywhere in a run once the optimizers are made. Before
        that, in functions decorated with `init` or `configure_optimizers`, and in `evaluate`, nothing is recorded.

        Args:
            name: what it is called; logged again at the same step, it is another one.
            image: a tensor of shape (height, width) or (channels, height, width), an array or a picture of shape
                (height, width) or (height, width, channels), or a figure of matplotlib. Integers are 0 to 255,
                floats 0 to 1.

        Raises:
            ScriptError: it is no image, or no run is under way.
        """
        self._log_media(Media.log_image, name, image)

    def log_histogram(self, name: str, values: Any, bins: int = 64) -> None:
        """Record how numbers are distributed as of now; those that are not finite are left out.

        Args:
            name: what it is called.
            values: a tensor, an array or numbers, of any shape, or lists and dicts of them.
            bins: so many of equal width, from the smallest number to the largest; up to 65,536.

        Raises:
            ScriptError: these are no numbers, there cannot be so many bins, or no run is under way.
        """
        self._log_media(Media.log_histogram, name, values, bins)

    def log_text(self, name: str, text: str) -> None:
        """Record a text as of now."""
        self._log_media(Media.log_text, name, text)

    def log_file(self, name: str, path: str | Path) -> None:
        """Record a copy of a file as of now; it is kept in the folder `media` of the run.

        Raises:
            ScriptError: there is no such file, or no run is under way.
        """
        self._log_media(Media.log_file, name, path)

    def __call__(
        self, model: nn.Module, train_loader: Any = None, validate_loader: Any = None, **options: Any
    ) -> RunResult:
        """Train; see `RunOptions` for the options.

        Raises:
            BlowtorchError: something cannot work; nothing has been trained then.
        """
        self._check_place()
        resolved = resolve_options(options, self._configured_options())

        loaders = (train_loader, validate_loader)

        def make_session(script: Script, options: RunOptions) -> Session:
            given = (model, *loaders)
            return Session(script, self.config, options, self._plugins, given, self._in_progress, self._world)

        if resolved.dry_run:
            return as_result(do_dry_run(self._script, model, resolved, loaders, make_session, self._world))
        session = make_session(self._script, resolved)
        with session as training:
            self._last_folder, self._last_backend = training.state.folder, resolved.checkpoint_backend
            train(training)
        return as_result(session)

    def evaluate(
        self,
        model: nn.Module,
        loader: Any = None,
        name: str | None = None,
        *,
        checkpoint: str | Path | None = None,
        **options: Any,
    ) -> dict[str, float]:
        """Validate a model without training, with every validation or with one of them.

        Args:
            model: the model; with `checkpoint`, it is given the weights of that.
            loader: the data of the only validation or the one that is named, else of those that have none of their own;
                or a mapping of names to data.
            name: of the validation that is wanted; all unless given.
            checkpoint: `best` or `latest` of the last run, or the path of a checkpoint or run folder.
            options: see `RunOptions`.

        Returns:
            The means by the names under which a run records them, such as `val/loss`.

        Raises:
            ScriptError: no validation step is registered, none of that name, or there are no data.
            CheckpointError: there is no such checkpoint, or it belongs to another model.
        """
        with self._in_progress(self._detach(model, checkpoint, options, self._world)) as workspace:
            return evaluate(self._script, workspace, loader, name)

    def predict(
        self,
        model: nn.Module,
        loader: Any = None,
        *,
        checkpoint: str | Path | None = None,
        gather: bool = False,
        **options: Any,
    ) -> Any:
        """Predict with the prediction step.

        Args:
            model: the model; with `checkpoint`, it is given the weights of that.
            loader: the data; that of the decorator unless given.
            checkpoint: `best` or `latest` of the last run, or the path of a checkpoint or run folder.
            gather: give all at once: tensors are joined along their first dimension, within dicts and tuples too.
            options: see `RunOptions`.

        Returns:
            What the step returns for each batch, on the CPU, in the order of the loader: an iterator that predicts as
            it is asked, or with `gather` all of it in one.

        Raises:
            ScriptError: no prediction step is registered.
            CheckpointError: there is no such checkpoint, or it belongs to another model.
        """
        outputs = predict(self._script, self._detach(model, checkpoint, options, self._world), loader)
        return join_predictions(outputs) if gather else outputs

    def find_batch_size(self, model: nn.Module, loader: Any, *, largest: int | None = None, **options: Any) -> int:
        """Find by trying the largest batch size with which the train step fits into memory, of all processes together.

        The size of the loader is doubled as long as two steps fit, or else halved until they do. Model, optimizers and
        random streams are left as they are. Leave some room: a validation may take more than these two steps.

        Args:
            model: the model.
            loader: a `DataLoader`; its dataset and `collate_fn` are used.
            largest: do not try more than this; the size of the dataset where it has one is not passed either.
            options: see `RunOptions`.

        Raises:
            ScriptError: something is missing for that, or a single sample does not fit.
        """
        size = count_shares(self._world, resolve_options(options, self._configured_options()), "train")
        most = None if largest is None else largest // size
        with self._in_progress(self._detach(model, None, options, World(), is_judged=False)) as workspace:
            return size * min(self._world.gather(find_batch_size(self._script, workspace, loader, most, size)))

    def _detach(
        self,
        model: nn.Module,
        checkpoint: str | Path | None,
        options: Mapping[str, Any],
        world: World,
        is_judged: bool = True,
    ) -> Workspace:
        """Return a workspace that belongs to no run; what is only judged may be in training just now."""
        self._check_place()
        resolved = resolve_options(options, self._configured_options())
        training = self._current if is_judged and checkpoint is None else None
        workspace = detached_workspace(model, resolved, self.config, self.seed, world, training)
        load_checkpoint(checkpoint, workspace.state, self._script, self._last_folder)
        return workspace

    def _log_media(self, log: Callable[[Media, *Arguments], None], *arguments: *Arguments) -> None:
        """Record an image or the like by a method of `Media`, or do nothing where there is no folder to keep it in."""
        current = self._current
        if current is None:
            raise ScriptError(f"run.{log.__name__} was called while nothing is being trained, validated or evaluated")
        if current.media is not None:
            log(current.media, *arguments)

    @property
    def _current(self) -> Workspace | None:
        """What is under way in this thread, or else what began last: autograd has threads of its own."""
        own = self._in_threads.get(threading.get_ident())
        return next(reversed(self._in_threads.values()), None) if own is None else own

    @contextlib.contextmanager
    def _in_progress(self, current: Workspace) -> Iterator[Workspace]:
        """Let `log` and its kind reach what takes place inside; an evaluation may do so inside of a training."""
        thread = threading.get_ident()
        outer = self._in_threads.pop(thread, None)
        self._in_threads[thread] = current
        try:
            yield current
        finally:
            del self._in_threads[thread]
            if outer is not None:
                self._in_threads[thread] = outer

    def _choose_seed(self, given: int | None) -> int:
        """Return the seed of the run that goes on, else that which is given, else one that is drawn."""
        configured, seed = self._configured_options(), None
        if "resume" in configured:
            seed = recorded_seed(resolve_options({}, configured), self._script, given)
        if seed is None:
            seed = draw_seed() if given is None else given
        return seed

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

    def _check_place(self) -> None:
        """Raise an error where nothing can be trained: in a loader's worker, or apart from the other processes."""
        if self._world.parted_by is not None:
            raise ProcessError(
                f"this process has parted with those that it trained with, after {self._world.parted_by}; start all of "
                f"them again"
            )
        if self._is_in_worker:
            raise ScriptError(
                "a data loader's worker has imported this script and reached the call of run(...); put the call "
                'behind `if __name__ == "__main__":`'
            )


def is_loader_worker() -> bool:
    """Return whether this process is a data loader's worker, or one that is only now importing the script for it."""
    is_importing = getattr(multiprocessing.current_process(), "_inheriting", False)  # as multiprocessing itself asks
    return is_importing or get_worker_info() is not None
