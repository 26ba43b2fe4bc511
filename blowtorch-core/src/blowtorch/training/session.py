"""One call of a run: everything that happens around the loop, in named stages."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from blowtorch.clock import Interval
from blowtorch.config.config import Config
from blowtorch.errors import CheckpointError, RunFolderError, describe, warn
from blowtorch.folder.folder import RunFolder, plain
from blowtorch.folder.secrets import mask_secrets, mask_text
from blowtorch.options import RunOptions
from blowtorch.parallel.sharding import read_parallel
from blowtorch.parallel.world import World
from blowtorch.plugins import Plugins
from blowtorch.progress import Progress
from blowtorch.record.feed import LoggerFeed
from blowtorch.record.lines import Lines
from blowtorch.record.record import NoRecord, Record
from blowtorch.record.shared_media import make_media
from blowtorch.runs.stored import note_backend
from blowtorch.script.script import Script
from blowtorch.state import RunInfo, RunState
from blowtorch.training.advice import advise
from blowtorch.training.assembly import Plan, RunExtensions, assemble, describe_lengths
from blowtorch.training.between_steps import notify, wait_for_checkpoint
from blowtorch.training.claim import give_back, refuse_unreached, take_folder
from blowtorch.training.interruption import interruptible
from blowtorch.training.model import choose_device, load_initial_weights, prepare_model, refuse_unfilled, set_up_model
from blowtorch.training.modes import put_in_training_mode
from blowtorch.training.precision import detecting_anomalies
from blowtorch.training.recording import last_metrics
from blowtorch.training.run_batches import RunBatches, compare_data
from blowtorch.training.start import (
    Restored,
    agree_on_seed,
    find_starting_point,
    refuse_other_backend,
    seed_own_streams,
)
from blowtorch.training.trace import Trace
from blowtorch.training.training import Training
from blowtorch.training.workspace import Surroundings, Workspace, make_workspace
from blowtorch.training.writing import (
    compare_processes,
    describe_changes,
    describe_run,
    find_late_options,
    inform_loggers,
    write_down,
)


class Session:
    """One call of a run, in stages; each is given what those before it have made, and undone after those behind it.

        with Session(...) as training:  # find the run, set up the model, listen, claim the folder, open the record;
            train(training)             # assemble, restore, begin
                                        # conclude, and give back the folder

    A stage that leaves something behind is a context manager, and its undoing stands below its `yield`. So whatever
    fails, and wherever a run ends, no lock, handler, thread or hook stays. Stages of which nothing has to be undone say
    why. Each says which of several processes it is about.

    Args:
        script: what the script has said.
        config: the resolved configuration.
        options: the options that hold; what a `dry_run` leaves behind is deleted too.
        plugins: where extensions come from.
        given: what the call was given: the model, and the train and the validation loader, which may be None.
        reached: the context in which `run.log` and its kind reach a workspace.
        world: the processes that take part.

    Attributes:
        status: `running`, and in the end `finished`, `stopped` or `failed`.
        feeds: one for each logger, once the run has begun.
        training: what is trained, from the moment on that the session is entered.

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
        given: tuple[nn.Module, Any, Any],
        reached: Callable[[Workspace], contextlib.AbstractContextManager[Any]],
        world: World,
    ) -> None:
        self.status = "running"
        self.feeds: list[LoggerFeed] = []
        self._script = script
        self._config = config
        self._options = options
        self._plugins = plugins
        self._model, *self._loaders = given
        self._reached = reached
        self._world = world
        self._stages = contextlib.ExitStack()
        self._has_begun = False

    def __enter__(self) -> Training:
        with contextlib.ExitStack() as stages:  # one that fails undoes those before it
            stages.enter_context(self._tell_others())
            plan = self._find_run()
            (models, had_no_memory), progress = self._set_up_model(plan), Progress()
            stages.enter_context(self._listen(progress))
            folder = stages.enter_context(self._claim_folder(plan))
            workspace, record = stages.enter_context(self._open_record(plan, models, folder, progress))
            stages.enter_context(self._reached(workspace))
            missing = self._load_initial_weights(workspace.state)
            self.training = stages.enter_context(self._assemble(plan, folder, workspace, record))
            restored = self._restore(plan, self.training, missing)
            if had_no_memory:
                refuse_unfilled(self._model, self._world)
            stages.enter_context(self._begin(plan, folder, self.training, restored))
            self._stages = stages.pop_all()
        return self.training

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stages.__exit__(kind, error, traceback)

    @contextlib.contextmanager
    def _tell_others(self) -> Iterator[None]:
        """Let the other processes know if this one fails; every process does."""
        try:
            yield
        except BaseException as error:
            self._world.fail(error)
            raise

    def _find_run(self) -> Plan:
        """Find out which run this is, a new one or one that goes on, and with which seed, data and extensions.

        The first process looks; all are told. To look leaves nothing behind but the seed of the random streams.
        """
        options, script = self._options, self._script
        script.check(self._model, options.optimize_metric)
        if self._world.is_shared:
            compare_processes(self._world, script, self._config, options)
        extensions = RunExtensions.create(options, self._plugins, self._world.is_first)
        device = choose_device(options, self._world)
        start = self._world.decide(lambda: find_starting_point(options, script))
        seed = script.seed if start.folder is None else agree_on_seed(start.folder, script.seed)
        sharding = read_parallel(options.parallel)
        surroundings = Surroundings(seed, device, self._world, sharding if self._world.is_shared else None)
        batches = RunBatches.choose(script, options, self._loaders, surroundings)
        compare_data(self._world, batches)
        return Plan(start, surroundings, extensions, batches)

    def _set_up_model(self, plan: Plan) -> tuple[tuple[nn.Module, Any], bool]:
        """Put the model on its device, and compile it if that is asked for; every process does.

        A model stays where it was trained, so there is nothing to undo.
        """
        return set_up_model(self._model, self._options, plan.surroundings)

    @contextlib.contextmanager
    def _listen(self, progress: Progress) -> Iterator[None]:
        """Let signals and the end of the time stop the run tidily; every process listens, and all agree on the step.

        From before the run has a folder to after its end stands in there, so that none tells of a run under way which
        a signal has ended.
        """
        with interruptible(progress, self._options.max_time), detecting_anomalies(self._options):
            yield

    @contextlib.contextmanager
    def _claim_folder(self, plan: Plan) -> Iterator[RunFolder]:
        """Take the folder of the run and its lock; in the end, note how the run ended and give them back.

        The first process alone; the others are told the path.
        """
        taken: list[RunFolder] = []

        def take() -> tuple[Path, str]:
            taken.append(take_folder(plan, self._script, self._options))
            return taken[0].path, taken[0].id

        place = self._world.decide(take)
        try:
            if plan.surroundings.sharding is not None:
                refuse_unreached(self._world, place[0])
            yield taken[0] if taken else RunFolder(*place)
        except BaseException as error:
            # Who loses patience while loggers are waited for changes nothing about how the training ended.
            if self.status == "running" or not isinstance(error, KeyboardInterrupt):
                self._end(error)
            raise
        finally:
            if taken:
                is_noted = self._has_begun or plan.start.folder is None
                give_back(taken[0], self.status if is_noted else None, is_kept=not self._options.dry_run)

    @contextlib.contextmanager
    def _open_record(
        self, plan: Plan, models: tuple[nn.Module, Any], folder: RunFolder, progress: Progress
    ) -> Iterator[tuple[Workspace, Record]]:
        """Open the record, and have a state to be shown; in the end, close the record.

        The first process writes the record; every process has a state.
        """
        try:
            record = Record(folder.record, folder.lock.beat) if self._world.is_first else NoRecord()
        except OSError as problem:
            raise RunFolderError(f"the record of the run cannot be opened: {problem}") from problem
        progress.catch_up = record.catch_up
        info = RunInfo(
            id=folder.id,
            name=folder.name,
            folder=folder.path,
            own_folder=None,
            config=mask_secrets(plain(self._config.snapshot())),
            resumed=plan.start.folder is not None,
        )
        console = folder.console if self._world.is_first else None
        lines = Lines(console, lambda text: record.append("warning", **progress.stamp(), text=text))
        account = progress, lines
        workspace = make_workspace(models, self._config, self._options, plan.surroundings, info, account)
        media = make_media(self._world, folder.path, record, progress, lines)
        try:
            yield dataclasses.replace(workspace, media=media), record
        finally:
            media.close()
            if not record.close():
                workspace.lines.warn_unrecorded(f"{folder.record} lacks its end, which the disk had no room for")

    @contextlib.contextmanager
    def _assemble(self, plan: Plan, folder: RunFolder, workspace: Workspace, record: Record) -> Iterator[Training]:
        """Let the script prepare, and put together what the loop works with; every process does.

        In the end nothing hangs on the optimizers any more.
        """
        put_in_training_mode(workspace.state.model)
        assert workspace.media is not None
        with workspace.media.muted():  # what is logged here would come again in each process
            prepare_model(self._script, workspace, plan.surroundings.sharding)
            training = assemble(self._script, workspace, plan, folder, record)
        note_backend(folder.id, self._options.checkpoint_backend)
        callbacks = training.steps.callbacks
        workspace.lines.show_by(lambda text: callbacks.call("line_said", text=text))
        try:
            training.checkpoints.check()
            with training.compilations.watched():
                yield training
        finally:
            training.steps.gradients.close()
            training.coverage.close()
            if self._options.dry_run and self._world.is_first:
                training.checkpoints.delete_all()

    def _load_initial_weights(self, state: RunState) -> CheckpointError | None:
        """Load the weights of `initialize_from`, if given; return why they cannot be had, where that may not matter.

        Every process does. A run that goes on loads them too: it may have no checkpoint yet, or one that has left out a
        frozen base. If they are gone meanwhile, that is no fault as long as they are not needed. Weights that are
        loaded stay, so there is nothing to undo.
        """
        if self._options.initialize_from is not None:
            try:
                load_initial_weights(state.model, self._options.initialize_from, self._options.checkpoint_backend)
            except CheckpointError as error:
                if not state.is_resumed:
                    raise
                return error
        return None

    def _restore(self, plan: Plan, training: Training, missing: CheckpointError | None) -> Restored:
        """Go to the newest good checkpoint of a run that goes on; else to the beginning.

        Every process reads; the first puts aside what is later, and cuts the record. That is not undone: a run that
        fails after it goes on from the same checkpoint.
        """
        progress, record = training.progress, training.record
        if not training.state.is_resumed:
            seed_own_streams(plan.surroundings)
            return Restored()
        restored = training.checkpoints.restore_newest(training.state.warn, plan.start.at_most)
        if restored is None:
            if missing is not None:
                raise missing
            assert plan.start.folder is not None
            refuse_other_backend(plan.start.folder, self._options.checkpoint_backend)
            training.checkpoints.start_anew()
            seed_own_streams(plan.surroundings)
            record.cut(0)
            name = None
        else:
            name, training.steps.random_state = restored
            training.news += [*training.checkpoints.changes, *describe_lengths(progress, plan.extensions.scheduler)]
            # Its own event came after it was taken, so it was cut with what followed.
            metric = progress.measured_now().get(self._options.checkpoint_metric)
            is_best = progress.best is not None and progress.best.name == name
            record.append("checkpoint", **progress.stamp(), name=name, metric=metric, is_best=is_best)
        return Restored(name, rewound=(progress.step, record.flush()))

    @contextlib.contextmanager
    def _begin(self, plan: Plan, folder: RunFolder, training: Training, restored: Restored) -> Iterator[None]:
        """Write down what is about to be trained, and feed the loggers; in the end, conclude. The first process alone.

        To trace the steps, to close the data and to call `run_end` is every process's.
        """
        self._world.decide_alone(lambda: self._write_down(plan, folder, training, restored), otherwise=None)
        if self._options.trace:
            training.steps.callbacks.watch_steps(Trace(training.state, plan.batches.train))
        try:
            yield
        except BaseException as problem:
            error = self._world.explain(problem)
            self._world.fail(error)
            try:
                self._conclude(plan, training, error)
            except Exception as another:  # which never hides the error that ended the run
                warn(f"how the run ended could not be recorded: {another}")
            if error is not problem:
                raise error from problem
            raise
        else:
            self._conclude(plan, training, None)

    def _write_down(self, plan: Plan, folder: RunFolder, training: Training, restored: Restored) -> None:
        info, progress, callbacks = training.state.info, training.progress, training.steps.callbacks
        late = find_late_options(folder, self._options, restored.name is not None) if info.resumed else {}
        logger_infos = inform_loggers(plan.extensions.loggers, folder, info, late)
        order = {moment: names for moment, names in callbacks.order.items() if names}
        device, told = plan.surroundings.device, {"seed": plan.surroundings.seed, "callbacks": order}
        changed = write_down(folder, self._script, self._config, self._options, late, device, **told)
        if restored.name is None:
            training.record.append("start", step=0, epoch=0, time=time.time(), id=info.id, name=info.name)
        if info.resumed:
            said = [*training.checkpoints.changes]
            training.record.append("resume", **progress.stamp(), checkpoint=restored.name, changed=changed, said=said)
            training.news += describe_changes(changed, late)
        else:
            training.news += advise(training.state)
        self._has_begun = True
        describe_run(folder, self._script, training.state)
        for plugin, logger_info in zip(plan.extensions.loggers, logger_infos, strict=True):
            self.feeds.append(LoggerFeed(plugin, logger_info, folder.record, restored.rewound))

    def _end(self, error: BaseException | None, interruption: str | None = None) -> None:
        """Note how the run ended: by an error, an interruption, or as it should."""
        if error is None:
            self.status = "finished" if interruption is None else "stopped"
        else:
            self.status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"

    def _conclude(self, plan: Plan, training: Training, error: BaseException | None) -> None:
        """Say the last words of a run: `run_end`, the event `finish`; then wait a limited time for the loggers."""
        plan.batches.close()
        self._end(error, training.progress.interruption)
        try:
            with self._tell_others():
                training.record.catch_up()
                if isinstance(error, KeyboardInterrupt):  # which waits for nothing
                    training.checkpoints.abandon()
                else:
                    wait_for_checkpoint(training)
                if error is not None:
                    training.workspace.logged.values.clear()  # by the step that failed
                notify(training, "run_end", status=self.status)
        except (Exception, SystemExit) as problem:
            if error is None:
                error = problem
                self._end(error)
                raise
            training.workspace.lines.warn_unrecorded(f"{describe(problem)}; the run had failed before")
        finally:
            self._record_end(training, error)

    def _record_end(self, training: Training, error: BaseException | None) -> None:
        progress = training.progress
        summary = last_metrics(training)
        if progress.best is not None and progress.best.metric is not None:
            summary[f"best/{self._options.checkpoint_metric}"] = progress.best.metric
        reason = progress.interruption or progress.stop_reason
        if error is not None:
            reason = mask_text(describe(error))
        training.record.append("finish", **progress.stamp(), status=self.status, reason=reason, summary=summary)
        deadline = time.monotonic() + Interval.parse(self._options.logger_timeout).amount
        for feed in self.feeds:
            feed.close(deadline)
        for feed in self.feeds:
            feed.report(training.workspace.lines.warn_unrecorded)
