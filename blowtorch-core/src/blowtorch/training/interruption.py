"""What asks a run to stop from outside, a signal or the end of its time.

A flag is set, and the loop ends after its step; a validation under way ends after its batch.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from blowtorch.clock import Interval
from blowtorch.state import RunState


@contextmanager
def interruptible(state: RunState) -> Iterator[None]:
    """Let SIGINT (Ctrl-C), SIGTERM and the option `max_time` stop the run tidily; a second Ctrl-C stops it at once.

    The handlers that were there before are put back at the end. Outside of the main thread, where Python allows no
    handlers, signals are left alone.
    """
    with _time_limit(state), _signal_handlers(state):
        yield


@contextmanager
def _time_limit(state: RunState) -> Iterator[None]:
    if state.options.max_time is None:
        yield
        return

    def note() -> None:
        state.interruption = state.interruption or f"max_time of {state.options.max_time} is over"

    timer = threading.Timer(Interval.parse(state.options.max_time).amount, note)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _signal_handlers(state: RunState) -> Iterator[None]:
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
