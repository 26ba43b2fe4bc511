"""A blowtorch checkpoint backend for every file system that fsspec reaches."""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blowtorch import RunInfo, hookimpl

__all__ = ["FsspecBackend"]


class FsspecBackend:
    """Checkpoints as files below a URL.

    Few stores can rename a folder in one piece, but each can put one small file so. The data of a checkpoint are
    therefore written to a place of their own, `data/<name>-<unique>/`, and become a checkpoint when `<name>.json`,
    which says where they are, is put.

    Args:
        url: where, such as `s3://bucket/folder`; below it, every run has a folder by its id.
        options: further arguments of the file system, such as `{"anon": True}`.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url
        self.options = dict(options or {})

    @hookimpl
    def checkpoint_open(self, run: RunInfo) -> None:
        """Reach the file system."""
        import fsspec

        self._files, path = fsspec.core.url_to_fs(self.url, **self.options)
        self._root = f"{path.rstrip('/')}/{run.id}"
        self._files.makedirs(f"{self._root}/data", exist_ok=True)

    @hookimpl
    def checkpoint_publish(self, name: str, directory: Path) -> None:
        """Put the files, then the one that makes them a checkpoint."""
        place = f"{self._root}/data/{name}-{uuid.uuid4().hex}"
        names = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()]
        if not names:
            raise FileNotFoundError(f"{directory} holds nothing to publish")
        for file in names:
            target = f"{place}/{file}"
            self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(directory / file), target)
            self._sync(target)
        self._put(f"{self._root}/{name}.json", json.dumps({"place": place, "files": names}).encode())
        self._remove_data(name, keep=place.rpartition("/")[2])

    @hookimpl
    def checkpoint_fetch(self, name: str, directory: Path, files: Sequence[str] | None) -> Path:
        """Get the files that are needed."""
        entry = self._read(name)
        if entry is None:
            raise FileNotFoundError(f"there is no checkpoint {name!r} in {self.url}")
        for file in entry["files"] if files is None else files:
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(f"{entry['place']}/{file}", str(directory / file))
        return directory

    @hookimpl
    def checkpoint_list(self) -> Sequence[str]:
        """The names for which there is a readable entry."""
        found = self._list(self._root)
        names = [file.removesuffix(".json") for file in found if file.endswith(".json")]
        return sorted((name for name in names if self._read(name)), key=lambda name: (len(name), name))

    @hookimpl
    def checkpoint_delete(self, name: str) -> None:
        """Remove the entry first, so that the checkpoint is never listed half there."""
        if f"{name}.json" in self._list(self._root):
            self._files.rm_file(f"{self._root}/{name}.json")
        self._remove_data(name)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            entry: dict[str, Any] = json.loads(self._files.cat_file(f"{self._root}/{name}.json"))
        except (FileNotFoundError, ValueError):  # gone meanwhile, or cut short
            return None
        return entry

    def _put(self, path: str, data: bytes) -> None:
        """Put a small file in one piece: stores of objects do so anyway, and elsewhere a rename does it."""
        temporary = f"{path}.tmp-{uuid.uuid4().hex}"
        self._files.pipe_file(temporary, data)
        self._sync(temporary)
        self._files.mv(temporary, path)
        self._sync(path.rpartition("/")[0])

    def _remove_data(self, name: str, keep: str = "") -> None:
        """Remove what earlier, replaced or interrupted attempts have put for a name."""
        for folder in self._list(f"{self._root}/data"):
            if folder.rpartition("-")[0] == name and folder != keep:
                self._files.rm(f"{self._root}/data/{folder}", recursive=True)

    def _list(self, path: str) -> list[str]:
        """The names in a folder as they are now; stores of objects have no empty folders."""
        self._files.invalidate_cache()
        try:
            return [each.rstrip("/").rpartition("/")[2] for each in self._files.ls(path, detail=False)]
        except FileNotFoundError:
            return []

    def _sync(self, path: str) -> None:
        """On this machine's own disks, have it written before going on; elsewhere the store has."""
        if "file" in self._files.protocol:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
