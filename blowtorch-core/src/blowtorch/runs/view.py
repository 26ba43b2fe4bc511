"""Reads the folders of runs, without torch and without disturbing whoever trains them."""

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from blowtorch.checkpoint.store import Store
from blowtorch.config.config import Config, load_config
from blowtorch.errors import CheckpointError, RunFolderError, nearest, warn
from blowtorch.folder.folder import NEEDED, folder_number, read_run_info, read_yaml, safe_name
from blowtorch.folder.lock import is_owned
from blowtorch.folder.manifest import Manifest, checkpoint_step, read_manifest
from blowtorch.progress import Checkpoint
from blowtorch.runs.stored import open_store

POINTERS = ("best", "latest")

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


class Series(NamedTuple):
    """One metric over a run.

    Attributes:
        steps: the steps at which it was recorded, int64, of shape (recordings,).
        values: what was recorded, float64, of the same shape.
    """

    steps: "np.ndarray[Any, Any]"
    values: "np.ndarray[Any, Any]"


class StoredWeights(NamedTuple):
    """The weights that a checkpoint holds: those that were validated.

    Attributes:
        checkpoint: which one.
        tensors: by name, on the CPU; and what else is in the state of a model. Each is read when it is asked for, and
            not kept: one that was divided among processes is then put together.
        outlines: by name, what has the shape and dtype of each: itself, or a tensor on the device `meta`.
        left_out: the names of those that it does not hold, since they were not trained (`checkpoint_frozen=False`).
    """

    checkpoint: Checkpoint
    tensors: Mapping[str, Any]
    outlines: Mapping[str, Any]
    left_out: tuple[str, ...]


