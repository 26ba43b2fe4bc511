"""Where the checkpoints of a run are stored: a backend, and what the core asks of it."""

import contextlib
import dataclasses
import importlib.metadata
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blowtorch.errors import BlowtorchError, CheckpointError, nearest
from blowtorch.folder.folder import RunFolder
from blowtorch.folder.manifest import (
    FILE_NAME,
    Manifest,
    UnknownFormatError,
    checkpoint_step,
    find_problems,
    read_manifest,
)
from blowtorch.hookspecs import CheckpointBackendSpec, RunInfo
from blowtorch.plugins import Plugin

if TYPE_CHECKING:
    from blowtorch.parallel.world import World  # which imports torch; whoever reads runs does without

_NONE_IS_LEFT = "there is no earlier one, so the run begins anew, and what it has saved is put aside"


class Store:
    """The checkpoints of one run, as its backend stores them.

    Args:
        folder: the run folder, in which checkpoints are made and fetched.
        backend: where they are stored.
        info: what the backend is told of the run.
        reads_only: leave the run folder and the store as they are.

    Attributes:
        folder: in which checkpoints are made.

    Raises:
        ExtensionError: the backend cannot be opened.
    """

    def __init__(self, folder: RunFolder, backend: Plugin, info: RunInfo, reads_only: bool = False) -> None:
        self.folder = folder.checkpoints
        self._folder = folder
        self._backend = backend
        self._info = info
        self._reads_only = reads_only
        backend.call(CheckpointBackendSpec.checkpoint_open, run=info, reads_only=reads_only)

    @property
    def is_local(self) -> bool:
        """Whether checkpoints stay in the run folder."""
        return self._backend.name == "local"

    def of_another(self, folder: RunFolder) -> "Store":
        """Open the same backend for the run of another folder, which is continued."""
        own_folder = (
            None if self._info.own_folder is None else folder.own_folder(self._backend.kind, self._backend.name)
        )
        info = dataclasses.replace(
            self._info, id=folder.id, name=folder.name, folder=folder.path, own_folder=own_folder, resumed=True
        )
        return Store(folder, self._backend, info, reads_only=True)

    def names(self) -> list[str]:
        """Return the names of all complete checkpoints, in ascending order."""
        return list(self._backend.call(CheckpointBackendSpec.checkpoint_list))

    def path_of(self, name: str) -> Path:
        """Return the directory of a checkpoint, or words where there is none on this machine."""
        path = self._folder.checkpoints / name
        return path if path.is_dir() else Path(f"{name} in checkpoint backend {self._backend.name!r}")

    def publish(self, name: str, directory: Path) -> None:
        """Store a finished directory under a name; when this returns, it is durable."""
        self._backend.call(CheckpointBackendSpec.checkpoint_publish, name=name, directory=directory)

    def delete(self, name: str) -> None:
        """Delete a checkpoint."""
        self._backend.call(CheckpointBackendSpec.checkpoint_delete, name=name)

    @contextlib.contextmanager
    def fetched(self, name: str, world: "World", all_reach: bool) -> Iterator[tuple[Path, list[str]]]:
        """Have the directory of a checkpoint inside, with what is wrong with it, in words.

        Several processes ask for it at once. If all reach one directory, each fetches and verifies some of the files.

        Args:
            name: of the checkpoint.
            world: the processes.
            all_reach: whether all of them reach the run folder.

        Raises:
            CheckpointError: it was written by a version whose format this one does not read.
        """
        is_common = self.is_local or (all_reach and not self._reads_only)
        with self._common_scratch(world) if is_common and not self.is_local else self._scratch() as scratch:
            try:
                directory, problems = self._fetch_share(name, scratch, world if is_common else None)
            except UnknownFormatError as error:
                writer = self._folder.read_info().get("versions", {}).get("blowtorch-core", "?")
                raise CheckpointError(
                    f"checkpoint {name} was written by another version, blowtorch-core {writer}, and this is "
                    f"{importlib.metadata.version('blowtorch-core')}: {error}; continue the run with the version that "
                    f"wrote it"
                ) from error
            except (OSError, BlowtorchError) as error:
                directory, problems = scratch, [str(error)]
            all_problems = [problem for of_one in world.gather(problems) for problem in of_one]
            yield directory, list(dict.fromkeys(all_problems))

    def _fetch_share(self, name: str, scratch: Path, world: "World | None") -> tuple[Path, list[str]]:
        """Fetch what is up to this process, or all of it, and say what is wrong with that."""
        with self._scratch() as own:
            manifest = read_manifest(self._fetch(name, own, [FILE_NAME]))
        rank, size = (0, 1) if world is None else (world.rank, world.size)
        names, own_manifest = manifest.share(rank, size), [] if rank else [FILE_NAME]
        directory = self._fetch(name, scratch, [*own_manifest, *names])
        return directory, find_problems(directory, manifest, names)

    @contextlib.contextmanager
    def newest_good(
        self, warn: Callable[[str], None], at_most: str | None, world: "World", all_reach: bool
    ) -> Iterator[tuple[str | None, Path]]:
        """Have the newest checkpoint that is complete and undamaged inside, `at_most` this one; else None as its name.

        Several processes ask for it at once, and have the same one.

        Args:
            warn: of one that is damaged; called by the first process.
            at_most: the name of the newest that is wanted.
            world: the processes.
            all_reach: whether all of them reach the run folder.

        Raises:
            CheckpointError: it was written by a version whose format this one does not read, or there is no such one.
        """
        names = world.decide(lambda: self._list_newest(at_most))
        for name in names:
            with self.fetched(name, world, all_reach) as (directory, problems):
                if not problems:
                    yield name, directory
                    return
            if world.is_first:
                then = _NONE_IS_LEFT if name == names[-1] else "an earlier one is taken"
                warn(f"checkpoint {name} is damaged ({'; '.join(problems)}); {then}")
        yield None, self._folder.checkpoints

    def _list_newest(self, at_most: str | None) -> list[str]:
        """Return the names of the checkpoints, newest first, beginning with `at_most`."""
        names = self.names()
        if at_most is not None and at_most not in names:
            raise CheckpointError(
                f"{self._folder.path} has no checkpoint {at_most!r}.{nearest(at_most, names)} There are "
                f"{', '.join(names) or 'none'}"
            )
        return [name for name in names[::-1] if at_most is None or checkpoint_step(name) <= checkpoint_step(at_most)]

    @contextlib.contextmanager
    def weights_of(self, name: str) -> Iterator[Path]:
        """Have a directory with the weights of a checkpoint and its manifest inside, unverified."""
        with self._scratch() as scratch:
            shards = read_manifest(self._fetch(name, scratch, [FILE_NAME])).shards
            yield self._fetch(name, scratch, [FILE_NAME, "model.pt", *shards])

    def manifests(self, names: Sequence[str]) -> Iterator[tuple[str, Manifest]]:
        """Yield the name and the manifest of each checkpoint whose manifest can be read."""
        for name in names:
            with self._scratch() as scratch:
                try:
                    manifest = read_manifest(self._fetch(name, scratch, [FILE_NAME]))
                except (OSError, BlowtorchError):
                    continue
            yield name, manifest

    def measured(self, names: Sequence[str], metric: str) -> list[tuple[float, str]]:
        """Return the value of a metric and the name of each checkpoint in whose manifest it stands as a number."""
        values = [(manifest.metrics.get(metric), name) for name, manifest in self.manifests(names)]
        return [(value, name) for value, name in values if value is not None and not math.isnan(value)]

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
        place = None if self._reads_only else self._folder.checkpoints
        with tempfile.TemporaryDirectory(prefix=".tmp-fetch-", dir=place) as directory:
            yield Path(directory)

    @contextlib.contextmanager
    def _common_scratch(self, world: "World") -> Iterator[Path]:
        """Have a directory in the run folder that is there until all processes have done with it."""
        with contextlib.ExitStack() as made:
            yield world.decide(lambda: made.enter_context(self._scratch()))
            world.gather(None)
