"""What happens when a run is asked to stop from outside: a flag is set, and the loop ends after its step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from blowtorch.state import RunState


@contextmanager
def interruptible(state: RunState) -> Iterator[None]:
    """Let SIGINT (Ctrl-C) and SIGTERM stop the run tidily; a second Ctrl-C stops it at once.

    The handlers that were there before are put back at the end. Outside of the main thread, where Python allows no
    handlers, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and state.interruption == "Ctrl-C":
            raise KeyboardInterrupt
        state.interruption = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name

    earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
