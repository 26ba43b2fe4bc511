"""What is saved, when it is safe, what is kept, and how to come back.

The core makes the files of a checkpoint and verifies them; the backend only stores a finished directory and gets it
back. The loop waits while the state is copied; the copy is written, made durable and published in the background:
the manifest last, then the pointers, and only then is anything older deleted. Nothing incomplete is ever published.
"""

import copy
import math
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from blowtorch.checkpoint.contents import Stateful, check_parts, check_plain, load_parts
from blowtorch.checkpoint.tensors import WarmCopies, find_not_finite, load_weights, read_tensors, write_tensors
from blowtorch.errors import BlowtorchError, CheckpointError, NotFiniteError
from blowtorch.folder.files import replace_files
from blowtorch.folder.folder import RunFolder
from blowtorch.folder.manifest import (
    UnknownFormatError,
    checkpoint_name,
    checkpoint_step,
    read_manifest,
    verify,
    write_manifest,
)
from blowtorch.folder.provenance import versions
from blowtorch.hookspecs import CheckpointBackendSpec
from blowtorch.options import RunOptions
from blowtorch.plugins import Plugin
from blowtorch.record.record import Record
from blowtorch.state import Checkpoint, RunInfo, RunState
from blowtorch.streams import random_state


@dataclass(frozen=True)
class Moment:
    """What a checkpoint is made of: the state of the run at one moment, in files that are still in memory."""

    checkpoint: Checkpoint
    epoch: int
    metrics: Mapping[str, float]
    files: Mapping[str, Any]
    position: Any


@dataclass(frozen=True)
class Writing:
    """A checkpoint on its way to the backend.

    Attributes:
        moment: what is written.
        is_best: whether it is the best so far.
        previous_best: what was the best before it, and is again if it cannot be written.
        outcome: once it is published, why an older one could not be deleted, or None.
    """

    moment: Moment
    is_best: bool
    previous_best: Checkpoint | None
    outcome: "Future[str | None]" = field(default_factory=Future)


