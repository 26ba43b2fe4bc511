"""How a checkpoint is made and how a run comes back to one.

The core makes the files of a checkpoint and verifies them; the backend only stores a finished directory and gets it
back. The loop waits while the state is copied; the copy is written, made durable and published in the background:
the manifest last, then the pointers, and only then is anything older deleted. Nothing incomplete is ever published.
"""

import contextlib
import dataclasses
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blowtorch.checkpoint.contents import Contents, check_plain
from blowtorch.checkpoint.copied import Copied
from blowtorch.checkpoint.retention import delete_superseded
from blowtorch.checkpoint.shards import Piece, find_pieces, with_own_pieces
from blowtorch.checkpoint.store import Store
from blowtorch.checkpoint.tensors import WarmCopies
from blowtorch.data.tree import Place
from blowtorch.errors import BlowtorchError, CheckpointError, NotFiniteError, describe
from blowtorch.folder.files import replace_files
from blowtorch.folder.folder import RunFolder
from blowtorch.folder.manifest import checkpoint_name, write_manifest
from blowtorch.parallel.world import World
from blowtorch.progress import Checkpoint, Progress
from blowtorch.record.record import Record
from blowtorch.state import RunState


@dataclass(frozen=True)
class Writing:
    """A checkpoint on its way to the backend.

    Attributes:
        checkpoint: what it will be.
        epoch: the epoch under way when it was taken.
        metrics: what was recorded at just that step.
        copied: what it will hold; None where another process writes it.
        position: tells its moment from others, also those of the same step.
        is_best: whether it is the best so far.
        previous_best: what was the best before it, and is again if it cannot be written.
        outcome: once it is published, what could not be done after that, in a sentence, or None.
    """

    checkpoint: Checkpoint
    epoch: int
    metrics: Mapping[str, float]
    copied: Copied | None
    position: Any
    is_best: bool
    previous_best: Checkpoint | None
    outcome: "Future[str | None]" = field(default_factory=Future)


