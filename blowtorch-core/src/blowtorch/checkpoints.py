"""What is saved, when it is safe, what is kept, and how to come back.

The core makes the files of a checkpoint and verifies them; the backend only stores a finished directory and gets it
back. Nothing incomplete is ever published: everything is written to a temporary directory, made durable, and the
manifest with the size and checksum of each file comes last.
"""

import math
import os
import shutil
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from blowtorch.errors import BlowtorchError, CheckpointError
from blowtorch.folder import RunFolder
from blowtorch.hookspecs import Checkpoint, CheckpointBackendSpec, RunInfo
from blowtorch.manifest import checkpoint_name, checkpoint_step, read_manifest, verify, write_manifest
from blowtorch.plugins import Plugin
from blowtorch.record import Record
from blowtorch.reproducibility import random_state
from blowtorch.state import RunState

FORMAT = 1

_PLAIN = (type(None), bool, int, float, str, bytes, complex, torch.Size, torch.dtype, torch.device)


class Stateful(Protocol):
    """Anything whose state belongs into a checkpoint."""

    def state_dict(self) -> Any:
        """Its state, in tensors and plain values."""

    def load_state_dict(self, state: Any) -> Any:
        """Take a state back."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the run folder, in which checkpoints are made.
        backend: where they are stored.
        record: its length is part of a checkpoint.
        parts: what is saved besides the model, by name.
    """

    def __init__(
        self, folder: RunFolder, backend: Plugin, info: RunInfo, record: Record, parts: Mapping[str, Stateful]
    ) -> None:
        self.parts = parts
        self._saved_at: tuple[int, bool] | None = None
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
            problem = find_unplain(part.state_dict(), name)
            if problem is not None:
                raise CheckpointError(f"{problem}; only tensors, numbers, strings, lists and mappings can be stored")

    def save(self, state: RunState, is_best: bool) -> Checkpoint:
        """Write and publish a checkpoint of this moment, and move the pointers.

        Raises:
            CheckpointError: it could not be written; what was published before is untouched.
        """
        name = checkpoint_name(state.step)
        open_sums = [value for value, _ in self.parts["window"].state_dict().values()]
        is_sound = all(map(math.isfinite, [*state.metrics.values(), *open_sums]))
        spoiled = None if is_sound else find_not_finite(state.model)
        if spoiled is not None:
            raise CheckpointError(
                f"checkpoint {name} is not written: {spoiled!r} in the model is not finite, and a good checkpoint must "
                f"not be replaced by it; the loss has overflowed, so lower the learning rate or clip the gradients"
            )
        option = state.options.checkpoint_metric
        metrics = state.measured_now()
        checkpoint = Checkpoint(name, state.step, metrics.get(option), self._folder.checkpoints / name)
        previous_best = state.best
        if is_best:
            state.best = checkpoint
        temporary = None
        try:
            temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{name}-", dir=self._folder.checkpoints))
            training = {
                "format": FORMAT,
                "record_length": self._record.sync(),
                "parts": {key: part.state_dict() for key, part in self.parts.items()},
                "random": random_state(),
            }
            write_tensors(training, temporary / "training.pt")
            write_tensors(state.model.state_dict(), temporary / "model.pt")
            write_manifest(temporary, state.step, state.epoch, metrics)
            self._backend.call(CheckpointBackendSpec.checkpoint_publish, name=name, directory=temporary)
            self._point("latest", name)
            if is_best:
                self._point("best", name)
        except (OSError, RuntimeError, BlowtorchError) as error:  # torch reports a full disk as a RuntimeError
            state.best = previous_best
            raise CheckpointError(f"checkpoint {name} could not be written: {error}") from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        self._saved_at = (state.step, state.is_epoch_done)
        return checkpoint

    def is_current(self, state: RunState) -> bool:
        """Whether a checkpoint of this very moment stands."""
        return self._saved_at == (state.step, state.is_epoch_done)

    def retain(self, state: RunState) -> None:
        """Delete the checkpoints that neither `keep_last` nor `keep_best` holds.

        Raises:
            CheckpointError: the backend could not delete one.
        """
        options = state.options
        names = list(self._backend.call(CheckpointBackendSpec.checkpoint_list))
        keep = set(names[-options.keep_last :])
        if options.keep_best:
            sign = 1 if options.smaller_is_better else -1
            ranked = sorted((sign * value, name) for value, name in self._measured(names, options.checkpoint_metric))
            keep |= {name for _, name in ranked[: options.keep_best]}
            if state.best is not None:
                keep.add(state.best.name)
        for name in names:
            if name not in keep:
                self._backend.call(CheckpointBackendSpec.checkpoint_delete, name=name)

    def newest_good(self, warn: Callable[[str], None], at_most: str | None = None) -> str | None:
        """The newest checkpoint that is complete and undamaged, `at_most` this one; None where there is none."""
        for name in reversed(self._backend.call(CheckpointBackendSpec.checkpoint_list)):
            if at_most is not None and checkpoint_step(name) > checkpoint_step(at_most):
                continue
            problems = self._problems(name)
            if not problems:
                return str(name)
            warn(f"checkpoint {name} is damaged ({'; '.join(problems)}); an earlier one is taken")
        return None

    def restore(self, name: str, state: RunState) -> dict[str, Any]:
        """Go back to a verified checkpoint: model, parts, record; what is later is put aside.

        Returns:
            The state of the random streams, to be put back just before the next batch is fetched.

        Raises:
            CheckpointError: it belongs to another model, or has not just the parts that this script needs.
        """
        with tempfile.TemporaryDirectory(prefix=".tmp-fetch-", dir=self._folder.checkpoints) as scratch:
            directory = Path(
                self._backend.call(
                    CheckpointBackendSpec.checkpoint_fetch, name=name, directory=Path(scratch), files=None
                )
            )
            training = read_tensors(directory / "training.pt")
            weights = read_tensors(directory / "model.pt")
        if training["format"] != FORMAT:
            raise CheckpointError(
                f"checkpoint {name} has format {training['format']!r} and this version reads format {FORMAT}; "
                f"continue with the version that wrote it, which run.yaml names"
            )
        load_weights(state.model, weights, name)
        self._load_parts(training["parts"], name)
        self.put_aside_after(state.step)
        self._point("latest", name)
        if state.best is not None and state.best.name in self._backend.call(CheckpointBackendSpec.checkpoint_list):
            self._point("best", state.best.name)
        self._record.cut(training["record_length"])  # last: a checkpoint taken later would not fit to it
        self._saved_at = (state.step, state.is_epoch_done)
        random: dict[str, Any] = training["random"]
        return random

    def put_aside_after(self, step: int) -> None:
        """Put aside what lies behind the step from which the run goes on, and the pointers with it."""
        for name in self._backend.call(CheckpointBackendSpec.checkpoint_list):
            if checkpoint_step(name) > step:
                self._put_aside(name)
        for pointer in ("latest", "best"):
            (self._folder.checkpoints / pointer).unlink(missing_ok=True)

    def _load_parts(self, saved: Mapping[str, Any], name: str) -> None:
        missing, left_over = sorted(self.parts.keys() - saved.keys()), sorted(saved.keys() - self.parts.keys())
        if missing or left_over:
            problems = [f"no {part!r}, which the script has" for part in missing]
            problems += [f"{part!r}, which the script has not" for part in left_over]
            raise CheckpointError(
                f"checkpoint {name} holds {'; '.join(problems)}; restore the script, or start a new run with "
                f"initialize_from to take the weights alone"
            )
        for part, instance in self.parts.items():
            try:
                instance.load_state_dict(saved[part])
            except Exception as error:
                raise CheckpointError(f"{part} does not take its state from checkpoint {name}: {error}") from error

    def _problems(self, name: str) -> list[str]:
        with tempfile.TemporaryDirectory(prefix=".tmp-fetch-", dir=self._folder.checkpoints) as scratch:
            try:
                path = self._backend.call(
                    CheckpointBackendSpec.checkpoint_fetch, name=name, directory=Path(scratch), files=None
                )
            except (OSError, BlowtorchError) as error:
                return [str(error)]
            return verify(Path(path))

    def _measured(self, names: Sequence[str], metric: str) -> list[tuple[float, str]]:
        """The value of a metric and the name of each checkpoint in whose manifest it stands."""
        found = []
        for name in names:
            with tempfile.TemporaryDirectory(prefix=".tmp-fetch-", dir=self._folder.checkpoints) as scratch:
                try:
                    path = self._backend.call(
                        CheckpointBackendSpec.checkpoint_fetch,
                        name=name,
                        directory=Path(scratch),
                        files=["manifest.json"],
                    )
                    value = read_manifest(Path(path)).metrics.get(metric)
                except (OSError, BlowtorchError):
                    continue  # a damaged one is never among the best
            if value is not None and not math.isnan(value):
                found.append((value, name))
        return found

    def _put_aside(self, name: str) -> None:
        """Move a checkpoint of a course that the run has left out of the way, without losing it."""
        aside = self._folder.checkpoints / f"aside-{name}"
        shutil.rmtree(aside, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-fetch-", dir=self._folder.checkpoints) as scratch:
            path = self._backend.call(
                CheckpointBackendSpec.checkpoint_fetch, name=name, directory=Path(scratch), files=None
            )
            shutil.copytree(path, aside)
        self._backend.call(CheckpointBackendSpec.checkpoint_delete, name=name)

    def _point(self, pointer: str, name: str) -> None:
        path = self._folder.checkpoints / pointer
        temporary = path.with_name(f".tmp-{pointer}")
        temporary.write_text(f"{name}\n")
        temporary.replace(path)


def write_tensors(value: Any, path: Path) -> None:
    """Write tensors and plain values to a file, durably."""
    with path.open("wb", buffering=0) as file:  # unbuffered: torch writes large blocks, and the lock is freed for them
        torch.save(value, file)
        os.fsync(file.fileno())


def read_tensors(path: Path) -> Any:
    """Read what `write_tensors` wrote, on the CPU; nothing in the file can run code.

    Raises:
        CheckpointError: the file holds something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler does
        raise CheckpointError(f"{path} cannot be read as tensors and plain values: {error}") from error


def load_weights(model: nn.Module, weights: Mapping[str, Any], origin: str) -> None:
    """Load a state into a model that must have just the same names and shapes.

    Raises:
        CheckpointError: naming the first tensor that differs.
    """
    mine = model.state_dict()
    advice = "is it a checkpoint of another model or configuration?"
    for name, value in mine.items():
        if name not in weights:
            raise CheckpointError(f"{origin} has no tensor {name!r}, which the model has; {advice}")
        if isinstance(value, torch.Tensor) and value.shape != weights[name].shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {tuple(weights[name].shape)} in {origin} and {tuple(value.shape)} in the "
                f"model; {advice}"
            )
    for name in weights:
        if name not in mine:
            raise CheckpointError(f"{origin} has a tensor {name!r}, which the model has not; {advice}")
    model.load_state_dict(weights)


def find_not_finite(model: nn.Module) -> str | None:
    """The name of the first tensor of a model that holds NaN or infinities in parameters, or None."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter.detach()).all():
            return name
    return None


def find_unplain(value: Any, place: str) -> str | None:
    """A sentence on the first thing in a state that is neither a tensor nor a plain value, or None.

    >>> find_unplain({"rates": [0.1, object]}, "schedulers/main")
    "schedulers/main['rates'][1] is a type"
    """
    if isinstance(value, torch.Tensor) or type(value) in _PLAIN:
        return None
    if type(value) in (dict, OrderedDict, Counter):
        items = [(f"{place}[{key!r}]", item) for key, item in value.items()]
    elif type(value) in (list, tuple):
        items = [(f"{place}[{index}]", item) for index, item in enumerate(value)]
    else:
        return f"{place} is a {type(value).__name__}"
    for inner, item in items:
        problem = find_unplain(item, inner)
        if problem is not None:
            return problem
    return None
