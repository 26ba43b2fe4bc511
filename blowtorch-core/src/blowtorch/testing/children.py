"""Processes for the suites: they report what they found, or are killed at a chosen moment."""

import multiprocessing
import multiprocessing.context
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from types import FrameType
from typing import Any

import pytest

from blowtorch.errors import describe
from blowtorch.parallel.world import join

_TIMEOUT_S = 60.0
_CHANGES = ("open", "os.", "shutil.", "socket.", "sqlite3.", "subprocess.")  # audit events before which to look


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        value: what its function returned; None if it raised or was killed.
        error: what its function raised, in words; None if it was killed.
    """

    value: Any
    error: str | None


def in_processes(*functions: Callable[[], Any]) -> list[Outcome]:
    """Call each function in a process of its own, all at once; skips the test where processes cannot be forked."""
    context = _forking()
    started = []
    for function in functions:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_report, args=(function, sender), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads are of no use to the child
            process.start()
        sender.close()
        started.append((process, receiver))
    outcomes = []
    for process, receiver in started:
        try:
            value, error = receiver.recv() if receiver.poll(_TIMEOUT_S) else (None, f"no end within {_TIMEOUT_S} s")
        except EOFError:  # it is gone without a word
            value, error = None, None
        receiver.close()
        process.join(1.0)
        if process.exitcode is None:
            process.kill()
            process.join()
        outcomes.append(Outcome(value, error))
    return outcomes


def in_joined_processes(function: Callable[[], Any], size: int = 2) -> list[Outcome]:
    """Call a function in so many processes whose runs are one, as if torchrun had started them.

    Skips the test where PyTorch has started what a forked process cannot go on with.
    """
    import torch
    import torch.distributed as dist

    if torch.accelerator.is_available():
        pytest.skip("needs processes that are forked, which cannot use a GPU; hide it with CUDA_VISIBLE_DEVICES=")
    if not dist.is_available() or dist.is_initialized():
        pytest.skip("needs torch.distributed, and a process that has not joined others yet")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    told = {
        "WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "BLOWTORCH_PROCESS_TIMEOUT": "20 seconds",
    }

    def member(rank: int) -> Callable[[], Any]:
        def do() -> Any:
            torch.set_num_threads(1)  # since the others of the parent are not there
            os.environ.update({name: str(value) for name, value in {"RANK": rank, "LOCAL_RANK": rank, **told}.items()})
            try:
                return function()
            finally:
                if dist.is_initialized():
                    join().leave()

        return do

    return in_processes(*map(member, range(size)))


def barrier(num_processes: int) -> Barrier:
    """Make a barrier where so many processes wait for each other."""
    return _forking().Barrier(num_processes, timeout=_TIMEOUT_S / 2)


def limit_file_size(num_bytes: int) -> None:
    """Have this process fail to write larger files, as if the disk were full."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write is an error and not the end
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def count_moments(make_action: Callable[[], Callable[[], object]]) -> int:
    """At how many moments a process could be killed in an action; see `kill_at`."""

    def count() -> int:
        moments = 0

        def tick() -> None:
            nonlocal moments
            moments += 1

        action = make_action()
        _watch(tick)
        action()
        return moments

    (outcome,) = in_processes(count)
    assert outcome.value is not None, f"what is to be killed must work when it is not; got {outcome.error}"
    return int(outcome.value)


def kill_at(moment: int, make_action: Callable[[], Callable[[], object]]) -> Outcome:
    """Do an action in a process that SIGKILL ends at a moment, unless the action is over by then.

    Moments, from 1, are those just before an operation on a file, a socket or a process, and just before the first
    line of Python after one: these are the places where what other processes see is about to change.
    """

    def die() -> None:
        left = moment

        def tick() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        action = make_action()
        _watch(tick)
        action()

    return in_processes(die)[0]


def _forking() -> "multiprocessing.context.ForkContext":
    if sys.platform != "linux":
        pytest.skip("needs processes that are forked, as on Linux")
    return multiprocessing.get_context("fork")


def _watch(tick: Callable[[], None]) -> None:
    """Call `tick` at each moment from now on; it cannot be undone, so this is for processes that end soon."""
    is_after_change = False

    def hear(event: str, _: Any) -> None:
        nonlocal is_after_change
        if event.startswith(_CHANGES):
            is_after_change = True
            tick()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal is_after_change
        if is_after_change and event == "line":
            is_after_change = False
            tick()
        return trace

    sys.addaudithook(hear)
    sys.settrace(trace)


def _report(function: Callable[[], Any], sender: Any) -> None:
    value, words = None, None
    try:
        value = function()
    except BaseException as error:
        words = describe(error)
    sys.settrace(None)
    sender.send((value, words))
