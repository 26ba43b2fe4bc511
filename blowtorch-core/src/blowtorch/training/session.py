"""One call of a run: everything that happens around the loop, from the choice of the folder to the last line."""

import dataclasses
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from blowtorch.clock import Interval
from blowtorch.config.config import Config
from blowtorch.errors import BlowtorchError, RunFolderError, warn
from blowtorch.folder.folder import RunFolder
from blowtorch.folder.provenance import git_commit, snapshot, summarize_model, versions
from blowtorch.folder.secrets import mask_secrets
from blowtorch.options import RunOptions
from blowtorch.plugins import Plugins
from blowtorch.record.feed import LoggerFeed
from blowtorch.record.record import Record
from blowtorch.schedule.option import describe_scheduler_option
from blowtorch.script.script import Script
from blowtorch.state import RunInfo, RunState
from blowtorch.training.assembly import Data, Extensions, Training, assemble
from blowtorch.training.between_steps import notify, report_saved
from blowtorch.training.model import choose_device, compile_model, load_initial_weights
from blowtorch.training.start import agree_on_seed, find_start
from blowtorch.training.trace import Trace


class Session:
    """One call of a run; as a context manager it records how the run ends, however that is.

    Making one checks what can be checked while there is no folder yet, and then takes a folder and its lock.

    Args:
        script: what the script has said.
        config: the resolved configuration.
        options: the options that hold.
        plugins: where extensions come from.
        model: what is trained.
        loaders: the train and the validation loader of the call, which may be None.

    Raises:
        BlowtorchError: something cannot work.
    """

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
        self._script = script
        self._extensions = Extensions.create(options, plugins)
        device = choose_device(options.device)
        self._start = find_start(options, script)
        is_resumed = self._start.folder is not None
        seed = script.seed if self._start.folder is None else agree_on_seed(self._start.folder, script.seed)
        self._data = Data.choose(script, options, loaders, seed, device)
        model.to(device)
        model, compiled = compile_model(model, options)
        self.folder = self._start.folder or RunFolder.create(
            options.save_path, options.run_name, script=script.path, seed=seed
        )
        self.folder.lock.acquire()
        info = RunInfo(
            self.folder.id, self.folder.name, self.folder.path, None, mask_secrets(config.snapshot()), is_resumed
        )
        self.state = RunState(info, options, config, self.folder.path, seed, device, model)
        self.state.is_resumed, self.state.compiled_model = is_resumed, compiled
        self.feeds: list[LoggerFeed] = []
        self._has_begun = False
        try:
            self._record = Record(self.folder.record, self.folder.lock.beat)
        except OSError as error:
            self.folder.lock.release()
            raise RunFolderError(f"the record of the run cannot be opened: {error}") from error

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.status = "finished" if self.state.interruption is None else "stopped"
        else:
            self.status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        try:
            self._conclude(error)
        except Exception as problem:
            self.status = "failed" if error is None else self.status
            if error is None:
                raise
            warn(f"how the run ended could not be recorded: {problem}")  # what ended it is what the user must see
        finally:
            self._end_session()

    def _end_session(self) -> None:
        try:
            if self._has_begun or not self.state.is_resumed:  # else the run that could not be continued stays as it was
                self.folder.end_session(self.status)
        except (OSError, BlowtorchError) as problem:
            warn(f"the status {self.status} of the run could not be recorded: {problem}")
        finally:
            self.folder.lock.release()

    def prepare(self) -> None:
        """Build what the loop needs, and go to where the run begins."""
        state, script = self.state, self._script
        state.attach(self._write_console_log, self._record.append)
        state.model.train()
        if state.options.initialize_from is not None and not state.is_resumed:
            load_initial_weights(state.model, state.options.initialize_from)
        for function in script.init:
            function.function(**function.bind(state).given())
        self.training = assemble(script, state, self._data, self._extensions, self.folder, self._record)
        self.training.checkpoints.check()
        logger_infos = self._make_logger_folders()
        self._begin()
        for plugin, info in zip(self._extensions.loggers, logger_infos, strict=True):
            self.feeds.append(LoggerFeed(plugin, info, self.folder.record, self._rewound))

    def metrics(self) -> dict[str, float]:
        """The last value of every metric; of one never recorded, its mean in the window that is still open."""
        window = {f"train/{name}": value for name, value in self.training.returns.window.means().items()}
        return window | self.state.metrics

    def _write_console_log(self, text: str) -> None:
        try:
            with self.folder.console.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        except OSError:  # a full disk is the record's to report
            pass

    def _begin(self) -> None:
        """Go to the checkpoint that the run continues from, or to the beginning; say so in the record."""
        state, checkpoints = self.state, self.training.checkpoints
        name = None
        self._rewound = None
        if state.is_resumed:
            restored = checkpoints.restore_newest(state, state.warn, self._start.at_most)
            if restored is None:
                checkpoints.put_aside_after(-1)
                self._record.cut(0)
            else:
                name, self.training.random_state = restored
                scheduler = self._extensions.scheduler
                if scheduler is not None and state.total_steps != state.earlier_total_steps:
                    self.training.changes.append(
                        f"the run has {state.total_steps} steps now and had {state.earlier_total_steps} before: "
                        f"{describe_scheduler_option(scheduler)}, by the new length from here on"
                    )
                # Its own event came after it was taken, so it was cut with what followed.
                metric = state.measured_now().get(state.options.checkpoint_metric)
                is_best = state.best is not None and state.best.name == name
                state.record("checkpoint", name=name, metric=metric, is_best=is_best)
            self._rewound = (state.step, self._record.flush())
        changed = self._begin_session()
        if name is None:
            self._record.append("start", step=0, epoch=0, time=time.time(), id=state.info.id, name=state.info.name)
        if state.is_resumed:
            self._record.append(
                "resume", step=state.step, epoch=state.epoch, time=time.time(), checkpoint=name, changed=changed
            )
            self.training.changes += [
                f"changed since the last start: {key} was {before!r} and is {after!r}"
                for key, (before, after) in changed.items()
            ]
        self._has_begun = True
        self._describe()
        if state.options.trace:
            self.training.callbacks.step_end.append(Trace(state, self._data.train))

    def _begin_session(self) -> dict[str, tuple[Any, Any]]:
        """Write down with what the run is trained; returns what differs from the process before: (old, new)."""
        state, script = self.state, self._script
        return self.folder.begin_session(
            state.config,
            vars(state.options),
            script.command_line,
            script=script.path,
            seed=state.seed,
            versions=versions(),
            git_commit=git_commit(Path(script.path) if script.path else None),
            checkpoint_metric=state.options.checkpoint_metric,
            callbacks={moment: names for moment, names in self.training.callbacks.order.items() if names},
        )

    def _describe(self) -> None:
        """Write down the code, the environment and the model."""
        state = self.state
        path = Path(self._script.path) if self._script.path else None
        for problem in snapshot(self.folder.path, path):
            state.warn(problem)
        (self.folder.path / "model.txt").write_text(summarize_model(state.model), encoding="utf-8")

    def _make_logger_folders(self) -> list[RunInfo]:
        """What each logger is told of the run; a second one of a name has a folder of its own too."""
        infos = []
        names: list[str] = []
        for plugin in self._extensions.loggers:
            names.append(plugin.name)
            again = names.count(plugin.name)
            folder = self.folder.logger_folder(plugin.name if again == 1 else f"{plugin.name}-{again}")
            infos.append(dataclasses.replace(self.state.info, logger_folder=folder))
        return infos

    def _conclude(self, error: BaseException | None) -> None:
        """The last words of a run: `run_end`, the event `finish`, and a limited wait for the loggers."""
        state = self.state
        self._data.close()
        if hasattr(self, "training") and self.training.gradients is not None:
            self.training.gradients.close()
        if not self._has_begun:
            self._record.close()
            return
        try:
            if isinstance(error, KeyboardInterrupt):  # which waits for nothing
                self.training.checkpoints.abandon()
            else:
                report_saved(self.training, state)
            if error is not None:
                state.logged.clear()  # by the step that failed
            notify(self.training, state, "run_end", status=self.status)
        except Exception as problem:
            if error is None:
                self.status = "failed"
                raise
            self._warn_unrecorded(f"{problem}; the run had failed before")
        finally:
            self._finish_record(error)

    def _finish_record(self, error: BaseException | None) -> None:
        state = self.state
        summary = self.metrics()
        if state.best is not None and state.best.metric is not None:
            summary[f"best/{state.options.checkpoint_metric}"] = state.best.metric
        reason = state.interruption or state.stop_reason if error is None else f"{type(error).__name__}: {error}"
        self._record.append(
            "finish",
            step=state.step,
            epoch=state.epoch,
            time=time.time(),
            status=self.status,
            reason=reason,
            summary=summary,
        )
        deadline = time.monotonic() + Interval.parse(state.options.logger_timeout).amount
        for feed in self.feeds:
            feed.close(deadline)
        for feed in self.feeds:
            feed.report(self._warn_unrecorded)
        if not self._record.close():
            self._warn_unrecorded(f"{self.folder.record} lacks its end, which the disk had no room for")

    def _warn_unrecorded(self, text: str) -> None:
        """Warn after `finish`, which is the last event of a process."""
        self._write_console_log(f"warning: {text}")
        warn(text)
