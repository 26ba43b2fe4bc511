"""One start of a script, in one process or several, which are killed on the way or come to their end."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import click

from blowtorch_cli.launch.failures import AFTER_FAILURE_S, Failure, find_first
from blowtorch_cli.launch.threads import share_cores

_GLANCE_SECONDS = 0.002
_SHOWN_LINES = 30


class Process(Protocol):
    """What is asked of a process; it leads a group, to which all belong that it starts itself."""

    pid: int

    def poll(self) -> int | None:
        """Return how it has ended: its exit status, or the negative number of a signal; None while it goes on."""

    def wait(self) -> int:
        """Wait for the end, and return the same."""


StartProcess = Callable[[Sequence[str], Mapping[str, str], Path], Process]


def start_process(words: Sequence[str], variables: Mapping[str, str], output: Path) -> Process:
    """Start a script as `blowtorch launch` does; on Linux it ends with this process.

    Args:
        words: the script's path and its own words.
        variables: what it is told by its environment, besides that of this process.
        output: the file for what it prints.
    """
    runner = str(Path(__file__).parents[1] / "launch" / "run_script.py")
    told = {"BLOWTORCH_LAUNCH_COMMAND": json.dumps([sys.executable, *words])}
    with output.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, runner, str(os.getpid()), "script", *words], env={**os.environ, **told, **variables},
            stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def run_processes(
    words: Sequence[str], size: int, victims: Sequence[int], should_kill: Callable[[], bool], start: StartProcess
) -> bool:
    """Let a script run in some processes to its end, or until some are killed; return whether it came to its end.

    Where not all are killed, the others have half a minute to notice that and to end by themselves.

    Args:
        words: the script's path and its own words.
        size: how many processes.
        victims: which of them are killed by SIGKILL, with what they have started.
        should_kill: tells when.
        start: starts one.

    Raises:
        click.ClickException: the script has failed.
    """
    share_cores(size)
    with tempfile.TemporaryDirectory(prefix="blowtorch-verify-") as folder:
        outputs = [Path(folder) / f"output-{rank}" for rank in range(size)]
        errors = [Path(folder) / f"error-{rank}.json" for rank in range(size)]
        processes: list[Process] = []
        try:
            told = _describe(size)
            for rank in range(size):
                variables = {**told[rank], "TORCHELASTIC_ERROR_FILE": str(errors[rank])}
                processes.append(start(words, variables, outputs[rank]))
            _watch(processes, victims, should_kill)
        finally:
            for process in processes:
                _kill(process)
        codes = [process.wait() for process in processes]
        if any(codes[rank] == -signal.SIGKILL for rank in victims):
            return False
        failures = [Failure(rank, code, errors[rank]) for rank, code in enumerate(codes) if code]
        if failures:
            first = find_first(failures)
            raise click.ClickException(_describe_failure(first, size, outputs[first.rank]))
        return True


def _describe(size: int) -> list[dict[str, str]]:
    """Return the environment of each process, as torchrun makes it; a lone one is told nothing."""
    if size == 1:
        return [{}]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    same = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [{**same, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def _watch(processes: Sequence[Process], victims: Sequence[int], should_kill: Callable[[], bool]) -> None:
    """Wait for the end of all, or until it is time to kill; then and after a failure, wait a limited time only."""
    deadline = float("inf")
    while None in (codes := [process.poll() for process in processes]) and time.monotonic() < deadline:
        if deadline == float("inf"):
            is_time = should_kill()
            if is_time:
                for rank in victims:
                    _kill(processes[rank])
            if is_time or any(codes):
                deadline = time.monotonic() + AFTER_FAILURE_S
        time.sleep(_GLANCE_SECONDS)


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its loader workers too


def _describe_failure(failure: Failure, size: int, output: Path) -> str:
    who = "the script" if size == 1 else f"process {failure.rank} of {size}"
    text = b"\n".join(output.read_bytes().splitlines()[-_SHOWN_LINES:]).decode(errors="replace")
    ended = f"ended with exit code {failure.code}" if failure.code > 0 else failure.describe().removeprefix("it ")
    return f"{who} {ended}:\n{text}"
