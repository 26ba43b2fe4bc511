"""Keeps checkpoints in the run folder."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from blowtorch import CheckpointError, RunInfo, hookimpl


class LocalBackend:
    """Checkpoints as directories below `checkpoints/` in the run folder; each is published by one rename."""

    @hookimpl
    def checkpoint_open(self, run: RunInfo) -> None:
        """Finish or undo what a process that was killed left half done."""
        self.folder = Path(run.folder) / "checkpoints"
        self.folder.mkdir(exist_ok=True)
        for path in sorted(self.folder.glob(".old-*")):
            name = path.name.removeprefix(".old-").rpartition("-")[0]
            if not (self.folder / name).exists():  # killed between the two renames of a replacement
                path.rename(self.folder / name)
        for leftover in self.folder.iterdir():
            if leftover.name.startswith((".tmp-", ".old-", ".deleted-")):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    @hookimpl
    def checkpoint_publish(self, name: str, directory: Path) -> None:
        """Rename the finished directory to its name."""
        target = self._path(name)
        if directory.stat().st_dev != self.folder.stat().st_dev:
            copy = Path(tempfile.mkdtemp(prefix=f".tmp-{name}-", dir=self.folder))
            shutil.copytree(directory, copy, dirs_exist_ok=True)
            for path in [*copy.iterdir(), copy]:
                _sync(path)
            directory = copy
        old = None
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".old-{name}-", dir=self.folder))
            target.rename(old)
        directory.rename(target)
        _sync(self.folder)
        if old is not None:
            shutil.rmtree(old)

    @hookimpl
    def checkpoint_fetch(self, name: str, directory: Path, files: Sequence[str] | None) -> Path:
        """The directory itself."""
        path = self._path(name)
        if not path.is_dir():
            raise FileNotFoundError(f"there is no checkpoint {name!r} in {self.folder}")
        return path

    @hookimpl
    def checkpoint_list(self) -> Sequence[str]:
        """The names of the directories that hold a manifest."""
        return sorted(path.parent.name for path in self.folder.glob("step-*/manifest.json"))

    @hookimpl
    def checkpoint_delete(self, name: str) -> None:
        """Rename the directory, so that it is never listed half there, and remove it."""
        path = self._path(name)
        if path.exists():
            doomed = Path(tempfile.mkdtemp(prefix=f".deleted-{name}-", dir=self.folder))
            path.rename(doomed)
            shutil.rmtree(doomed)

    def _path(self, name: str) -> Path:
        if not name or name != Path(name).name or name.startswith("."):
            raise CheckpointError(f"expected a name that can be a directory's, got {name!r}")
        return self.folder / name


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
