"""Where the checkpoints of a run are stored: a backend, and what the core asks of it."""

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from blowtorch.errors import BlowtorchError, CheckpointError
from blowtorch.folder.folder import RunFolder
from blowtorch.folder.manifest import UnknownFormatError, checkpoint_step, read_manifest, verify
from blowtorch.folder.provenance import versions
from blowtorch.hookspecs import CheckpointBackendSpec, RunInfo
from blowtorch.plugins import Plugin


class Store:
    """The checkpoints of one run, as its backend stores them.

    Args:
        folder: the run folder, in which checkpoints are made and fetched.
        backend: where they are stored.
        info: what the backend is told of the run.
    """

    def __init__(self, folder: RunFolder, backend: Plugin, info: RunInfo) -> None:
        self._folder = folder
        self._backend = backend
        backend.call(CheckpointBackendSpec.checkpoint_open, run=info)

    @property
    def is_local(self) -> bool:
        """Whether checkpoints stay in the run folder."""
        return self._backend.name == "local"

    def names(self) -> list[str]:
        """Return the names of all complete checkpoints, in ascending order."""
        return list(self._backend.call(CheckpointBackendSpec.checkpoint_list))

    def publish(self, name: str, directory: Path) -> None:
        """Store a finished directory under a name; when this returns, it is durable."""
        self._backend.call(CheckpointBackendSpec.checkpoint_publish, name=name, directory=directory)

    def delete(self, name: str) -> None:
        """Delete a checkpoint."""
        self._backend.call(CheckpointBackendSpec.checkpoint_delete, name=name)

    @contextlib.contextmanager
    def fetched(self, name: str) -> Iterator[tuple[Path, list[str]]]:
        """Have the directory of a checkpoint inside, with what is wrong with it, in words.

        Raises:
            CheckpointError: it was written by a version whose format this one does not read.
        """
        with self._scratch() as scratch:
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
                directory, problems = scratch, [str(error)]
            else:
                problems = verify(directory)
            yield directory, problems

    def measured(self, names: Sequence[str], metric: str) -> list[tuple[float, str]]:
        """Return the value of a metric and the name of each checkpoint in whose manifest it stands as a number."""
        measured = []
        for name in names:
            with self._scratch() as scratch:
                try:
                    value = read_manifest(self._fetch(name, scratch, ["manifest.json"])).metrics.get(metric)
                except (OSError, BlowtorchError):
                    continue  # a damaged one is never among the best
            if value is not None and not math.isnan(value):
                measured.append((value, name))
        return measured

    def put_aside_after(self, step: int) -> None:
        """Put aside what lies behind the step from which the run goes on, without losing it."""
        for name in self.names():
            if checkpoint_step(name) > step:
                aside = self._folder.checkpoints / f"aside-{name}"
                shutil.rmtree(aside, ignore_errors=True)
                with self._scratch() as scratch:
                    shutil.copytree(self._fetch(name, scratch), aside)
                self.delete(name)

    def _fetch(self, name: str, scratch: Path, files: Sequence[str] | None = None) -> Path:
        return Path(
            self._backend.call(CheckpointBackendSpec.checkpoint_fetch, name=name, directory=scratch, files=files)
        )

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=".tmp-fetch-", dir=self._folder.checkpoints) as directory:
            yield Path(directory)
