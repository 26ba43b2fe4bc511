"""What a checkpoint will hold, copied at one moment, and how it becomes files while training goes on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blowtorch.checkpoint.shards import Piece, collect, report, take_out
from blowtorch.checkpoint.tensors import write_tensors
from blowtorch.data.tree import Place
from blowtorch.folder.manifest import shard_name


@dataclass(frozen=True)
class Copied:
    """The content of a checkpoint, still in memory.

    Attributes:
        files: name → content; with its own pieces where the model is divided among processes.
        pieces: what these are, by their places; empty where the model is not divided.
        frozen: the digests of the parameters that are left out.
        directory: in which its files are written, before it is published.
    """

    files: Mapping[str, Any]
    pieces: Mapping[Place, Piece]
    frozen: Mapping[str, Mapping[str, str]]
    directory: Path

    def write(self, rank: int, size: int, check_goes_on: Callable[[], None]) -> dict[str, Any]:
        """Write the files that are up to a process, and return the entries of the manifest to the first one.

        Args:
            rank: of the process.
            size: how many there are; 1 where each has all of the model, and the first alone writes.
            check_goes_on: raises an error if this is given up meanwhile.

        Raises:
            OSError: the disk is full, say.
            NotFiniteError: training has spoiled what another process has.
            CheckpointError: another process could not write its shard.
        """
        files: dict[str, Any] = dict(self.files)
        if size > 1:
            files, shard = take_out(files, self.pieces)
            files = {shard_name(rank, size): shard, **(files if rank == 0 else {})}
        entries = {}
        for name, content in files.items():
            check_goes_on()
            entries[name] = write_tensors(content, self.directory / name)
        if rank == 0:
            return entries | collect(self.directory, size, check_goes_on)
        report(self.directory, shard_name(rank, size), entries[shard_name(rank, size)], None)
        return entries

    def fail(self, rank: int, size: int, error: BaseException) -> None:
        """Let the first process know that this one cannot write its shard."""
        if rank:
            report(self.directory, shard_name(rank, size), None, error)
