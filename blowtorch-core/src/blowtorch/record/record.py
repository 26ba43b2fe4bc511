"""The record of a run: a local file to which events are appended, and from which all else is told.

The loop appends events to `record.jsonl`. A thread for each logger reads that file from its own cursor (`feed`). So a
logger that is slow, down or broken falls behind and catches up; it cannot slow, stop or falsify a run.
"""

import contextlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from blowtorch.data.tree import map_leaves
from blowtorch.errors import RunFolderError

_ENCODER = json.JSONEncoder(allow_nan=False, default=str)  # one odd value must not cost what comes after it
_BUFFERED_EVENTS = 64  # a write in the loop costs ten times what it costs alone, so training metrics wait a little
_BUFFERED_SECONDS = 0.2
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # which no UTF-8 can hold, so that loggers choke on it
_HELD_EVENTS = 100_000  # so many are kept in memory while the disk is full


class Record:
    """The events of a run in `record.jsonl`, one JSON object a line; the file ends with a whole line after each write.

    Args:
        path: of the file; a last line that is torn is cut off.
        beat: called at each write, as a sign of life.

    Attributes:
        is_behind: whether an event was put off that is still to be appended.
    """

    def __init__(self, path: Path, beat: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._beat = beat
        self._file: BinaryIO = path.open("ab", buffering=0)
        self._append_next: Callable[[], None] | None = None  # appends the event that comes next, once it is known
        self._catching_up = threading.RLock()
        self.is_behind = False
        self._held: list[dict[str, Any]] = []  # encoded together, which costs a fraction of one at a time
        self._unwritten = b""  # lines that a full disk has refused
        self._written_at = 0.0
        self._length = whole_lines(path)
        self._file.truncate(self._length)

    def append(self, event: str, is_urgent: bool = True, **values: Any) -> None:
        """Append one event.

        Args:
            event: its kind, such as `metrics`.
            is_urgent: write it now; otherwise it may wait until more come.
            values: JSON values; floats may be NaN or infinite.

        Raises:
            RunFolderError: the file could not be written for so long that too much is held in memory.
        """
        if self.is_behind:
            self.catch_up()
        self._held.append({"event": event, **values})
        if is_urgent or len(self._held) >= _BUFFERED_EVENTS or time.monotonic() - self._written_at > _BUFFERED_SECONDS:
            self.write()

    def put_off(self, append: Callable[[], None]) -> None:
        """Leave an event to be appended later, when it is known; it keeps its place in the order.

        Args:
            append: appends it; called once, by `catch_up`, or before anything else is appended or written.
        """
        self.catch_up()
        self._append_next, self.is_behind = append, True

    def catch_up(self) -> None:
        """Append what was put off; any thread may call this, and others wait for it."""
        if not self.is_behind:
            return
        with self._catching_up:
            append, self._append_next = self._append_next, None
            if append is not None:
                try:
                    append()
                finally:
                    self.is_behind = False

    def write(self) -> bool:
        """Write the events that are held; return whether the file has all of them. A full disk is tried again later."""
        if self.is_behind:
            self.catch_up()
        self._written_at = time.monotonic()
        self._beat()
        data = self._unwritten + b"".join(map(encode, self._held))
        self._held.clear()
        if not data:
            return True
        try:
            if self._unwritten:
                self._file.truncate(self._length)  # what the last attempt has left
            written = self._file.write(data)
            if written != len(data):
                raise OSError(f"{written} of {len(data)} bytes were written")
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._length)
            self._unwritten = data
            if (held := data.count(b"\n")) > _HELD_EVENTS:
                raise RunFolderError(
                    f"{self.path} could not be written for {held} events ({error}); make room on the disk "
                    f"and continue the run with run.resume={self.path.parent}"
                ) from error
            return False
        self._length += len(data)
        self._unwritten = b""
        return True

    def flush(self) -> int:
        """Write the events that are held; return the length of the file in bytes, which a checkpoint keeps.

        Raises:
            OSError: the file could not be written.
        """
        if not self.write():
            raise OSError(f"{self.path} could not be written")
        return self._length

    def make_durable(self) -> None:
        """Have all that was written survive a power cut; any thread may call this."""
        os.fsync(self._file.fileno())

    def cut(self, length: int) -> None:
        """Cut the file to an earlier length in bytes, that of a checkpoint.

        Raises:
            RunFolderError: the file is shorter than that.
        """
        if length > self._length:
            raise RunFolderError(
                f"{self.path} has {self._length} bytes and the checkpoint was taken at {length}; the record was "
                f"changed from outside, start a new run"
            )
        self._file.truncate(length)
        self._length = length

    def close(self) -> bool:
        """Write the events that are held and close the file; return whether it has all of them."""
        is_complete = self.write()
        try:
            self._file.close()
        except OSError:
            return False
        return is_complete


class NoRecord(Record):
    """The record of a process that leaves it to the first of several to write one."""

    def __init__(self) -> None:
        self.is_behind = False

    def put_off(self, append: Callable[[], None]) -> None:
        """Do at once what may be put off."""
        append()

    def catch_up(self) -> None:
        """Return at once, since nothing is put off."""

    def append(self, event: str, is_urgent: bool = True, **values: Any) -> None:
        """Leave an event to the first process."""

    def write(self) -> bool:
        """Return that nothing is missing."""
        return True

    def flush(self) -> int:
        """Return a length of nothing."""
        return 0

    def make_durable(self) -> None:
        """Leave that to the first process."""

    def cut(self, length: int) -> None:
        """Leave that to the first process."""

    def close(self) -> bool:
        """Return that nothing is missing."""
        return True


def whole_lines(path: Path) -> int:
    """Return the length in bytes of a file up to its last line feed, that included."""
    position = path.stat().st_size
    with path.open("rb") as file:
        while position > 0:
            block = max(0, position - 65_536)
            file.seek(block)
            line_feed = file.read(position - block).rfind(b"\n")
            if line_feed >= 0:
                return block + line_feed + 1
            position = block
    return 0


def encode(event: Mapping[str, Any]) -> bytes:
    """Return the line of an event in the record.

    >>> encode({"event": "metrics", "metrics": {"train/loss": float("nan")}})
    b'{"event": "metrics", "metrics": {"train/loss": "nan"}}\\n'
    """
    try:
        text = _ENCODER.encode(event)
    except ValueError:
        text = _ENCODER.encode(map_leaves(_finite, event))
    if "\\ud" in text:  # a surrogate, one of a pair unless the text is damaged
        plain = json.dumps(json.loads(text), ensure_ascii=False)
        text = _ENCODER.encode(json.loads(_LONE_SURROGATE.sub("\ufffd", plain)))
    return text.encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Return the event of a line; metrics are numbers again, finite or not."""
    event: dict[str, Any] = json.loads(line)
    for key in ("metrics", "summary"):
        if key in event:
            event[key] = {name: float(value) for name, value in event[key].items()}
    return event


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
