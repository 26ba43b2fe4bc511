"""Feeds one logger from the record, in a thread of its own, at the logger's own pace."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from blowtorch.hookspecs import LoggerSpec
from blowtorch.plugins import Plugin
from blowtorch.record.record import decode
from blowtorch.state import RunInfo

_WAKE_SECONDS = 0.5  # every wake-up of a thread is a fight for the interpreter lock
_LONGEST_PAUSE = 60.0
_MEDIA = {  # what the hooks for these events are called with
    "image": ("name", "path", "step"),
    "histogram": ("name", "counts", "edges", "step"),
    "text": ("name", "text", "step"),
    "file": ("name", "path", "step"),
}
_TRIES = 5  # an event that failed so often is skipped if the next one goes through


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
