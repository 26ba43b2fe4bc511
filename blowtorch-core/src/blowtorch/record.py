"""The record of a run: append-only, local, and the truth; and what feeds loggers from it.

The loop appends events to `record.jsonl`. Each logger is fed by a thread of its own that reads that file from its own
cursor, so a logger that is slow, down or broken falls behind and catches up; it cannot slow, stop or falsify a run.
"""

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from blowtorch.errors import RunFolderError
from blowtorch.hookspecs import LoggerSpec, RunInfo
from blowtorch.plugins import Plugin

_ENCODER = json.JSONEncoder(allow_nan=False, default=str)  # one odd value must not cost what comes after it
_BUFFERED_EVENTS = 64  # a write in the loop costs ten times what it costs alone, so training metrics wait a little
_BUFFERED_SECONDS = 0.2
_HELD_EVENTS = 100_000  # so many are kept in memory while the disk is full

_WAKE_SECONDS = 0.5  # every wake-up of a thread is a fight for the interpreter lock
_LONGEST_PAUSE = 60.0
_MEDIA = {  # what the hooks for these events are called with
    "image": ("name", "path", "step"),
    "histogram": ("name", "counts", "edges", "step"),
    "text": ("name", "text", "step"),
    "file": ("name", "path", "step"),
}
_TRIES = 5  # an event that failed so often is skipped if the next one goes through


