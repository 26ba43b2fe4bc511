"""How a process has ended, and which of several failures was the first."""

import json
import os
import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import blowtorch.errors

STOPPED = 75  # what a script exits with that was stopped and is to be continued
AFTER_FAILURE_S = 30.0  # for a checkpoint on its way; one that hangs in a collective never ends by itself
_FRAME = re.compile(r'^ *File "(.+)", line (\d+)', re.MULTILINE)
_CONSEQUENCE = re.compile("(closed|reset) by peer|Broken pipe|Connection refused|DistBackendError|NCCL")
_LONGEST = 200
_PACKAGES = ("site-packages", "dist-packages", "/lib/python", "<")


@dataclass(frozen=True)
class Failure:
    """The end of a process with an exit status that means failure.

    Attributes:
        rank: its number among all processes of the job.
        code: its exit status, or the negative number of the signal that ended it.
        error_file: where it has written the error, if there is one.
    """

    rank: int
    code: int
    error_file: Path

    @property
    def exit_code(self) -> int:
        """Return the exit status as a shell has it."""
        return self.code if self.code > 0 else 128 - self.code

    @property
    def order(self) -> tuple[int, int]:
        """Sort: first what cannot follow from the end of another process, and by the time of the error."""
        if self.code < 0 and self.code != -signal.SIGABRT:
            return 0, 0
        if not self.error_file.exists():
            return (2 if self.code > 0 else 3), 0
        return (4 if self.is_consequence else 1), self.error_file.stat().st_mtime_ns

    @property
    def is_consequence(self) -> bool:
        """Return whether the error is of the kind that the end of another process leads to."""
        return _CONSEQUENCE.search(self.describe()) is not None

    def describe(self) -> str:
        """Return what has happened, such as `ValueError: bad luck (train.py, line 12)`."""
        if self.code == -signal.SIGKILL:
            return "it was killed by SIGKILL, as the system does when memory runs out"
        if self.code < 0:
            return f"it was ended by {_name_signal(-self.code)}"
        try:
            message = json.loads(self.error_file.read_text(encoding="utf-8"))["message"]
        except (OSError, ValueError, KeyError):
            return f"it has ended with exit status {self.code}"
        if isinstance(message, str):
            return _shorten(message)
        place = _find_place(str(message.get("extraInfo", {}).get("py_callstack", "")))
        return _shorten(str(message.get("message", ""))) + place


def is_failure(code: int | None) -> bool:
    """Return whether a process has ended, and neither finished nor stopped to be continued."""
    return code not in (None, 0, STOPPED)


def find_first(failures: Iterable[Failure]) -> Failure:
    """Return the failure that the others follow from, as far as can be told."""
    return min(failures, key=lambda failure: failure.order)


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _shorten(message: str) -> str:
    lines = message.strip().splitlines() or [""]
    first = lines[0][:_LONGEST]
    return first + (" …" if first != message.strip() else "")


def _find_place(callstack: str) -> str:
    """Return the innermost line of a traceback that is neither in an installed package nor in blowtorch."""
    core = f"{Path(blowtorch.errors.__file__).parent}{os.sep}"
    frames = _FRAME.findall(callstack)
    own = [frame for frame in frames if not any(part in frame[0] for part in (*_PACKAGES, core))] or frames
    return f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""
