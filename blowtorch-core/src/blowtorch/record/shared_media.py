"""Images and the like that several processes log: what all log counts once, and what only others log is not lost."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from blowtorch.parallel.world import World
from blowtorch.progress import Progress
from blowtorch.record.lines import Lines
from blowtorch.record.media import Media
from blowtorch.record.record import Record

_DIGITS = 6  # bytes of a digest, which a float holds exactly

Key = tuple[int, str, str]  # the step, what it is, and its name


class SharedMedia(Media):
    """Keeps what one of several processes logs besides metrics.

    Of what was logged under one name at one step, that of the first process is kept; where it has logged nothing of
    that name, that of the next one which has. The others keep what they log until all meet, files in a folder of their
    own, and then give to the first what it lacks.

    Args:
        world: the processes.
        folder: the run folder.
        record: where each is recorded.
        progress: of the run.
        lines: warn of what could not be kept.
    """

    def __init__(self, world: World, folder: Path, record: Record, progress: Progress, lines: Lines) -> None:
        super().__init__(folder, record, progress, lines)
        self._world = world
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._since: list[tuple[Key, dict[str, Any]]] = []  # what was logged since all met

    def digest(self) -> float:
        """Return a number that is the same in all processes if they have logged alike since they met last."""
        if not self._since:
            return 0.0
        keys = repr(sorted(key for key, _ in self._since)).encode()
        return float(int.from_bytes(hashlib.sha256(keys).digest()[:_DIGITS], "big"))

    def settle(self, is_alike: bool) -> None:
        """Have the first process keep what it lacks of that which others have logged since they met last.

        Args:
            is_alike: whether `digest` has returned the same in all.
        """
        since, self._since = self._since, []
        if not is_alike:
            self._give(since)
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def close(self) -> None:
        """Delete what this process has kept for itself."""
        self.settle(is_alike=True)

    def _give(self, since: list[tuple[Key, dict[str, Any]]]) -> None:
        owners: dict[Key, int] = {}
        for rank, keys in enumerate(self._world.gather([key for key, _ in since])):
            for key in keys:
                owners.setdefault(key, rank)
        rank = self._world.rank
        missing = [(key[1], values) for key, values in since if rank and owners[key] == rank]
        for of_one in self._world.gather([(event, values, self._read(values)) for event, values in missing]):
            for event, values, content in of_one if self._world.is_first else ():
                with self._leaving_out(event, values["name"]):
                    self._take(event, values, content)

    def _read(self, values: dict[str, Any]) -> bytes | None:
        """Return the content of the file of an image or the like; None for one that has no file."""
        return (self._folder / values["path"]).read_bytes() if "path" in values else None

    def _take(self, event: str, values: dict[str, Any], content: bytes | None) -> None:
        if content is not None:
            path = self._folder / values["path"]
            number = 0
            while path.exists():  # the first process has logged the same name at another moment of this step
                number += 1
                path = path.with_stem(f"{Path(values['path']).stem}-{number}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            values = {**values, "path": path.relative_to(self._folder).as_posix()}
        self._record.append(event, **values)

    def _append(self, event: str, **values: Any) -> None:
        if not self._is_muted:
            stamped = {**self._progress.stamp(), **values}
            self._since.append(((stamped["step"], event, stamped["name"]), {} if self._world.is_first else stamped))
        super()._append(event, **values)

    def _keep(self, *arguments: Any) -> None:
        if not self._world.is_first and self._temporary is None and not self._is_muted:
            self._temporary = tempfile.TemporaryDirectory(prefix="blowtorch-media-")
            self._folder = Path(self._temporary.name)
        super()._keep(*arguments)


def make_media(world: World, folder: Path, record: Record, progress: Progress, lines: Lines) -> Media:
    """Return what keeps images and the like of a lone process, or of one of several."""
    kept = folder, record, progress, lines
    return SharedMedia(world, *kept) if world.is_shared else Media(*kept)