class Checkpoints:
    """The checkpoints of one run; one at a time is on its way.

    Args:
        folder: the run folder, in which checkpoints are made.
        backend: where they are stored.
        record: its length is part of a checkpoint.

    Attributes:
        parts: what is saved besides the model, by name.
    """

    def __init__(self, folder: RunFolder, backend: Plugin, info: RunInfo, record: Record) -> None:
        self.parts: dict[str, Stateful] = {}
        self._saved_at: Any = None
        self._writing: Writing | None = None
        self._is_abandoned = False
        self._copies = WarmCopies()
        self._folder = folder
        self._backend = backend
        self._record = record
        backend.call(CheckpointBackendSpec.checkpoint_open, run=info)

    def check(self) -> None:
        """Make sure that every part can be stored, before hours are spent on it.

        Raises:
            CheckpointError: a part whose state holds something else than tensors and plain values.
        """
        for name, part in self.parts.items():
            check_plain(part.state_dict(), name)

    def begin(self, state: RunState, is_best: bool) -> None:
        """Copy the state of this moment, and begin to write it; `finish` says what became of that.

        With the option `checkpoint_async` off nothing is copied, and it is written before this returns.

        Raises:
            NotFiniteError: the model is spoiled, so that it is not worth keeping.
            CheckpointError: it cannot be kept. What was published before is untouched either way.
        """
        assert self._writing is None, "a new one waits for the last"
        name, metrics = checkpoint_name(state.step), state.measured_now()
        self._refuse_not_finite(name, state)
        value = metrics.get(state.options.checkpoint_metric)
        checkpoint = Checkpoint(name, state.step, value, self._folder.checkpoints / name)
        previous_best = state.best
        if is_best:
            state.best = checkpoint
        try:
            files = self._take(name, state)
        except (OSError, RuntimeError, BlowtorchError) as error:  # the record has no disk, or torch no memory
            state.best = previous_best
            raise CheckpointError(f"checkpoint {name} could not be taken: {error}") from error
        moment = Moment(checkpoint, state.epoch, metrics, files, self._position(state))
        best, self._writing = state.best, Writing(moment, is_best, previous_best)
        outcome = self._writing.outcome

        def write() -> None:
            try:
                self._publish(moment, is_best)
                outcome.set_result(self._retain(state.options, best))
            except BaseException as error:  # `finish` raises it in the loop
                outcome.set_exception(error)
            state.next_event = 0  # so the loop looks after its next step, and need not ask after each

        if state.options.checkpoint_async:
            threading.Thread(target=write, name=f"blowtorch {name}", daemon=True).start()
        else:
            write()

    @property
    def are_local(self) -> bool:
        """Whether they stay in the run folder."""
        return self._backend.name == "local"

    @property
    def has_news(self) -> bool:
        """Whether `finish` need not wait."""
        return self._writing is not None and self._writing.outcome.done()

    def finish(self, state: RunState) -> Writing | None:
        """Wait for the checkpoint on its way, which is then published; None where there is none.

        Raises:
            CheckpointError: it could not be written; what was published before is untouched.
        """
        if self._writing is None:
            return None
        writing, checkpoint = self._writing, self._writing.moment.checkpoint
        error = writing.outcome.exception()
        self._writing = None
        if error is not None:
            state.best = writing.previous_best
            if not isinstance(error, OSError | RuntimeError | BlowtorchError):  # torch calls a full disk RuntimeError
                raise error
            raise CheckpointError(f"checkpoint {checkpoint.name} could not be written: {error}") from error
        self._saved_at = writing.moment.position
        return writing

    def abandon(self) -> None:
        """Publish no more: the process goes on without this run, which may be continued meanwhile."""
        self._is_abandoned = True

    def is_current(self, state: RunState) -> bool:
        """Whether a checkpoint of this very moment is published."""
        return bool(self._saved_at == self._position(state))

    def restore_newest(
        self, state: RunState, warn: Callable[[str], None], at_most: str | None
    ) -> tuple[str, dict[str, Any]] | None:
        """Go back to the newest checkpoint that is complete and undamaged, `at_most` this one.

        Model, parts and record go back, and what is later is put aside.

        Returns:
            Its name, and the state of the random streams, to be put back just before the next batch is fetched; None
            where there is no checkpoint.

        Raises:
            CheckpointError: it belongs to another model or version, or has not just the parts that this script needs.
        """
        for name in reversed(self._backend.call(CheckpointBackendSpec.checkpoint_list)):
            if at_most is not None and checkpoint_step(name) > checkpoint_step(at_most):
                continue
            with self._scratch() as scratch:
                directory, problems = self._fetch_verified(name, Path(scratch))
                if not problems:
                    return str(name), self._restore(name, directory, state)
            warn(f"checkpoint {name} is damaged ({'; '.join(problems)}); an earlier one is taken")
        return None

    def try_to_load(self, state: RunState) -> int:
        """Load the newest checkpoint as a run that goes on from it would; returns how many bytes it has.

        Raises:
            CheckpointError: it is damaged, or a part does not take its state back.
        """
        name = self._backend.call(CheckpointBackendSpec.checkpoint_list)[-1]
        with self._scratch() as scratch:
            directory, problems = self._fetch_verified(name, Path(scratch))
            if problems:
                raise CheckpointError(f"checkpoint {name} was written, and is damaged: {'; '.join(problems)}")
            self._load(name, directory, state, set())
            return sum(path.stat().st_size for path in directory.iterdir())

    def delete_all(self) -> None:
        """Delete every checkpoint of the run."""
        for name in self._backend.call(CheckpointBackendSpec.checkpoint_list):
            self._backend.call(CheckpointBackendSpec.checkpoint_delete, name=name)

    def put_aside_after(self, step: int) -> None:
        """Put aside what lies behind the step from which the run goes on, and the pointers with it."""
        for name in self._backend.call(CheckpointBackendSpec.checkpoint_list):
            if checkpoint_step(name) > step:
                self._put_aside(name)
        for pointer in ("latest", "best"):
            (self._folder.checkpoints / pointer).unlink(missing_ok=True)

    def _position(self, state: RunState) -> Any:
        """Tells moments apart, also those of one step."""
        return state.step, state.is_epoch_done, self.parts["triggers"].state_dict()

    def _refuse_not_finite(self, name: str, state: RunState) -> None:
        """Let no spoiled state take the place of a good one."""
        open_sums = [total for total, *_ in self.parts["window"].state_dict().values()]
        if all(map(math.isfinite, [*state.metrics.values(), *open_sums])):
            return
        spoiled = find_not_finite(state.model)
        if spoiled is not None:
            raise NotFiniteError(
                f"checkpoint {name} is not written: {spoiled!r} in the model is not finite, and a good checkpoint must "
                f"not be replaced by it; the loss has overflowed, so lower the learning rate or clip the gradients"
            )

    def _take(self, name: str, state: RunState) -> dict[str, Any]:
        """The content of the files of a checkpoint, copied unless it is written at once.

        Whoever loads the model wants it as it was judged; only training goes on from the weights before averaging.
        """
        training = {
            "record_length": self._record.flush(),
            "parts": {key: part.state_dict() for key, part in self.parts.items()},
            "random": random_state(),
        }
        weights = state.model.state_dict()
        if state.averaged:
            training["weights"] = weights
            weights = copy.copy(weights)  # it carries the versions of the modules
            weights.update(state.averaged)
        files = {"training.pt": training, "model.pt": weights}
        check_plain(files, name)
        return self._copies.take(files) if state.options.checkpoint_async else files

    def _publish(self, moment: Moment, is_best: bool) -> None:
        """Write and publish, and move the pointers."""
        checkpoint = moment.checkpoint
        temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{checkpoint.name}-", dir=self._folder.checkpoints))
        try:
            self._record.make_durable()
            entries = {file: write_tensors(content, temporary / file) for file, content in moment.files.items()}
            write_manifest(temporary, checkpoint.step, moment.epoch, moment.metrics, entries)
            if self._is_abandoned:
                raise CheckpointError("the run was stopped at once")
            self._backend.call(CheckpointBackendSpec.checkpoint_publish, name=checkpoint.name, directory=temporary)
            self._point("latest", checkpoint.name)
            if is_best:
                self._point("best", checkpoint.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _retain(self, options: RunOptions, best: Checkpoint | None) -> str | None:
        """Delete what neither `keep_last` nor `keep_best` holds; returns why something could not be deleted."""
        try:
            names = list(self._backend.call(CheckpointBackendSpec.checkpoint_list))
            keep = set(names[-options.keep_last :])
            if options.keep_best:
                sign = 1 if options.smaller_is_better else -1
                ranked = sorted(
                    (sign * value, name) for value, name in self._measured(names, options.checkpoint_metric)
                )
                keep |= {name for _, name in ranked[: options.keep_best]}
                if best is not None:
                    keep.add(best.name)
            for name in names:
                if name not in keep:
                    self._backend.call(CheckpointBackendSpec.checkpoint_delete, name=name)
        except (OSError, BlowtorchError) as error:
            return str(error)
        return None

    def _restore(self, name: str, directory: Path, state: RunState) -> dict[str, Any]:
        without = set(state.options.resume_without)
        training = self._load(name, directory, state, without)
        self.put_aside_after(state.step)
        self._point("latest", name)
        if state.best is not None and state.best.name in self._backend.call(CheckpointBackendSpec.checkpoint_list):
            self._point("best", state.best.name)
        self._record.cut(training["record_length"])  # last: a checkpoint taken later would not fit to it
        self._saved_at = self._position(state)
        return {stream: value for stream, value in training["random"].items() if f"random/{stream}" not in without}

    def _load(self, name: str, directory: Path, state: RunState, without: set[str]) -> dict[str, Any]:
        """Give model and parts what a checkpoint holds; returns the content of its `training.pt`."""
        training, weights = read_tensors(directory / "training.pt"), read_tensors(directory / "model.pt")
        saved, needed = (
            [f"random/{stream}" for stream in training["random"]],
            [f"random/{each}" for each in random_state()],
        )
        check_parts(name, [*training["parts"], *saved], [*self.parts, *needed], without)
        if "weights" in training:
            weights, state.earlier_average = training["weights"], weights
        load_weights(state.model, weights, name)
        load_parts(self.parts, training["parts"], name, without)
        return cast(dict[str, Any], training)

    def _measured(self, names: Sequence[str], metric: str) -> list[tuple[float, str]]:
        """The value of a metric and the name of each checkpoint in whose manifest it stands."""
        found = []
        for name in names:
            with self._scratch() as scratch:
                try:
                    value = read_manifest(self._fetch(name, Path(scratch), ["manifest.json"])).metrics.get(metric)
                except (OSError, BlowtorchError):
                    continue  # a damaged one is never among the best
            if value is not None and not math.isnan(value):
                found.append((value, name))
        return found

    def _put_aside(self, name: str) -> None:
        """Move a checkpoint of a course that the run has left out of the way, without losing it."""
        aside = self._folder.checkpoints / f"aside-{name}"
        shutil.rmtree(aside, ignore_errors=True)
        with self._scratch() as scratch:
            shutil.copytree(self._fetch(name, Path(scratch)), aside)
        self._backend.call(CheckpointBackendSpec.checkpoint_delete, name=name)

    def _point(self, pointer: str, name: str) -> None:
        replace_files(self._folder.checkpoints, {pointer: f"{name}\n"})

    def _fetch_verified(self, name: str, scratch: Path) -> tuple[Path, list[str]]:
        """The directory of a checkpoint, and what is wrong with it, in words."""
        try:
            directory = self._fetch(name, scratch)
            read_manifest(directory)
        except UnknownFormatError as error:
            writer = self._folder.read_info().get("versions", {}).get("blowtorch-core", "?")
            raise CheckpointError(
                f"checkpoint {name} was written by another version, blowtorch-core {writer}, and this is "
                f"{versions()['blowtorch-core']}: {error}; continue the run with the version that wrote it"
            ) from error
        except (OSError, BlowtorchError) as error:
            return scratch, [str(error)]
        return directory, verify(directory)

    def _fetch(self, name: str, scratch: Path, files: Sequence[str] | None = None) -> Path:
        return Path(
            self._backend.call(CheckpointBackendSpec.checkpoint_fetch, name=name, directory=scratch, files=files)
        )

    def _scratch(self) -> "tempfile.TemporaryDirectory[str]":
        return tempfile.TemporaryDirectory(prefix=".tmp-fetch-", dir=self._folder.checkpoints)
