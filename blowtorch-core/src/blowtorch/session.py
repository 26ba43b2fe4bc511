"""One call of a run: everything that happens around the loop, from the choice of the folder to the last line."""

import dataclasses
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from blowtorch.callbacks import Callbacks
from blowtorch.checkpoints import Checkpoints
from blowtorch.clock import Interval, Trigger, Triggers
from blowtorch.config import Config
from blowtorch.data import Batches
from blowtorch.errors import BlowtorchError, RunFolderError, ScriptError, warn
from blowtorch.folder import RunFolder, find_differences, mask_secrets, plain
from blowtorch.hookspecs import RunInfo, Schedule
from blowtorch.loop import Training, report_saved
from blowtorch.metrics import MeanWindow
from blowtorch.options import RunOptions
from blowtorch.plugins import Plugin, Plugins
from blowtorch.record import LoggerFeed, Record
from blowtorch.reproducibility import git_commit, snapshot, summarize_model, versions
from blowtorch.schedules import Schedules, as_schedule, build_schedules, read_configured
from blowtorch.script import Script
from blowtorch.start import agree_on_seed, choose_device, find_start, load_initial_weights
from blowtorch.state import RunState
from blowtorch.steps import Loss, Returns
from blowtorch.trace import Trace
from blowtorch.validation import Validation


