"""The processes of a launch on this machine: how they are started, told to stop, and ended."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from blowtorch_cli.launch.output import Output

_PAUSE_S = 0.02


class Processes:
    """Starts one script several times, each time in a session of its own.

    In sessions of their own, signals of the terminal do not reach them, so that each is told once by the launcher;
    the first one reads from the terminal nevertheless.

    Args:
        command: `script` or `module`, its name, and its words.
        output: shows what all but the first print.
    """

    def __init__(self, command: Sequence[str], output: Output) -> None:
        runner = str(Path(__file__).with_name("run_script.py"))
        self._command = [sys.executable, runner, str(os.getpid()), *command]
        self._variables = {"BLOWTORCH_LAUNCH_COMMAND": json.dumps(["blowtorch", *sys.argv[1:]])}
        self._output = output
        self._running: list[subprocess.Popen[bytes]] = []
        self._lock = threading.RLock()
        self._is_closed = False

    def start(self, environments: Sequence[Mapping[str, str]]) -> list[int]:
        """Start a process with each of some variables, and return their system numbers."""
        with self._lock:
            self._running = []
            for variables in environments:
                if not self._is_closed:
                    self._running.append(self._start_one({**os.environ, **self._variables, **variables}))
            return [process.pid for process in self._running]

    def _start_one(self, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        rank = int(environment["RANK"])
        if rank == 0:
            return subprocess.Popen(self._command, env=environment, start_new_session=True)
        output, error = self._output.open_pipes(rank)
        try:
            return subprocess.Popen(
                self._command, env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=error,
            )  # fmt: skip
        finally:
            os.close(output)
            os.close(error)

    def poll(self) -> list[int | None]:
        """Return how each has ended: its exit status, the negative number of a signal, None while it goes on."""
        return [process.poll() for process in self._running]

    def is_any_running(self) -> bool:
        """Return whether one of them goes on."""
        return None in self.poll()

    def tell(self, number: int) -> None:
        """Send a signal to each that goes on, and not to those that it has started itself, such as loader workers."""
        with self._lock:
            for process in self._running:
                process.send_signal(number)

    def tell_groups(self, number: int) -> None:
        """Send a signal to each that goes on, and to all that it has started."""
        with self._lock:
            for process in self._running:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, number)

    def close(self) -> None:
        """Start no further processes."""
        with self._lock:
            self._is_closed = True

    def stop(self, timeout_s: float) -> int:
        """End all: ask by SIGTERM, and kill those that go on when the time is over. Return how many were killed."""
        self.tell(signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        while self.is_any_running() and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        killed = self.poll().count(None)
        self.tell_groups(signal.SIGKILL)
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):  # one may hang in the kernel, which nothing ends
                process.wait(timeout=10)
        return killed
