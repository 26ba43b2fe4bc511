"""The manifest of a checkpoint: what it is, and the size and checksum of each of its files.

It is written last. A directory without one is no checkpoint, and one whose files differ from it is damaged.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from blowtorch.errors import CheckpointError
from blowtorch.folder.files import replace_files

FORMAT = 1
ALGORITHM = "xxh3_128"
FILE_NAME = "manifest.json"

_PREFIX = "step-"
_SHARD = "shard-"
_BLOCK = 1 << 18  # what is read stays in the processor's cache until it is hashed; 1 MiB takes three times as long
_WRITTEN_AT_ONCE = 8 << 20  # one call of the system takes at most 2 GiB, and each returns to the interpreter's lock


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    Attributes:
        step: optimizer steps done.
        epoch: the epoch under way; the first is 1.
        metrics: what was recorded at just that step.
        files: name → `{"size": bytes, "xxh3_128": hex}`.
        frozen: parameter → `{"xxh3_128": hex}` of what was left out, since it is not trained.
    """

    step: int
    epoch: int
    metrics: Mapping[str, float]
    files: Mapping[str, Mapping[str, Any]]
    frozen: Mapping[str, Mapping[str, str]]

    @property
    def shards(self) -> list[str]:
        """The files in which each of several processes has written its pieces of a divided model."""
        return [name for name in self.files if name.startswith(_SHARD)]

    def share(self, rank: int, size: int) -> list[str]:
        """Return the files that are up to one of several processes; of as many as have written it, its own shard.

        >>> names = ["model.pt", shard_name(0, 2), shard_name(1, 2)]
        >>> Manifest(step=0, epoch=0, metrics={}, files=dict.fromkeys(names, {}), frozen={}).share(1, 2)
        ['shard-00002-of-00002.pt']
        """
        return [*sorted(self.shards), *sorted(self.files.keys() - set(self.shards))][rank::size]


class UnknownFormatError(CheckpointError):
    """A checkpoint of a format that this version does not read; it may well be undamaged."""


class HashedFile(io.RawIOBase):
    """A new file that counts its size and checksum while it is written, and is durable once it is closed.

    The data are neither copied nor kept: to write a checkpoint of any size needs no memory.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self._digest = _new_digest(ALGORITHM)
        self._size = 0

    def writable(self) -> bool:
        """Say that this file can be written."""
        return True

    def write(self, data: Any) -> int:
        """Write all of `data`; a full disk raises an `OSError`."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            block = view[done : done + _WRITTEN_AT_ONCE]
            count = self._file.write(block)
            self._digest.update(block[:count])
            done += count
        self._size += done
        return done

    def entry(self) -> dict[str, Any]:
        """Return what the manifest says of the file."""
        return {"size": self._size, ALGORITHM: self._digest.hexdigest()}

    def close(self) -> None:
        """Make the file durable, and close it."""
        if not self.closed:
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()
        super().close()


def shard_name(rank: int, size: int) -> str:
    """Return the name of the file in which a process writes its pieces of a divided model.

    >>> shard_name(0, 4)
    'shard-00001-of-00004.pt'
    """
    return f"{_SHARD}{rank + 1:05d}-of-{size:05d}.pt"


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint of a step.

    >>> checkpoint_name(120)
    'step-00000120'
    """
    return f"{_PREFIX}{step:08d}"


def checkpoint_step(name: str) -> int:
    """Return the step of a checkpoint, from its name.

    Raises:
        CheckpointError: it is no name of a checkpoint.
    """
    digits = name.removeprefix(_PREFIX)
    if digits == name or not digits.isdigit():
        raise CheckpointError(f"expected the name of a checkpoint, such as {checkpoint_name(120)!r}, got {name!r}")
    return int(digits)


def write_manifest(
    directory: Path,
    step: int,
    epoch: int,
    metrics: Mapping[str, float],
    files: Mapping[str, Mapping[str, Any]] | None = None,
    frozen: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write the manifest of a directory whose files are there and durable; then it is durable too.

    Args:
        directory: the checkpoint.
        step: optimizer steps done.
        epoch: the epoch under way.
        metrics: what was recorded at just that step.
        files: the entry of each file, from `HashedFile`; without them the files are read.
        frozen: the digests of parameters that were left out, by name.
    """
    if files is None:
        paths = [path for path in sorted(directory.iterdir()) if path.name != FILE_NAME]
        files = {path.name: {"size": path.stat().st_size, ALGORITHM: checksum(path, ALGORITHM)} for path in paths}
    content = {
        "format": FORMAT,
        "step": step,
        "epoch": epoch,
        "metrics": {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()},
        "files": dict(files),
        **({"frozen": dict(frozen)} if frozen else {}),
    }
    replace_files(directory, {FILE_NAME: json.dumps(content, indent=2)})


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises:
        UnknownFormatError: it is of a format that this version does not know.
        CheckpointError: it is missing or damaged.
    """
    path = directory / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        written = content["format"]
        if written != FORMAT:
            raise UnknownFormatError(f"{path} has format {written!r}, and this version reads format {FORMAT}")
        metrics = {name: float(value) for name, value in content["metrics"].items()}
        files, frozen = dict(content["files"]), dict(content.get("frozen", {}))
        return Manifest(int(content["step"]), int(content["epoch"]), metrics, files, frozen)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error


def verify(directory: Path, files: Sequence[str] | None = None) -> list[str]:
    """Compare the files of a checkpoint with its manifest, and return what is wrong with them, in words.

    Args:
        directory: the checkpoint.
        files: only these files, or None for all.
    """
    try:
        manifest = read_manifest(directory)
    except CheckpointError as error:
        return [str(error)]
    return find_problems(directory, manifest, [*manifest.files] if files is None else files)


def find_problems(directory: Path, manifest: Manifest, files: Sequence[str]) -> list[str]:
    """Compare files of a checkpoint with its manifest, and return what is wrong with them, in words."""
    return [problem for name in files if (problem := _find_problem(directory, name, manifest)) is not None]


def _find_problem(directory: Path, name: str, manifest: Manifest) -> str | None:
    path = directory / name
    if name not in manifest.files:
        return f"the manifest names no {name}"
    try:
        expected = dict(manifest.files[name])
        size = path.stat().st_size
        if size != expected.pop("size"):
            return f"{name} has {size} bytes instead of {manifest.files[name]['size']}"
        if not expected:
            return f"the manifest has no checksum of {name}"
        for algorithm, digest in expected.items():
            if algorithm not in xxhash.algorithms_available | hashlib.algorithms_available:
                return f"{name} has a checksum of an unknown kind, {algorithm!r}"
            if checksum(path, algorithm) != digest:
                return f"{name} has another {algorithm} checksum than was written"
    except OSError as error:
        return f"{name} cannot be read: {error}"
    except (KeyError, TypeError, ValueError) as error:
        return f"what the manifest says of {name} is damaged: {error!r}"
    return None


def checksum(path: Path, algorithm: str) -> str:
    """Compute the checksum of a file, in hexadecimal."""
    digest = _new_digest(algorithm)
    block = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return str(digest.hexdigest())


def checksum_of(data: Any) -> dict[str, str]:
    """Return the checksum of data in memory, by its algorithm, as manifests keep it."""
    digest = _new_digest(ALGORITHM)
    digest.update(data)
    return {ALGORITHM: digest.hexdigest()}


def _new_digest(algorithm: str) -> Any:
    return getattr(xxhash, algorithm)() if algorithm in xxhash.algorithms_available else hashlib.new(algorithm)
