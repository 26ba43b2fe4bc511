"""One call of a run: everything that happens around the loop, in named stages."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from blowtorch.clock import Interval
from blowtorch.config.config import Config
from blowtorch.errors import BlowtorchError, CheckpointError, RunFolderError, warn
from blowtorch.folder.folder import RunFolder
from blowtorch.folder.provenance import git_commit, snapshot, summarize_model, versions
from blowtorch.folder.secrets import mask_secrets
from blowtorch.options import RunOptions
from blowtorch.plugins import Plugins
from blowtorch.progress import Progress
from blowtorch.record.feed import LoggerFeed
from blowtorch.record.lines import Lines
from blowtorch.record.media import Media
from blowtorch.record.record import Record
from blowtorch.runs.stored import note_backend
from blowtorch.schedule.option import describe_scheduler_option
from blowtorch.script.script import Script
from blowtorch.state import RunInfo, RunState
from blowtorch.training.assembly import RunBatches, RunExtensions, assemble
from blowtorch.training.between_steps import notify, wait_for_checkpoint
from blowtorch.training.gradients import detecting_anomalies
from blowtorch.training.interruption import interruptible
from blowtorch.training.model import choose_device, compile_model, load_initial_weights
from blowtorch.training.start import agree_on_seed, find_starting_point
from blowtorch.training.trace import Trace
from blowtorch.training.training import Training
from blowtorch.training.workspace import Workspace, make_workspace


class Session:
    """One call of a run, in stages; each that leaves something behind undoes it, in reverse, however the run ends.

        with Session(...) as session:   # find the run, place the model, claim the folder, open the record, listen
            session.prepare()           # assemble, restore, begin
            train(session.training)
                                        # conclude, and give the folder back

    What is said of processes holds once there are several.

    Args:
        script: what the script has said.
        config: the resolved configuration.
        options: the options that hold.
        plugins: where extensions come from.
        model: what is trained.
        loaders: the train and the validation loader of the call, which may be None.

    Attributes:
        status: `running`, and in the end `finished`, `stopped` or `failed`.

    Raises:
        BlowtorchError: something cannot work.
    """

    folder: RunFolder
    workspace: Workspace
    training: Training

    def __init__(
        self,
        script: Script,
        config: Config,
        options: RunOptions,
        plugins: Plugins,
        model: nn.Module,
        loaders: tuple[Any, Any],
    ) -> None:
        script.check(model, options.optimize_metric)
        self.status = "running"
        self.feeds: list[LoggerFeed] = []
        self._script = script
        self._config = config
        self._options = options
        self._model = model
        self._loaders = loaders
        self._chosen = RunExtensions.create(options, plugins)
        self._stages = contextlib.ExitStack()
        self._has_begun = False
        self._missing: CheckpointError | None = None  # why the weights of `initialize_from` could not be had
        self._rewound: tuple[int, int] | None = None

    @property
    def state(self) -> RunState:
        """The run as functions and extensions are shown it."""
        return self.workspace.state

    @property
    def media(self) -> Media | None:
        """What keeps images and the like; None while nothing is assembled."""
        return self.training.media if hasattr(self, "training") else None

    def __enter__(self) -> "Session":
        with contextlib.ExitStack() as stages:  # one that fails undoes those before it
            self._find_run()
            self._place_model()
            stages.enter_context(self._claim_folder())
            stages.enter_context(self._open_record())
            stages.enter_context(self._listen())
            self._stages = stages.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stages.__exit__(kind, error, traceback)

    def prepare(self) -> None:
        """Build what the loop needs, and go to where the run begins."""
        self._assemble()
        restored = self._restore()
        self._begin(restored)

    def metrics(self) -> dict[str, float]:
        """Return the last value of every metric; of one never recorded, its mean in the window that is still open."""
        window = {f"train/{name}": value for name, value in self.training.steps.returns.window.means().items()}
        return window | self.workspace.progress.metrics

    def _find_run(self) -> None:
        """Find out which run this is, a new one or one that goes on, and with which seed and data.

        The first process looks; all are told.
        """
        options, script = self._options, self._script
        self._device = choose_device(options.device)
        self._start = find_starting_point(options, script)
        earlier = self._start.folder
        self._seed = script.seed if earlier is None else agree_on_seed(earlier, script.seed)
        self._data = RunBatches.choose(script, options, self._loaders, self._seed, self._device)

    def _place_model(self) -> None:
        """Put the model on its device, and compile it if that is asked for; every process does."""
        self._model.to(self._device)
        self._models = compile_model(self._model, self._options)

    @contextlib.contextmanager
    def _claim_folder(self) -> Iterator[None]:
        """Take the folder of the run and its lock; in the end, note how the run ended and give them back.

        The first process alone; the others are told the path.
        """
        options, script = self._options, self._script
        self.folder = self._start.folder or RunFolder.create(
            options.save_path, options.run_name, script=script.path, seed=self._seed
        )
        self.folder.lock.acquire()
        try:
            yield
        except BaseException:
            self.status = "failed" if self.status == "running" else self.status
            raise
        finally:
            try:
                # A run that could not be continued stays as it was.
                if self._has_begun or self._start.folder is None:
                    self.folder.end_session(self.status)
            except (OSError, BlowtorchError) as problem:
                warn(f"the status {self.status} of the run could not be recorded: {problem}")
            finally:
                self.folder.lock.release()

    @contextlib.contextmanager
    def _open_record(self) -> Iterator[None]:
        """Open the record, and have a state to be shown; in the end, conclude.

        The first process writes the record; every process has a state.
        """
        try:
            record = Record(self.folder.record, self.folder.lock.beat)
        except OSError as problem:
            raise RunFolderError(f"the record of the run cannot be opened: {problem}") from problem
        self._record = record
        info = RunInfo(
            id=self.folder.id,
            name=self.folder.name,
            folder=self.folder.path,
            own_folder=None,
            config=mask_secrets(self._config.snapshot()),
            resumed=self._start.folder is not None,
        )

        def make_lines(progress: Progress) -> Lines:
            return Lines(self.folder.console, lambda text: record.append("warning", **progress.stamp(), text=text))

        self.workspace = make_workspace(
            self._models, self._config, self._options, self._seed, self._device, info, make_lines
        )
        try:
            yield
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)

    @contextlib.contextmanager
    def _listen(self) -> Iterator[None]:
        """Let signals and the end of the time stop the run tidily; every process listens, and all agree on the step."""
        with (
            interruptible(self.workspace.progress, self._options.max_time),
            detecting_anomalies(self._options),
        ):
            yield

    def _assemble(self) -> None:
        """Load the first weights, let the script prepare, and put together what the loop works with; every process."""
        state, options = self.state, self._options
        state.model.train()
        if options.initialize_from is not None:
            self._load_initial_weights(options.initialize_from)
        self._script.prepare(state)
        self.training = assemble(self._script, self.workspace, self._data, self._chosen, self.folder, self._record)
        note_backend(self.folder.id, options.checkpoint_backend)
        callbacks = self.training.steps.callbacks
        self.workspace.lines.show_by(lambda text: callbacks.call("line_said", text=text))
        self.training.checkpoints.check()

    def _load_initial_weights(self, origin: str) -> None:
        """Load them also for a run that goes on: it may have no checkpoint yet, or one that has left out a frozen base.

        If they are gone meanwhile, that is no fault as long as they are not needed.
        """
        try:
            load_initial_weights(self.state.model, origin, self._options.checkpoint_backend)
        except CheckpointError as error:
            if not self.state.is_resumed:
                raise
            self._missing = error

    def _restore(self) -> str | None:
        """Go to the newest good checkpoint of a run that goes on, and return its name; else to the beginning.

        Every process reads; the first puts aside what is later, and cuts the record.
        """
        state, progress, training = self.state, self.workspace.progress, self.training
        if not state.is_resumed:
            return None
        restored = training.checkpoints.restore_newest(state.warn, self._start.at_most)
        if restored is None:
            if self._missing is not None:
                raise self._missing
            training.checkpoints.start_anew()
            self._record.cut(0)
            name = None
        else:
            name, training.steps.random_state = restored
            scheduler = self._chosen.scheduler
            if scheduler is not None and progress.total_steps != progress.earlier_total_steps:
                training.news.append(
                    f"the run has {progress.total_steps} steps now and had {progress.earlier_total_steps} before: "
                    f"{describe_scheduler_option(scheduler)}, by the new length from here on"
                )
            # Its own event came after it was taken, so it was cut with what followed.
            metric = progress.measured_now().get(self._options.checkpoint_metric)
            is_best = progress.best is not None and progress.best.name == name
            self._record.append("checkpoint", **progress.stamp(), name=name, metric=metric, is_best=is_best)
        self._rewound = (progress.step, self._record.flush())
        return name

    def _begin(self, restored: str | None) -> None:
        """Write down what is about to be trained, and feed the loggers; the first process alone."""
        info, progress = self.state.info, self.workspace.progress
        logger_infos = self._make_logger_folders()
        changed = self._begin_session()
        if restored is None:
            self._record.append("start", step=0, epoch=0, time=time.time(), id=info.id, name=info.name)
        if info.resumed:
            self._record.append("resume", **progress.stamp(), checkpoint=restored, changed=changed)
            self.training.news += [
                f"changed since the last start: {key} was {before!r} and is {after!r}"
                for key, (before, after) in changed.items()
            ]
        self._has_begun = True
        self._describe()
        if self._options.trace:
            self.training.steps.callbacks.watch_steps(Trace(self.state, self._data.train))
        for plugin, logger_info in zip(self._chosen.loggers, logger_infos, strict=True):
            self.feeds.append(LoggerFeed(plugin, logger_info, self.folder.record, self._rewound))

    def _begin_session(self) -> dict[str, tuple[Any, Any]]:
        """Write down with what the run is trained; return what differs from the process before: (old, new)."""
        script = self._script
        return self.folder.start_session(
            self._config,
            vars(self._options),
            script.command_line,
            script=script.path,
            seed=self._seed,
            versions=versions(),
            git_commit=git_commit(Path(script.path) if script.path else None),
            checkpoint_metric=self._options.checkpoint_metric,
            callbacks={moment: names for moment, names in self.training.steps.callbacks.order.items() if names},
        )

    def _describe(self) -> None:
        """Write down the code, the environment and the model."""
        path = Path(self._script.path) if self._script.path else None
        for problem in snapshot(self.folder.path, path):
            self.state.warn(problem)
        (self.folder.path / "model.txt").write_text(summarize_model(self.state.model), encoding="utf-8")

    def _make_logger_folders(self) -> list[RunInfo]:
        """Return what each logger is told of the run; a second one of a name has a folder of its own too."""
        infos = []
        names: list[str] = []
        for plugin in self._chosen.loggers:
            names.append(plugin.name)
            again = names.count(plugin.name)
            folder = self.folder.own_folder("logger", plugin.name if again == 1 else f"{plugin.name}-{again}")
            infos.append(dataclasses.replace(self.state.info, own_folder=folder))
        return infos

    def _end(self, error: BaseException | None) -> None:
        """Say how the run ended, and conclude; an error of that never hides the error that ended the run."""
        if error is None:
            self.status = "finished" if self.workspace.progress.interruption is None else "stopped"
        else:
            self.status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        try:
            self._conclude(error)
        except Exception as problem:
            if error is None:
                self.status = "failed"
                raise
            warn(f"how the run ended could not be recorded: {problem}")

    def _conclude(self, error: BaseException | None) -> None:
        """Say the last words of a run: `run_end`, the event `finish`; then wait a limited time for the loggers.

        Every process closes its data and calls `run_end`; the rest is the first one's.
        """
        self._data.close()
        if hasattr(self, "training"):
            self.training.steps.gradients.close()
        if not self._has_begun:
            self._record.close()
            return
        try:
            if isinstance(error, KeyboardInterrupt):  # which waits for nothing
                self.training.checkpoints.abandon()
            else:
                wait_for_checkpoint(self.training)
            if error is not None:
                self.workspace.logged.values.clear()  # by the step that failed
            notify(self.training, "run_end", status=self.status)
        except Exception as problem:
            if error is None:
                self.status = "failed"
                raise
            self.workspace.lines.warn_unrecorded(f"{problem}; the run had failed before")
        finally:
            self._finish_record(error)

    def _finish_record(self, error: BaseException | None) -> None:
        progress, options, lines = self.workspace.progress, self._options, self.workspace.lines
        summary = self.metrics()
        if progress.best is not None and progress.best.metric is not None:
            summary[f"best/{options.checkpoint_metric}"] = progress.best.metric
        reason = progress.interruption or progress.stop_reason
        if error is not None:
            reason = f"{type(error).__name__}: {error}"
        self._record.append("finish", **progress.stamp(), status=self.status, reason=reason, summary=summary)
        deadline = time.monotonic() + Interval.parse(options.logger_timeout).amount
        for feed in self.feeds:
            feed.close(deadline)
        for feed in self.feeds:
            feed.report(lines.warn_unrecorded)
        if not self._record.close():
            lines.warn_unrecorded(f"{self.folder.record} lacks its end, which the disk had no room for")
