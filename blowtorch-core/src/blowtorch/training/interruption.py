"""What asks a run to stop from outside, a signal or the end of its time.

A flag is set, and the loop ends after its step; a validation under way ends after its batch.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from blowtorch.clock import Interval
from blowtorch.progress import Progress


@contextmanager
def interruptible(progress: Progress, max_time: str | None) -> Iterator[None]:
    """Let signals and the option `max_time` stop the run tidily; a second Ctrl-C stops it at once.

    The signals are SIGINT (Ctrl-C), SIGTERM, and SIGHUP of a terminal that is closed, unless `nohup` ignores it. The
    handlers that were there before are put back at the end. Outside of the main thread, where Python allows no
    handlers, signals are left alone.
    """
    with _time_limit(progress, max_time), _signal_handlers(progress):
        yield


@contextmanager
def _time_limit(progress: Progress, max_time: str | None) -> Iterator[None]:
    if max_time is None:
        yield
        return

    def note() -> None:
        progress.interrupt(progress.interruption or f"max_time of {max_time} is over")

    timer = threading.Timer(Interval.parse(max_time).amount, note)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


@contextmanager
def _signal_handlers(progress: Progress) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    is_impatient, process = False, os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal is_impatient
        if os.getpid() != process:  # a child that the script has forked
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)
            return
        if number == signal.SIGINT and is_impatient:
            raise KeyboardInterrupt
        is_impatient = is_impatient or number == signal.SIGINT
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        progress.interrupt(progress.interruption or name)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    earlier = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            # What was installed by other means than Python cannot be put back by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