class Record:
    """The events of a run in `record.jsonl`, one JSON object a line; only whole lines are ever written."""

    def __init__(self, path: Path, beat: Callable[[], None] = lambda: None) -> None:
        """Open the record for appending, dropping a torn last line; each write calls `beat`, a sign of life."""
        self.path = path
        self._beat = beat
        self._file: BinaryIO = path.open("ab", buffering=0)
        self._held: list[dict[str, Any]] = []  # encoded together, which costs a fraction of one at a time
        self._unwritten = b""  # what a full disk has refused
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
            RunFolderError: the record could not be written for so long that too much is held in memory.
        """
        self._held.append({"event": event, **values})
        if is_urgent or len(self._held) >= _BUFFERED_EVENTS or time.monotonic() - self._written_at > _BUFFERED_SECONDS:
            self.write()

    def write(self) -> bool:
        """Write what is held; say whether the file now has everything. A full disk is tried again next time."""
        self._written_at = time.monotonic()
        self._beat()
        data = self._unwritten + b"".join(map(encode, self._held))
        self._held.clear()
        if not data:
            return True
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(f"{written} of {len(data)} bytes were written")
        except OSError as error:
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
        """Write what is held; return the length, which a checkpoint keeps.

        Raises:
            OSError: it could not be written.
        """
        if not self.write():
            raise OSError(f"{self.path} could not be written")
        return self._length

    def make_durable(self) -> None:
        """Let what was written survive a power cut; any thread may ask for it."""
        os.fsync(self._file.fileno())

    def cut(self, length: int) -> None:
        """Go back to an earlier length, that of a checkpoint.

        Raises:
            RunFolderError: the record is shorter than that.
        """
        if length > self._length:
            raise RunFolderError(
                f"{self.path} has {self._length} bytes and the checkpoint was taken at {length}; the record was "
                f"changed from outside, start a new run"
            )
        self._file.truncate(length)
        self._length = length

    def close(self) -> bool:
        """Write what is held and close the file; say whether it has everything."""
        is_complete = self.write()
        self._file.close()
        return is_complete


def whole_lines(path: Path) -> int:
    """The length in bytes of a file up to and with its last line feed."""
    position = path.stat().st_size
    with path.open("rb") as file:
        while position > 0:
            start = max(0, position - 65_536)
            file.seek(start)
            end = file.read(position - start).rfind(b"\n")
            if end >= 0:
                return start + end + 1
            position = start
    return 0


def encode(event: Mapping[str, Any]) -> bytes:
    """One line of the record.

    >>> encode({"event": "metrics", "metrics": {"train/loss": float("nan")}})
    b'{"event": "metrics", "metrics": {"train/loss": "nan"}}\\n'
    """
    try:
        text = _ENCODER.encode(event)
    except ValueError:
        text = _ENCODER.encode(_finite(event))
    return text.encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The event of one line; metrics are numbers again, be they finite or not."""
    event: dict[str, Any] = json.loads(line)
    for key in ("metrics", "summary"):
        if key in event:
            event[key] = {name: float(value) for name, value in event[key].items()}
    return event


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class LoggerFeed:
    """Feeds one logger from the record, in a thread, at the logger's own pace.

    Args:
        plugin: the logger.
        info: handed to `log_start`; the cursor is kept in its `logger_folder`.
        record: path of the record.
        rewound: for a run that continues, the step and the length of the record it went back to.

    Attributes:
        trouble: what the logger raised last, if it has not worked since.
        skipped: events that it refused again and again.
        is_finished: whether it has been given everything, the end of the run included.
    """

    def __init__(self, plugin: Plugin, info: RunInfo, record: Path, rewound: tuple[int, int] | None) -> None:
        assert info.logger_folder is not None
        self.plugin = plugin
        self.trouble: str | None = None
        self.skipped = 0
        self._info = info
        self._record = record
        self._cursor_path = info.logger_folder / ".cursor"
        self._position, self._step, self._rewind_step = self._read_cursor(rewound)
        self.is_finished = False
        self._wake = threading.Event()
        self._is_closing = False
        self._is_abandoned = False
        self._thread = threading.Thread(target=self._run, name=f"blowtorch {plugin.label}", daemon=True)
        self._thread.start()

    def close(self, deadline: float) -> bool:
        """Wait until the logger has everything, at most until `deadline` on the monotonic clock; say if it has."""
        self._is_closing = True
        self._wake.set()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._is_abandoned = True
        self._wake.set()
        return self.is_finished

    def report(self, warn: Callable[[str], None]) -> None:
        """Warn if, after `close`, the logger is behind, or if events had to be skipped."""
        if self.skipped:
            warn(f"{self.plugin.label} refused {self.skipped} events, which were skipped; they are in {self._record}")
        if not self.is_finished:
            with self._record.open("rb") as file:
                file.seek(self._position)
                behind = sum(1 for _ in file)
            cause = f" ({self.trouble})" if self.trouble else ""
            warn(
                f"{self.plugin.label} is {behind} events behind{cause}; nothing is lost: they are in {self._record}, "
                f"and continuing the run hands them over"
            )

    def _read_cursor(self, rewound: tuple[int, int] | None) -> tuple[int, int, int | None]:
        """Where to begin, the last step delivered before that, and the step to rewind the logger to, if any."""
        try:
            cursor = json.loads(self._cursor_path.read_text())
        except (OSError, ValueError):
            return 0, 0, None  # a logger that is new to this run is given all of it
        position, step = int(cursor["position"]), int(cursor["step"])
        if rewound is None:
            return position, step, None
        # It may have been given more than its cursor says, so it is rewound even where the cursor need not move.
        to_step, length = rewound
        if position > length:
            position, step = length, to_step
        return position, step, min(step, to_step)

    def _run(self) -> None:
        self._try_until_it_works(self._start)
        while not self.is_finished and not self._is_abandoned:
            is_last_look = self._is_closing
            is_caught_up = self._deliver_burst()
            if is_caught_up and is_last_look:
                return
            if is_caught_up:
                self._wake.wait(_WAKE_SECONDS)

    def _start(self) -> None:
        self.plugin.call(LoggerSpec.log_start, run=self._info)
        if self._rewind_step is not None:
            self.plugin.call(LoggerSpec.log_rewind, step=self._rewind_step)

    def _deliver_burst(self) -> bool:
        """Hand over what the record has, flush, keep the cursor; say whether that was all."""
        with self._record.open("rb") as file:
            file.seek(self._position)
            lines = [line for line in file.readlines(1 << 20) if line.endswith(b"\n")]
        for number, line in enumerate(lines):
            if self._is_abandoned:
                break
            following = lines[number + 1] if number + 1 < len(lines) else None
            self._try_until_it_works(lambda line=line: self._deliver(line), following)  # type: ignore[misc]
            if not self._is_abandoned:
                self._position += len(line)
        if lines and not self.is_finished:
            self._try_until_it_works(lambda: self.plugin.call(LoggerSpec.log_flush))
        if lines:
            self._write_cursor()
        return not lines

    def _deliver(self, line: bytes) -> None:
        event = decode(line)
        if event["event"] == "metrics":
            self.plugin.call(
                LoggerSpec.log_metrics,
                metrics=event["metrics"],
                step=event["step"],
                epoch=event["epoch"],
                time=event["time"],
            )
            self._step = event["step"]
        elif event["event"] in _MEDIA:
            arguments = {name: event[name] for name in _MEDIA[event["event"]]}
            if "path" in arguments:
                arguments["path"] = self._info.folder / arguments["path"]
            self.plugin.call(getattr(LoggerSpec, f"log_{event['event']}"), **arguments)
            self._step = event["step"]
        elif event["event"] == "finish":
            self.plugin.call(LoggerSpec.log_finish, status=event["status"], summary=event["summary"])
            self.is_finished = True

    def _try_until_it_works(self, deliver: Callable[[], None], following: bytes | None = None) -> None:
        pause, tries = 1.0, 0
        while not self._is_abandoned:
            try:
                deliver()
            except Exception as error:  # a logger must not cost a run, whatever it raises
                self.trouble = str(error)
                tries += 1
            else:
                self.trouble = None
                return
            if tries >= _TRIES and following is not None and self._goes_through(following):
                self.skipped += 1
                return
            self._wake.wait(pause)
            self._wake.clear()
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _goes_through(self, line: bytes) -> bool:
        """Whether another event can be delivered, so that the one before it alone is at fault."""
        try:
            self._deliver(line)
        except Exception:  # then it is the tracker that is down, not the event that is bad
            return False
        return True

    def _write_cursor(self) -> None:
        temporary = self._cursor_path.with_name(".cursor.tmp")
        try:
            temporary.write_text(json.dumps({"position": self._position, "step": self._step}))
            temporary.replace(self._cursor_path)
        except OSError as error:  # the cursor is then older than it could be, and some events come twice
            self.trouble = f"{self._cursor_path} could not be written: {error}"
