"""Reads the folders of runs, without torch and without disturbing whoever trains them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from blowtorch.config.config import Config, load_config
from blowtorch.errors import CheckpointError, RunFolderError, nearest, warn
from blowtorch.folder.folder import folder_number, read_yaml, safe_name
from blowtorch.folder.lock import is_owned
from blowtorch.folder.manifest import read_manifest
from blowtorch.state import Checkpoint

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


class RunView:
    """A run's folder, as anybody may read it.

    Attributes:
        path: the folder.
        info: the content of `run.yaml`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info = read_yaml(path / "run.yaml")

    @property
    def id(self) -> str:
        """Unique for ever."""
        return str(self.info["id"])

    @property
    def name(self) -> str:
        """Such as `brave-otter-3`."""
        return str(self.info["name"])

    @property
    def number(self) -> int:
        """The number at the end of the name."""
        return int(self.info["number"])

    @property
    def status(self) -> str:
        """`running`, `finished`, `stopped`, `failed`, or `lost`: running without a living owner; as it is now."""
        has_owner = is_owned(self.path)  # asked first: an owner that goes has written its last status before
        status = str(read_yaml(self.path / "run.yaml")["status"])
        return "lost" if status == "running" and not has_owner else status

    @property
    def config(self) -> Config:
        """The resolved configuration."""
        return load_config(read_yaml(self.path / "config.yaml"), [], [], lambda source: {})

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints in the folder, in ascending order; they are not verified."""
        found = []
        for path in (self.path / "checkpoints").glob("step-*"):
            try:
                manifest = read_manifest(path)
            except CheckpointError:
                continue
            metric = manifest.metrics.get(str(self.info.get("checkpoint_metric")))
            found.append(Checkpoint(path.name, manifest.step, metric, path))
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def checkpoint(self, which: str) -> Checkpoint:
        """The checkpoint called `best` or `latest`, or by its own name.

        Raises:
            CheckpointError: there is none, naming the nearest.
        """
        checkpoints = {checkpoint.name: checkpoint for checkpoint in self.checkpoints}
        pointer = self.path / "checkpoints" / which
        name = pointer.read_text().strip() if which in ("best", "latest") and pointer.is_file() else which
        if name in checkpoints:
            return checkpoints[name]
        if which == "latest" and checkpoints:  # the pointer is a convenience, the manifests are the truth
            return list(checkpoints.values())[-1]
        names = [*checkpoints, *(["latest"] if checkpoints else [])]
        raise CheckpointError(
            f"{self.path} has no checkpoint {which!r}.{nearest(which, names)} There are {', '.join(names) or 'none'}"
        )

    def events(self) -> Iterator[dict[str, Any]]:
        """The events of the record in order; a torn last line is left out.

        Raises:
            RunFolderError: somebody damaged the record, naming the line.
        """
        path = self.path / "record.jsonl"
        if not path.is_file():
            return
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    try:
                        event = json.loads(line)
                    except ValueError as error:
                        raise RunFolderError(f"{path}:{number} is damaged: {error}") from None
                    yield event

    def metrics(self) -> dict[str, Series]:
        """Every metric by its recorded name."""
        import numpy as np

        steps: dict[str, list[int]] = {}
        values: dict[str, list[float]] = {}
        for event in self.events():
            if event["event"] == "metrics":
                for name, value in event["metrics"].items():
                    steps.setdefault(name, []).append(event["step"])
                    values.setdefault(name, []).append(float(value))
        return {
            name: Series(np.array(steps[name], dtype=np.int64), np.array(values[name], dtype=np.float64))
            for name in steps
        }

    def load_model(self, model: "nn.Module", which: str = "best") -> "nn.Module":
        """Load the weights of a verified checkpoint into a model, which is returned.

        They are those that were validated: averaged ones, where a callback of the run averages.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged or of another model.
        """
        from blowtorch.checkpoint.tensors import load_verified_weights

        load_verified_weights(model, self.checkpoint(which).path)
        return model

    def __repr__(self) -> str:
        return f"<RunView {self.name} {self.status}>"


def open_run(path: str | Path) -> RunView:
    """Open the folder of a run to read it.

    Raises:
        RunFolderError: it is none.
    """
    folder = Path(path).absolute()
    if not (folder / "run.yaml").is_file():
        raise RunFolderError(f"{str(path)!r} is no run folder: it holds no run.yaml")
    return RunView(folder)


def find_runs(save_path: str | Path = "train_logs") -> list[RunView]:
    """The runs in a folder, newest first; a damaged one is left out with a warning."""
    root = Path(save_path)
    found = [path for path in root.iterdir() if (path / "run.yaml").is_file()] if root.is_dir() else []
    runs = []
    for path in sorted(found, key=_age, reverse=True):
        try:
            view = RunView(path)
        except RunFolderError as error:
            warn(f"{error}; the run is left out")
            continue
        if missing := {"id", "name", "number", "status"} - view.info.keys():
            warn(f"{path / 'run.yaml'} is damaged, it has no {', '.join(sorted(missing))}; the run is left out")
            continue
        runs.append(view)
    return runs


def find_newest(save_path: str | Path, run_name: str | None, script: str) -> RunView | None:
    """The newest run of a name, or else of a script; None where there is none."""
    for view in find_runs(save_path):
        if run_name is not None and view.name.rpartition("-")[0] == safe_name(run_name):
            return view
        if run_name is None and view.info.get("script") == script:
            return view
    return None


def _age(path: Path) -> tuple[int, str]:
    return folder_number(path.name), path.name