class Session:
    """One call of a run; as a context manager it records how the run ends, however that is.

    Making one checks what can be checked while there is no folder yet, and then takes a folder and its lock.

    Args:
        script: what the script has said.
        config: the resolved configuration.
        options: the options that hold.
        plugins: where extensions come from.
        data: the model, and the train and validation loaders of the call, which may be None.

    Raises:
        BlowtorchError: something cannot work.
    """

    training: Training

    def __init__(
        self, script: Script, config: Config, options: RunOptions, plugins: Plugins, data: tuple[Any, Any, Any]
    ) -> None:
        model, train_loader, validate_loader = data
        script.check(model, options.optimize_metric)
        self.status = "running"
        self._script = script
        self._requests = script.choose_validations(validate_loader)
        loader = script.choose_train_loader(train_loader)
        self._loggers = [plugins.create("logger", given) for given in options.loggers]
        self._callbacks = create_callbacks(options, plugins)
        self._backend = plugins.create("checkpoint-backend", options.checkpoint_backend)
        self._scheduler = None if options.scheduler is None else plugins.create("scheduler", options.scheduler)
        device = choose_device(options.device)
        self._start = find_start(options, script)
        is_resumed = self._start.folder is not None
        seed = script.seed if self._start.folder is None else agree_on_seed(self._start.folder, script.seed)
        self._batches = Batches(loader, seed, device, options.limit_train_batches)
        self._validation_batches = [
            Batches(request.loader, seed, device, options.limit_validate_batches, request.name)
            for request in self._requests
        ]
        model.to(device)
        self.folder = self._start.folder or RunFolder.create(
            options.save_path, options.run_name, script=script.path, seed=seed
        )
        self.folder.acquire()
        info = RunInfo(
            self.folder.id, self.folder.name, self.folder.path, None, mask_secrets(config.snapshot()), is_resumed
        )
        self.state = RunState(info, options, config, self.folder.path, seed, device, model)
        self.state.is_resumed = is_resumed
        self._feeds: list[LoggerFeed] = []
        self._has_begun = False
        try:
            self._record = Record(self.folder.record, self.folder.beat)
        except OSError as error:
            self.folder.release()
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
            self.folder.release()

    def prepare(self) -> None:
        """Build what the loop needs, and go to where the run begins."""
        state, script = self.state, self._script
        state.attach(self._write_console_log, self._record.append)
        state.model.train()
        if state.options.initialize_from is not None and not state.is_resumed:
            load_initial_weights(state.model, state.options.initialize_from)
        for function in script.init:
            function.function(**function.bind(state).given())
        self._count_steps()
        schedules = self._build_optimizers()
        self.training = self._build_training(schedules)
        self.training.checkpoints.check()
        logger_infos = self._make_logger_folders()
        self._begin()
        for plugin, info in zip(self._loggers, logger_infos, strict=True):
            self._feeds.append(LoggerFeed(plugin, info, self.folder.record, self._rewound))

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

    def _build_optimizers(self) -> Schedules:
        state, configure = self.state, self._script.configure_optimizers
        assert configure is not None
        optimizers, schedulers = read_configured(configure.function(**configure.bind(state).given()))
        state.optimizers.update(optimizers)
        schedules: dict[str, Schedule] = {
            name: as_schedule(name, scheduler, state.options.checkpoint_metric)
            for name, scheduler in schedulers.items()
        }
        if self._scheduler is not None:
            if schedules:
                raise ScriptError(
                    "configure_optimizers returns schedulers, and the option scheduler names another; keep one of them"
                )
            schedules = build_schedules(self._scheduler, optimizers, state.total_steps, state.steps_per_epoch)
        return Schedules(state.optimizers, schedules)

    def _count_steps(self) -> None:
        state = self.state
        state.steps_per_epoch = self._batches.num_batches
        limits = [state.options.max_steps]
        if state.steps_per_epoch is not None and state.max_epochs is not None:
            limits.append(state.max_epochs * state.steps_per_epoch)
        state.total_steps = min((limit for limit in limits if limit is not None), default=None)

    def _build_training(self, schedules: Schedules) -> Training:
        state, options = self.state, self.state.options
        assert self._script.train is not None
        function = self._script.train.bind(state)
        returns = Returns(function.name, state.warn)
        moments = {
            moment: [each.bind(state) for each in functions] for moment, functions in self._script.moments.items()
        }
        callbacks = Callbacks(self._callbacks, moments)
        epoch_window = MeanWindow()
        validations = self._build_validations()
        record_trigger, checkpoint_trigger = _trigger(options.log_every), _trigger(options.checkpoint_every)
        assert record_trigger is not None
        named = {"record": record_trigger, "checkpoint": checkpoint_trigger}
        named |= {f"validations/{each.name}": each.trigger for each in validations}
        named |= {f"schedulers/{name}": trigger for name, trigger in schedules.triggers.items()}
        triggers = {name: trigger for name, trigger in named.items() if trigger is not None}
        parts = {
            "state": state,
            "triggers": Triggers(triggers, state.time),
            "window": returns.window,
            "epoch_window": epoch_window,
            **{f"optimizers/{name}": optimizer for name, optimizer in state.optimizers.items()},
            **schedules.parts(),
            **callbacks.parts(),
            **({} if self._batches.stateful is None else {"data": self._batches}),
            **{f"kept/{name}": instance for name, instance in self._script.kept.items()},
        }
        return Training(
            function=function,
            batches=self._batches,
            returns=returns,
            loss=Loss(function, options.optimize_metric),
            schedules=schedules,
            validations=validations,
            callbacks=callbacks,
            record=self._record,
            checkpoints=Checkpoints(self.folder, self._backend, state.info, self._record, parts),
            epoch_window=epoch_window,
            record_trigger=record_trigger,
            checkpoint_trigger=checkpoint_trigger,
        )

    def _build_validations(self) -> list[Validation]:
        state, options = self.state, self.state.options
        validations = []
        for request, batches in zip(self._requests, self._validation_batches, strict=True):
            assert request.function is not None
            validations.append(
                Validation(
                    name=request.name,
                    function=request.function.bind(state, is_validate=True),
                    batches=batches,
                    returns=Returns(request.function.name, state.warn),
                    trigger=_trigger(request.every or options.validate_every),
                    is_at_start=options.validate_at_start if request.at_start is None else request.at_start,
                )
            )
        return validations

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
                if self._scheduler is not None and state.total_steps != state.earlier_total_steps:
                    self.training.changes.append(
                        f"the run has {state.total_steps} steps now and had {state.earlier_total_steps} before: "
                        f"{self._scheduler.label} follows the new length from here on"
                    )
                # Its own event came after it was taken, so it was cut with what followed.
                metric = state.measured_now().get(state.options.checkpoint_metric)
                is_best = state.best is not None and state.best.name == name
                state.record("checkpoint", name=name, metric=metric, is_best=is_best)
            self._rewound = (state.step, self._record.flush())
        changed = self._write_settings()
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
            self.training.callbacks.step_end.append(Trace(state, self._batches))

    def _write_settings(self) -> dict[str, tuple[Any, Any]]:
        """Write the configuration and the options; returns what differs from the process before: (old, new)."""
        config = self.folder.write_config(self.state.config)
        options = plain(mask_secrets(vars(self.state.options)))
        earlier = self.folder.read_info().get("options", options)
        self.folder.update_info(options=options)
        # Options are compared as they hold, wherever they were said; to ask for a run to be continued is no change.
        changed = {key: pair for key, pair in config.items() if not key.startswith("run.")}
        differences = find_differences(earlier, options, "run")
        return changed | {key: pair for key, pair in differences.items() if key != "run.resume"}

    def _describe(self) -> None:
        """Write down the code, the environment and the model."""
        state, script = self.state, self._script
        path = Path(script.path) if script.path else None
        self.folder.begin_session(
            script=script.path,
            command_line=script.command_line,
            seed=state.seed,
            versions=versions(),
            git_commit=git_commit(path),
            checkpoint_metric=state.options.checkpoint_metric,
        )
        for problem in snapshot(self.folder.path, path):
            state.warn(problem)
        (self.folder.path / "model.txt").write_text(summarize_model(state.model), encoding="utf-8")

    def _make_logger_folders(self) -> list[RunInfo]:
        """What each logger is told of the run; a second one of a name has a folder of its own too."""
        infos = []
        names: list[str] = []
        for plugin in self._loggers:
            names.append(plugin.name)
            again = names.count(plugin.name)
            folder = self.folder.logger_folder(plugin.name if again == 1 else f"{plugin.name}-{again}")
            infos.append(dataclasses.replace(self.state.info, logger_folder=folder))
        return infos

    def _conclude(self, error: BaseException | None) -> None:
        """The last words of a run: `run_end`, the event `finish`, and a limited wait for the loggers."""
        state = self.state
        for batches in (self._batches, *self._validation_batches):
            batches.close()
        if not self._has_begun:
            self._record.close()
            return
        try:
            if isinstance(error, KeyboardInterrupt):  # which waits for nothing
                self.training.checkpoints.abandon()
            else:
                report_saved(self.training, state)
            self.training.callbacks.call("run_end", state, status=self.status)
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
        for feed in self._feeds:
            feed.close(deadline)
        for feed in self._feeds:
            feed.report(self._warn_unrecorded)
        if not self._record.close():
            self._warn_unrecorded(f"{self.folder.record} lacks its end, which the disk had no room for")

    def _warn_unrecorded(self, text: str) -> None:
        """Warn after `finish`, which is the last event of a process."""
        self._write_console_log(f"warning: {text}")
        warn(text)


def create_callbacks(options: RunOptions, plugins: Plugins) -> list[Plugin]:
    """The callbacks that the options name, after the progress bar and the console, unless they name these too."""
    callbacks = [plugins.create("callback", given) for given in options.callbacks]
    named = {plugin.name for plugin in callbacks}
    own: list[Any] = [{"console": {"progress": options.progress}}] if "console" not in named else []
    if options.progress and "progress_bar" not in named and can_show_bar():
        own.insert(0, "progress_bar")
    return [plugins.create("callback", given) for given in own] + callbacks


def can_show_bar() -> bool:
    """Whether standard error is a terminal or a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or "IPKernelApp" in getattr(shell, "config", ())


def _trigger(interval: str | None) -> Trigger | None:
    return None if interval is None else Trigger(Interval.parse(interval))
