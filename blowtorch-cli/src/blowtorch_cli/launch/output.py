"""What the processes of a launch print: the first one's as it is, that of the others by line, with their numbers."""

import os
import selectors
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TextIO

_SHOWN_LINES = 30
_LONGEST_LINE = 1 << 16
_CLEAR_LINE = b"\r\033[K"  # a progress bar of the first process, which draws it again


@dataclass
class _Stream:
    """The standard output or error of a process, read from a pipe."""

    prefix: bytes
    target: TextIO
    tail: deque[bytes]
    rest: bytes = field(default=b"")


class Output:
    """Reads the pipes of processes in a thread and shows their lines.

    Args:
        is_quiet: keep the lines, and show those of a process only when asked to.
    """

    def __init__(self, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._tails: dict[int, deque[bytes]] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = os.pipe()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._lock = threading.Lock()
        threading.Thread(target=self._read, name="output", daemon=True).start()

    def open_pipes(self, rank: int) -> tuple[int, int]:
        """Return the ends of two pipes that become standard output and error of a process; the caller closes them."""
        tail = self._tails[rank] = deque(maxlen=_SHOWN_LINES)
        ends = []
        for target in (sys.stdout, sys.stderr):
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            self._selector.register(reader, selectors.EVENT_READ, _Stream(f"[{rank}] ".encode(), target, tail))
            ends.append(writer)
        os.write(self._waker, b".")  # a selector that waits may not look at what is registered meanwhile
        return ends[0], ends[1]

    def say(self, text: str) -> None:
        """Print a line of the launcher's own."""
        self._write(sys.stderr, f"[launch] {text}\n".encode())

    def drain(self, timeout_s: float) -> None:
        """Wait until the pipes are closed, which a process that a script has left behind may delay."""
        deadline = time.monotonic() + timeout_s
        while len(self._selector.get_map()) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)

    def show_last_lines(self, rank: int) -> None:
        """Show what a process has printed last, if it was kept back."""
        if self._is_quiet:
            for line in self._tails.get(rank, ()):
                self._write(sys.stderr, line)

    def _read(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    os.read(self._wake, 1024)
                    continue
                data = os.read(key.fd, 1 << 16)
                if data:
                    self._take(key.data, data)
                else:
                    self._selector.unregister(key.fd)
                    os.close(key.fd)
                    if key.data.rest:
                        self._take(key.data, b"\n")

    def _take(self, stream: _Stream, data: bytes) -> None:
        """Show the whole lines; of what was written over by a carriage return, the last is taken."""
        *lines, rest = (stream.rest + data).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines.append(rest)
            rest = b""
        stream.rest = rest.removesuffix(b"\r").rpartition(b"\r")[2] if b"\r" in rest else rest
        for line in lines:
            shown = stream.prefix + line.removesuffix(b"\r").rpartition(b"\r")[2] + b"\n"
            stream.tail.append(shown)
            if not self._is_quiet:
                self._write(stream.target, shown)

    def _write(self, target: TextIO, line: bytes) -> None:
        if target.isatty():
            line = _CLEAR_LINE + line
        with self._lock:
            try:
                while line:
                    line = line[os.write(target.fileno(), line) :]
            except OSError:
                pass  # nobody reads it any more, which is no reason to end a training