class RunView:
    """A run's folder, as anybody may read it.

    Args:
        path: the folder.
        checkpoint_backend: where its checkpoints are; the one that the run has recorded, unless given.

    Attributes:
        path: the folder.
        info: the content of `run.yaml`.
    """

    def __init__(self, path: Path, checkpoint_backend: Any = None) -> None:
        self.path = path
        self.info = read_run_info(path)
        self._backend = checkpoint_backend

    @property
    def id(self) -> str:
        """What names the run for ever, wherever its folder is moved."""
        return str(self.info["id"])

    @property
    def name(self) -> str:
        """The name of the run, such as `brave-otter-3`."""
        return str(self.info["name"])

    @property
    def number(self) -> int:
        """The number at the end of the name."""
        return int(self.info["number"])

    @property
    def status(self) -> str:
        """What the run is now: `running`, `finished`, `stopped`, `failed`, or `lost` (running without an owner)."""
        has_owner = is_owned(self.path)  # asked first: an owner that goes has written its last status before
        status = str(read_run_info(self.path)["status"])
        return "lost" if status == "running" and not has_owner else status

    @property
    def config(self) -> Config:
        """The resolved configuration."""
        return load_config(read_yaml(self.path / "config.yaml"), [], [], lambda source: {})

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Return the checkpoints of the run in ascending order; they are not verified.

        Raises:
            CheckpointError: they are in a checkpoint backend that cannot be used here.
        """
        manifests = self._read_manifests() if self._store is None else self._store.manifests(self._store.names())
        checkpoints = []
        for name, manifest in manifests:
            path = self.path / "checkpoints" / name if self._store is None else self._store.path_of(name)
            metric = manifest.metrics.get(str(self.info.get("checkpoint_metric")))
            checkpoints.append(Checkpoint(name=name, step=manifest.step, metric=metric, path=path))
        return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)

    @functools.cached_property
    def _store(self) -> Store | None:
        """Where the checkpoints are, if not in the folder."""
        return open_store(self.path, self.info, self._backend)

    def _read_manifests(self) -> Iterator[tuple[str, Manifest]]:
        for path in (self.path / "checkpoints").glob("step-*"):
            with contextlib.suppress(CheckpointError):
                checkpoint_step(path.name)
                yield path.name, read_manifest(path)

    def checkpoint(self, which: str) -> Checkpoint:
        """Return the checkpoint called `best` or `latest`, or one by its own name.

        Raises:
            CheckpointError: there is none, naming the nearest.
        """
        checkpoints = {checkpoint.name: checkpoint for checkpoint in self.checkpoints}
        name = read_pointer(self.path, which) or which
        if name in checkpoints:
            return checkpoints[name]
        if which == "latest" and checkpoints:  # the pointer is a convenience, the manifests are the truth
            return list(checkpoints.values())[-1]
        pointers = ["latest"] if checkpoints else []
        pointers += ["best"] if read_pointer(self.path, "best") in checkpoints else []
        names = [*checkpoints, *pointers]
        raise CheckpointError(
            f"{self.path} has no checkpoint {which!r}.{nearest(which, names)} There are {', '.join(names) or 'none'}"
        )

    def events(self) -> Iterator[dict[str, Any]]:
        """Read the events of the record in order; a torn last line is left out.

        Raises:
            RunFolderError: somebody damaged the record, naming the line.
        """
        return (event for _, event in self._read_record())

    def metrics(self) -> dict[str, Series]:
        """Read every metric, by its recorded name.

        Raises:
            RunFolderError: somebody damaged the record, naming the line.
        """
        import numpy as np

        steps: dict[str, list[Any]] = {}
        values: dict[str, list[float]] = {}
        for number, event in self._read_record():
            if event["event"] == "metrics":
                try:
                    step = np.int64(event["step"])
                    for name, value in event["metrics"].items():
                        values.setdefault(name, []).append(float(value))
                        steps.setdefault(name, []).append(step)
                except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                    raise RunFolderError(
                        f"{self._record}:{number} is damaged: expected a step, and numbers as metrics: {error!r}"
                    ) from None
        return {name: Series(np.array(steps[name]), np.array(values[name])) for name in steps}

    @property
    def _record(self) -> Path:
        return self.path / "record.jsonl"

    def _read_record(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number of each line of the record, and its event."""
        if not self._record.is_file():
            return
        try:
            with self._record.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.endswith(b"\n"):
                        yield number, self._parse_event(line, number)
        except OSError as error:
            raise RunFolderError(f"{self._record} cannot be read: {error}") from error

    def _parse_event(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RunFolderError(f"{self._record}:{number} is damaged: {error}") from None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise RunFolderError(f"{self._record}:{number} is damaged: expected an event, got {event!r:.60}")
        return event

    def load_model(self, model: "nn.Module", which: str = "best") -> "nn.Module":
        """Load the weights of a verified checkpoint into a model, which is returned.

        They are those that were validated: averaged ones, where a callback of the run averages.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged or of another model.
        """
        from blowtorch.checkpoint.frozen import load_verified_weights

        with self._fetched(self.checkpoint(which)) as directory:
            load_verified_weights(model, directory)
        return model

    @contextlib.contextmanager
    def stored_weights(self, which: str = "best") -> Iterator["StoredWeights"]:
        """Have the weights of a verified checkpoint inside, without a model; each tensor is read when it is used.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged.
        """
        from blowtorch.checkpoint.frozen import read_verified_weights
        from blowtorch.checkpoint.shards import StoredTensors

        checkpoint = self.checkpoint(which)
        with self._fetched(checkpoint) as directory:
            tensors = StoredTensors(read_verified_weights(directory, is_mapped=True))
            yield StoredWeights(checkpoint, tensors, tensors.outlines(), tuple(read_manifest(directory).frozen))

    @contextlib.contextmanager
    def _fetched(self, checkpoint: Checkpoint) -> Iterator[Path]:
        """Have a directory with the weights of a checkpoint and its manifest inside."""
        if self._store is None:
            yield checkpoint.path
        else:
            with self._store.weights_of(checkpoint.name) as directory:
                yield directory

    def __repr__(self) -> str:
        return f"<RunView {self.name} {self.status}>"


def read_pointer(folder: Path, which: str) -> str | None:
    """Return the name of the checkpoint that is the `best` or `latest` one of a run; None where no pointer says it."""
    if which not in POINTERS:
        return None
    try:
        return (folder / "checkpoints" / which).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def open_run(path: str | Path, checkpoint_backend: Any = None) -> RunView:
    """Open the folder of a run to read it.

    Args:
        path: the folder.
        checkpoint_backend: where its checkpoints are: a name, {name: options} or an object. The run has recorded it,
            but for secrets and for objects of its script.

    Raises:
        RunFolderError: it is none.
    """
    folder = Path(path).absolute()
    if not (folder / "run.yaml").is_file():
        raise RunFolderError(f"{str(path)!r} is no run folder: it holds no run.yaml")
    return RunView(folder, checkpoint_backend)


def find_runs(save_path: str | Path = "train_logs") -> list[RunView]:
    """Return the runs in a folder, newest first; a damaged one is left out with a warning."""
    return [view for path in _run_folders(Path(save_path)) if (view := _open_sound(path)) is not None]


def find_newest(save_path: str | Path, run_name: str | None, script: str) -> RunView | None:
    """Return the newest run of a name, or else of a script; None where there is none.

    Of the runs that come before it, only those are parsed that may be meant, and of the others none is opened.
    """
    if run_name is None and not script:
        return None  # runs that have no script either may be anybody's
    words = re.findall(r"[a-zA-Z0-9]+", script if run_name is None else safe_name(run_name))
    for path in _run_folders(Path(save_path)):
        view = _open_sound(path) if _may_hold(path / "run.yaml", words) else None
        if view is None:
            continue
        if run_name is not None and view.name.rpartition("-")[0] == safe_name(run_name):
            return view
        if run_name is None and view.info.get("script") == script:
            return view
    return None


def _run_folders(root: Path) -> Iterator[Path]:
    """Yield the folders that hold a run, newest first; each is looked at when it is asked for."""
    paths = sorted(root.iterdir(), key=_age, reverse=True) if root.is_dir() else []
    return (path for path in paths if (path / "run.yaml").is_file())


def _open_sound(path: Path) -> RunView | None:
    """Open a run; None and a warning if it is damaged."""
    try:
        return RunView(path)
    except RunFolderError as error:
        warn(f"{error}; the run is left out")
        return None


def _may_hold(path: Path, words: list[str]) -> bool:
    """Whether a `run.yaml` holds all of some words, which no writer of YAML divides, or is damaged."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return True
    return all(word in text for word in words) or not all(f"{key}:" in text for key in NEEDED)


def _age(path: Path) -> tuple[int, str]:
    return folder_number(path.name), path.name
