"""Keeps checkpoints in the run folder."""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from blowtorch import CheckpointError, RunInfo, hookimpl


class LocalBackend:
    """Checkpoints as directories in `checkpoints/` of the run folder, each published by one rename.

    A directory whose name begins with a dot is on its way in (`.tmp-`), about to be replaced (`.old-`) or on its way
    out (`.deleted-`); `checkpoint_open` cleans up after a process that was killed with one of them at hand.
    """

    @hookimpl
    def checkpoint_open(self, run: RunInfo, reads_only: bool = False) -> None:
        """Undo or finish what a process that was killed left half done."""
        self.folder = Path(run.folder) / "checkpoints"
        if reads_only:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob(".old-*"):
            target = self.folder / old.name.removeprefix(".old-")
            if not target.exists():  # killed between the two renames of a replacement
                old.rename(target)
        for path in self.folder.iterdir():
            if path.name.startswith((".tmp-", ".old-", ".deleted-")):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @hookimpl
    def checkpoint_publish(self, name: str, directory: Path) -> None:
        """Rename the finished directory to its name."""
        target = self._path(name)
        directory = self._bring_here(directory)
        old = self.folder / f".old-{name}"
        is_replaced = target.exists()
        if is_replaced:  # Python has no call that exchanges two directories; `checkpoint_open` mends what is cut here
            target.rename(old)
        try:
            directory.rename(target)
        except OSError:
            if is_replaced:
                old.rename(target)
            raise
        _sync(self.folder)
        if is_replaced:
            # What cannot be removed now has no name any more and is removed when the run is next opened.
            shutil.rmtree(self._rename_away(old), ignore_errors=True)

    @hookimpl
    def checkpoint_fetch(self, name: str, directory: Path, files: Sequence[str] | None) -> Path:
        """Return the directory itself, which needs no copy."""
        path = self._path(name)
        if not path.is_dir():
            raise FileNotFoundError(f"there is no checkpoint {name!r} in {self.folder}")
        return path

    @hookimpl
    def checkpoint_list(self) -> Sequence[str]:
        """Return the names of the directories that hold a manifest; one that somebody else has made is passed over."""
        names = [path.parent.name for path in self.folder.glob("step-*/manifest.json")]
        names = [name for name in names if re.fullmatch(r"step-\d+", name)]
        return sorted(names, key=lambda name: (len(name), name))  # by number, however many digits it has

    @hookimpl
    def checkpoint_delete(self, name: str) -> None:
        """Rename the directory, so that it is never listed half there, and remove it."""
        path = self._path(name)
        if path.exists():
            shutil.rmtree(self._rename_away(path))

    def _path(self, name: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise CheckpointError(f"expected a name of letters, digits, '-', '_' and '.', got {name!r}")
        return self.folder / name

    def _rename_away(self, path: Path) -> Path:
        return path.rename(self.folder / f".deleted-{path.name}-{uuid.uuid4().hex}")

    def _bring_here(self, directory: Path) -> Path:
        """Move the directory beside those that are published, so that one rename publishes it, and return its path."""
        if directory.parent.resolve() == self.folder.resolve():
            return directory
        here = self.folder / f".tmp-{directory.name}-{uuid.uuid4().hex}"
        try:
            return directory.rename(here)
        except OSError as error:
            if error.errno != errno.EXDEV:  # on another file system
                raise
        try:
            shutil.copytree(directory, here)
            for path in [*here.rglob("*"), here]:
                _sync(path)
        except OSError:  # a disk that is full should not stay full of this
            shutil.rmtree(here, ignore_errors=True)
            raise
        return here


def _sync(path: Path) -> None:
    """Make a file, or the names in a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
