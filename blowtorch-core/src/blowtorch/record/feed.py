"""Feeds one logger from the record, in a thread of its own, at the logger's own pace."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from blowtorch.folder.files import replace_files
from blowtorch.hookspecs import LoggerSpec
from blowtorch.plugins import Plugin
from blowtorch.record.record import decode
from blowtorch.state import RunInfo

_WAKE_SECONDS = 0.5  # every wake-up of a thread is a fight for the interpreter lock
_LONGEST_PAUSE = 60.0  # seconds
_MEDIA = {  # what the hooks for these events are called with
    "image": ("name", "path", "step"),
    "histogram": ("name", "counts", "edges", "step"),
    "text": ("name", "text", "step"),
    "file": ("name", "path", "step"),
}

Result = TypeVar("Result")


class LoggerFeed:
    """Reads the record from its own cursor in a thread, and calls one logger for each event.

    Args:
        plugin: the logger.
        info: handed to `log_start`; the cursor is kept in its `own_folder`.
        record_path: of the record.
        rewound: for a run that continues, the step and the length of the record to which it went back.
        max_tries: an event that failed so often is skipped if the next one succeeds.

    Attributes:
        trouble: what was raised last, if nothing has succeeded since.
        skipped: the number of events that were skipped.
        is_finished: whether the logger has every event, the end of the run included.
    """

    def __init__(
        self,
        plugin: Plugin,
        info: RunInfo,
        record_path: Path,
        rewound: tuple[int, int] | None,
        max_tries: int = 5,
    ) -> None:
        assert info.own_folder is not None
        self.plugin = plugin
        self.trouble: str | None = None
        self.skipped = 0
        self._info = info
        self._record_path = record_path
        self._max_tries = max_tries
        self._cursor_path = info.own_folder / ".cursor"
        self._position, self._step, self._rewind_step = self._read_cursor(rewound)
        self.is_finished = False
        self._wake = threading.Event()
        self._is_closing = False
        self._is_abandoned = False
        self._thread = threading.Thread(target=self._run, name=f"blowtorch {plugin.label}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the system has no more threads; `report` says what the logger lacks
            self.trouble = str(error)

    def close(self, deadline: float) -> bool:
        """Wait until the logger has every event, at most until `deadline` on the monotonic clock; return if it has."""
        self._is_closing = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        self._is_abandoned = True
        self._wake.set()
        return self.is_finished

    def report(self, warn: Callable[[str], None]) -> None:
        """Warn if events were skipped, or if the logger is still behind after `close`."""
        record = self._record_path
        if self.skipped:
            warn(f"{self.plugin.label} refused {self.skipped} events, which were skipped; they are in {record}")
        if not self.is_finished:
            behind = self._count_behind()
            cause = f" ({self.trouble})" if self.trouble else ""
            warn(
                f"{self.plugin.label} is {behind} events behind{cause}; nothing is lost: they are in {record}, "
                f"and continuing the run hands them over"
            )

    def _count_behind(self) -> int | str:
        try:
            with self._record_path.open("rb") as file:
                file.seek(self._position)
                return sum(1 for _ in file)
        except OSError as error:  # a number that is not known must not cost a run at its end
            self.trouble = self.trouble or str(error)
            return "an unknown number of"

    def _read_cursor(self, rewound: tuple[int, int] | None) -> tuple[int, int, int | None]:
        """Return the position to read from, the last step before it, and the step to rewind the logger to, or None."""
        try:
            cursor = json.loads(self._cursor_path.read_text())
            position, step = int(cursor["position"]), int(cursor["step"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return 0, 0, None  # a logger that is new to this run is given all of it, and so is one whose cursor is lost
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
        """Deliver the next lines of the record, flush the logger, write the cursor; return whether there were none."""
        lines = self._try_until_it_works(self._read_burst) or []
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

    def _read_burst(self) -> list[bytes]:
        with self._record_path.open("rb") as file:
            file.seek(self._position)
            return [line for line in file.readlines(1 << 20) if line.endswith(b"\n")]

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
            self.plugin.call(LoggerSpec.log_flush)  # the last of what was handed over, while it can still be sent
            self.plugin.call(LoggerSpec.log_finish, status=event["status"], summary=event["summary"])
            self.is_finished = True

    def _try_until_it_works(self, action: Callable[[], Result], following: bytes | None = None) -> Result | None:
        """Return what an action returns; None if the feed is abandoned, or the `following` event succeeds instead."""
        pause, tries = 1.0, 0
        while not self._is_abandoned:
            try:
                result = action()
            except Exception as error:  # neither a logger nor a file may cost a run, whatever it raises
                self.trouble = str(error)
                tries += 1
            else:
                self.trouble = None
                return result
            if tries >= self._max_tries and following is not None and self._succeeds(following):
                self.skipped += 1
                return None
            self._wake.wait(pause)
            self._wake.clear()
            pause = min(2 * pause, _LONGEST_PAUSE)
        return None

    def _succeeds(self, line: bytes) -> bool:
        """Deliver the event after a failed one; if that succeeds, the failed event is at fault and not the logger."""
        try:
            self._deliver(line)
        except Exception:  # the tracker is down, and the event is not bad
            return False
        return True

    def _write_cursor(self) -> None:
        cursor = json.dumps({"position": self._position, "step": self._step})
        try:
            replace_files(self._cursor_path.parent, {self._cursor_path.name: cursor})
        except OSError as error:  # the cursor is then older than it could be, and some events come twice
            self.trouble = f"{self._cursor_path} could not be written: {error}"
