"""Checkpoints of a model that is divided among processes: each writes its own pieces, and any number of them read.

The file `shard-00001-of-00004.pt` holds the pieces of the first of four processes, by the file and the place that they
belong to. There, a tensor without memory, on the device `meta`, stands for the whole.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blowtorch.checkpoint.plain import is_leaf
from blowtorch.checkpoint.tensors import read_tensors
from blowtorch.data.tree import Place, map_leaves, walk
from blowtorch.errors import CheckpointError, NotFiniteError
from blowtorch.folder.files import replace_files
from blowtorch.folder.manifest import read_manifest, shard_name
from blowtorch.parallel.pieces import Offsets, TensorInPieces, is_divided, is_first_of_alike, offsets_of, own_piece

_SECONDS = 0.02  # how often the first process looks whether the others have written


@dataclass(frozen=True)
class Piece:
    """What a process has of a divided tensor.

    Attributes:
        shape: of the whole.
        offsets: where the piece begins.
        is_written: whether it is this process that writes it, of those that have the same.
    """

    shape: tuple[int, ...]
    offsets: Offsets
    is_written: bool


def find_pieces(files: Mapping[str, Any]) -> dict[Place, Piece]:
    """Return what this process has of each divided tensor in the content of files, by its place."""
    return {
        place: Piece(tuple(leaf.shape), offsets_of(leaf), is_first_of_alike(leaf))
        for place, leaf in walk(files, is_leaf)
        if is_divided(leaf)
    }


def with_own_pieces(files: Mapping[str, Any]) -> Any:
    """Return the content of files with what this process has of each divided tensor in the place of that."""
    return map_leaves(lambda leaf: own_piece(leaf) if is_divided(leaf) else leaf, files, is_leaf)


def take_out(files: Mapping[str, Any], pieces: Mapping[Place, Piece]) -> tuple[dict[str, Any], dict[Place, Any]]:
    """Return the content of files without what is divided, and the content of the shard of this process.

    Args:
        files: with its own pieces in their places.
        pieces: that it has, by their places.
    """
    shard: dict[Place, Any] = {}
    leaves: list[Any] = []
    for place, leaf in walk(files, is_leaf):
        piece = pieces.get(place)
        leaves.append(leaf if piece is None else torch.empty(piece.shape, dtype=leaf.dtype, device="meta"))
        if piece is not None and piece.is_written and leaf.numel():
            shard[place] = [list(piece.offsets), leaf]
    remaining = iter(leaves)
    return map_leaves(lambda leaf: next(remaining), files, is_leaf), shard


def report(directory: Path, name: str, entry: Mapping[str, Any] | None, error: BaseException | None) -> None:
    """Let the first process know what has become of the shard of this one; both may wait for nobody in a thread."""
    told = {"entry": entry, "error": None if error is None else str(error)}
    replace_files(directory, {_report_name(name): json.dumps(told | {"is_spoiled": isinstance(error, NotFiniteError)})})


def collect(directory: Path, size: int, check_goes_on: Callable[[], None]) -> dict[str, Any]:
    """Return the entries of the shards of all processes but the first, once they are written.

    Raises:
        NotFiniteError: training has spoiled what one has.
        CheckpointError: one could not write its shard, or `check_goes_on` says that this is given up.
    """
    entries = {}
    for rank in range(1, size):
        name = shard_name(rank, size)
        path = directory / _report_name(name)
        while not path.exists():
            check_goes_on()
            time.sleep(_SECONDS)
        told = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        if told["error"] is not None:
            raise (NotFiniteError if told["is_spoiled"] else CheckpointError)(f"process {rank}: {told['error']}")
        entries[name] = told["entry"]
    return entries


def read_files(directory: Path, names: Iterable[str], is_mapped: bool = False) -> list[Any]:
    """Read files of a verified checkpoint, with what its shards hold of them.

    Args:
        directory: of the checkpoint.
        names: of the files.
        is_mapped: read each tensor when it is used, and have a `TensorInPieces` for each that was divided; otherwise
            these are put together.

    Raises:
        CheckpointError: a file holds something else than tensors and plain values, or a shard is missing.
    """
    contents = {name: read_tensors(directory / name, is_mapped) for name in names}
    shards = [read_tensors(directory / name, is_mapped=True) for name in read_manifest(directory).shards]
    if not shards:
        return list(contents.values())
    pieces: dict[Place, list[tuple[Offsets, Tensor]]] = {}
    for shard in shards:
        for place, (offsets, tensor) in shard.items():
            pieces.setdefault(place, []).append((tuple(offsets), tensor))
    leaves = []
    for place, leaf in walk(contents, is_leaf):
        if isinstance(leaf, Tensor) and leaf.is_meta:
            divided = TensorInPieces(repr(place[-1]), leaf.shape, leaf.dtype, pieces.get(place, ()))
            leaf = divided if is_mapped else divided.whole()
        leaves.append(leaf)
    remaining = iter(leaves)
    return list(map_leaves(lambda leaf: next(remaining), contents, is_leaf).values())


class StoredTensors(Mapping[str, Any]):
    """What a file of a checkpoint holds, by name; a divided tensor is put together each time that it is asked for.

    Args:
        content: of the file, as `read_files` gives it mapped.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content

    def __getitem__(self, name: str) -> Any:
        value = self._content[name]
        return value.whole() if isinstance(value, TensorInPieces) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def outlines(self) -> dict[str, Any]:
        """Return what has the shape and dtype of each, by name: itself, or a tensor on `meta` for a divided one."""
        return {name: _outline(value) for name, value in self._content.items()}


def _outline(value: Any) -> Any:
    is_in_pieces = isinstance(value, TensorInPieces)
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if is_in_pieces else value


def _report_name(shard: str) -> str:
    return f".{shard}.json"