class Checkpoints:
    """The checkpoints of one run; one at a time is on its way.

    Of several processes, the first makes and stores them, and all come back to them. Where the model is divided, each
    writes its own pieces.

    Args:
        world: the processes.
        state: of the run.
        progress: of the run; `best` is set here.
        contents: what they hold.
        store: where they are stored.
        record: its length is part of a checkpoint.
    """

    def __init__(
        self, world: World, state: RunState, progress: Progress, contents: Contents, store: Store, record: Record
    ) -> None:
        self._world = world
        self._state = state
        self._progress = progress
        self._folder = store.folder
        self._contents = contents
        self._store = store
        self._record = record
        self._saved_at: Any = None
        self._writing: Writing | None = None
        self._is_abandoned = False
        self._lost_piece: str | None = None
        self._last_good: str | None = None
        self._copies = WarmCopies()

    @property
    def are_local(self) -> bool:
        """Whether they stay in the run folder."""
        return self._store.is_local

    @property
    def has_news(self) -> bool:
        """Whether `wait` returns at once."""
        return self._writing is not None and self._writing.outcome.done() and self._world.is_first

    @property
    def changes(self) -> Sequence[str]:
        """What the script sets otherwise than it did for the checkpoint that was restored, in sentences."""
        return self._contents.changes

    def check(self) -> None:
        """Make sure that all contents can be stored, before hours are spent on them.

        Raises:
            CheckpointError: something holds something else than tensors and plain values.
        """
        self._contents.check()

    def remember_finiteness(self) -> None:
        """Take note that training begins now: what is infinite or NaN already is so on purpose."""
        self._contents.remember_finiteness()

    def find_spoiled_weight(self) -> str | None:
        """Return the name of the first tensor of the model that training has spoiled, or None."""
        return self._contents.find_spoiled_weight()

    def describe_last_good(self) -> str:
        """Say which checkpoint there is to go on from."""
        if self._last_good is None:
            return "there is no checkpoint from before it"
        return f"the last good checkpoint is {self._last_good}, from which run.resume={self._folder.parent} goes on"

    def save(self, is_best: bool) -> None:
        """Copy the state of this moment, and begin to write it; `wait` says what became of that.

        With the option `checkpoint_async` off nothing is copied, and it is written before this returns.

        Raises:
            CheckpointError: it cannot be taken; what was published before is untouched.
        """
        assert self._writing is None, "a new one waits for the last"
        progress, options = self._progress, self._state.options
        name, metrics = checkpoint_name(progress.step), progress.measured_now()
        value = metrics.get(options.checkpoint_metric)
        checkpoint = Checkpoint(name=name, step=progress.step, metric=value, path=self._folder / name)
        previous_best = progress.best
        if is_best:
            progress.best = checkpoint
        self._lost_piece = None
        try:
            copied = self._copy(name)
        except (OSError, RuntimeError, BlowtorchError) as error:  # the record has no disk, or torch no memory
            progress.best = previous_best
            raise CheckpointError(f"checkpoint {name} could not be taken: {error}") from error
        unfit = self._contents.describe_unfit()
        if unfit is not None:
            self._state.warn(unfit)
        best, position = progress.best, self._position()
        writing = Writing(checkpoint, progress.epoch, metrics, copied, position, is_best, previous_best)
        self._writing = writing
        place = self._place  # of now: they may part meanwhile

        def write() -> None:
            assert copied is not None
            try:
                entries = self._write(writing, copied, *(place if copied.pieces else (0, 1)))
                if self._world.is_first:
                    self._publish(writing, copied, entries)
                writing.outcome.set_result(self._tidy_up(writing, best) if self._world.is_first else None)
            except BaseException as error:  # `wait` raises it in the loop
                writing.outcome.set_exception(error)
            progress.look_soon()  # so the loop need not ask after each step

        if copied is None:
            writing.outcome.set_result(None)
        elif options.checkpoint_async or copied.pieces:  # for which `wait` asks the other processes
            threading.Thread(target=write, name=f"blowtorch {name}", daemon=True).start()
        else:
            write()

    def wait(self) -> Writing | None:
        """Wait for the checkpoint on its way, which is then published; return None where there is none.

        Raises:
            NotFiniteError: training has spoiled it, so that it is not worth keeping.
            CheckpointError: it could not be written. What was published before is untouched either way.
        """
        if self._writing is None:
            return None
        writing = self._writing
        if writing.copied is not None and writing.copied.pieces:
            self._hear_of_pieces(writing)
        writing.outcome.exception()  # what is copied next takes the memory of what is written
        error = self._world.decide(writing.outcome.exception)
        self._writing = None
        if error is not None:
            self._progress.best = writing.previous_best
            if isinstance(error, NotFiniteError):
                self._world.refuse(error)
            if not isinstance(error, OSError | RuntimeError | BlowtorchError):  # torch calls a full disk RuntimeError
                raise error
            raise CheckpointError(f"checkpoint {writing.checkpoint.name} could not be written: {error}") from error
        self._saved_at, self._last_good = writing.position, writing.checkpoint.name
        published = dataclasses.replace(writing.checkpoint, path=self._store.path_of(writing.checkpoint.name))
        if self._progress.best is writing.checkpoint:
            self._progress.best = published
        return dataclasses.replace(writing, checkpoint=published)

    def _hear_of_pieces(self, writing: Writing) -> None:
        """Let the first process know of one that could not write its pieces nor say so, for which it would wait."""
        error = None if self._world.is_first else writing.outcome.exception()
        told = self._world.gather(None if error is None else describe(error))
        self._lost_piece = next((f"process {rank}: {text}" for rank, text in enumerate(told) if text is not None), None)

    def abandon(self) -> None:
        """Publish no more, and wait until nothing is written: the process goes on without this run.

        It may be continued meanwhile, so the folder is not given back before.
        """
        self._is_abandoned = True
        with contextlib.suppress(Exception):  # one that was not published is not the best either
            self.wait()

    def is_current(self) -> bool:
        """Return whether a checkpoint of this very moment is published."""
        return bool(self._saved_at == self._position())

    def restore_newest(self, warn: Callable[[str], None], at_most: str | None) -> tuple[str, dict[str, Any]] | None:
        """Go back to the newest checkpoint that is complete and undamaged, `at_most` this one.

        Model, record and all else that it holds go back, and what is later is put aside.

        Returns:
            Its name, and the state of the random streams, to be put back just before the next batch is fetched; None
            where there is no checkpoint.

        Raises:
            CheckpointError: it belongs to another model or version, or holds not just what this script needs.
        """
        with self._store.newest_good(warn, at_most, self._world, self._contents.is_divided) as (name, directory):
            return None if name is None else (name, self._restore(name, directory))

    def start_anew(self) -> None:
        """Put aside whatever there is: the run begins again from its beginning."""
        if self._world.is_first:
            self._put_aside_after(-1)

    def try_to_load(self) -> int:
        """Load the newest checkpoint as a run that goes on from it would; return how many bytes it has.

        Raises:
            CheckpointError: it is damaged, or something does not take its state back.
        """
        name = self._store.names()[-1]
        with self._store.fetched(name, self._world, self._contents.is_divided) as (directory, problems):
            if problems:
                raise CheckpointError(f"checkpoint {name} was written, and is damaged: {'; '.join(problems)}")
            self._contents.put_back(directory, name, set(), self._place)
            return sum(path.stat().st_size for path in directory.iterdir())

    def try_to_continue(self, folder: RunFolder, warn: Callable[[str], None], at_most: str | None) -> str | None:
        """Load the checkpoint from which another run would go on, and return its name; that run stays as it is.

        The checkpoints of this run cannot be reached any more, since the backend is now that of the other.

        Raises:
            CheckpointError: it belongs to another model or version, or holds not just what this script needs.
        """
        store, without = self._store.of_another(folder), set(self._state.options.resume_without)
        with store.newest_good(warn, at_most, self._world, self._contents.is_divided) as (name, directory):
            if name is not None:
                self._contents.put_back(directory, name, without, self._place)
            return name

    def delete_all(self) -> None:
        """Delete every checkpoint of the run."""
        for name in self._store.names():
            self._store.delete(name)

    @property
    def _place(self) -> tuple[int, int]:
        """The rank of this process, and how many there are."""
        return self._world.rank, self._world.size

    def _position(self) -> Any:
        progress = self._progress
        return progress.step, progress.is_epoch_done, self._contents.triggers.state_dict()

    def _refuse_spoiled(self, writing: Writing, copied: Copied) -> None:
        """Raise a `NotFiniteError` if training has spoiled what is about to be written."""
        spoiled = self._contents.find_spoiled(copied.files)
        if spoiled is not None:
            raise NotFiniteError(
                f"checkpoint {writing.checkpoint.name} is not written: at step {writing.checkpoint.step} {spoiled} is "
                f"not finite; {self.describe_last_good()}. A loss or a gradient was NaN or infinite before: lower the "
                f"learning rate, clip the gradients, look for bad data, or find the operation by detect_anomalies=True"
            )

    def _copy(self, name: str) -> Copied | None:
        """Copy the content of the files of a checkpoint, unless it is written at once; None if another process does."""
        own = self._contents.gather_own(self._world) if self._world.is_shared else ()
        if not self._contents.is_divided:
            return self._world.decide_alone(
                lambda: Copied(*self._take(name, own), self._make_directory(name)), otherwise=None
            )
        taken = self._world.do_all(lambda: self._take(name, own))
        return Copied(*taken, self._world.decide(lambda: self._make_directory(name)))

    def _take(self, name: str, own: Sequence[Any]) -> tuple[dict[str, Any], dict[Place, Piece], dict[str, Any]]:
        files, left_out = self._contents.gather(self._record.flush(), own)
        pieces = find_pieces(files)
        files = with_own_pieces(files) if pieces else files
        check_plain(files, name)
        is_async = self._state.options.checkpoint_async
        return (self._copies.take(files) if is_async else files), pieces, left_out

    def _make_directory(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f".tmp-{name}-", dir=self._folder))

    def _write(self, writing: Writing, copied: Copied, rank: int, size: int) -> dict[str, Any]:
        """Write the files that are up to this process; whatever it cannot write goes with what there is of it."""
        try:
            self._refuse_spoiled(writing, copied)
            self._record.make_durable()
            return copied.write(rank, size, self._check_all_go_on if copied.pieces else self._check_goes_on)
        except BaseException as error:
            with contextlib.suppress(OSError):  # the disk that is full has no room for that either
                copied.fail(rank, size, error)
            if self._world.is_first:
                shutil.rmtree(copied.directory, ignore_errors=True)
            raise

    def _publish(self, writing: Writing, copied: Copied, entries: Mapping[str, Any]) -> None:
        """Publish what is written."""
        step, epoch, metrics = writing.checkpoint.step, writing.epoch, writing.metrics
        try:
            write_manifest(copied.directory, step, epoch, metrics, entries, copied.frozen)
            self._check_goes_on()
            self._store.publish(writing.checkpoint.name, copied.directory)
        finally:
            shutil.rmtree(copied.directory, ignore_errors=True)

    def _check_goes_on(self) -> None:
        if self._is_abandoned:
            raise CheckpointError("the run was stopped at once")

    def _check_all_go_on(self) -> None:
        """Raise a `CheckpointError` if some pieces will never be written."""
        self._check_goes_on()
        if self._world.parted_by is not None:
            raise CheckpointError(f"the processes that have its pieces have parted: {self._world.parted_by}")
        if self._lost_piece is not None:
            raise CheckpointError(self._lost_piece)

    def _tidy_up(self, writing: Writing, best: Checkpoint | None) -> str | None:
        """Move the pointers to what is published, and delete what is older; return what could not be done, or None."""
        try:
            for pointer in ("latest", "best") if writing.is_best else ("latest",):
                self._point(pointer, writing.checkpoint.name)
        except OSError as error:  # the manifests count
            return f"{self._folder} could not be pointed to {writing.checkpoint.name}: {error}"
        problem = delete_superseded(self._store, self._state.options, best)
        return None if problem is None else f"an old checkpoint could not be deleted: {problem}"

    def _restore(self, name: str, directory: Path) -> dict[str, Any]:
        without = set(self._state.options.resume_without)
        length, random = self._contents.put_back(directory, name, without, self._place)
        if self._world.is_first:
            self._put_aside_after(self._progress.step)
            best = self._progress.best
            with contextlib.suppress(OSError):  # the manifests count
                self._point("latest", name)
                if best is not None and best.name in self._store.names():
                    self._point("best", best.name)
            self._record.cut(length)  # last: a checkpoint taken later would not fit to it
        self._saved_at, self._last_good = self._position(), name
        return random

    def _put_aside_after(self, step: int) -> None:
        self._store.put_aside_after(step)
        for pointer in (self._folder / "latest", self._folder / "best"):
            shutil.rmtree(pointer) if pointer.is_dir() else pointer.unlink(missing_ok=True)

    def _point(self, pointer: str, name: str) -> None:
        replace_files(self._folder, {pointer: f"{name}\n"})
