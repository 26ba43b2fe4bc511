"""The launcher: passes signals on to the processes, keeps their time, and gives the exit status of the script."""

import contextlib
import dataclasses
import os
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from blowtorch_cli.launch.failures import AFTER_FAILURE_S, is_failure
from blowtorch_cli.launch.output import Output
from blowtorch_cli.launch.plan import Plan
from blowtorch_cli.launch.processes import Processes

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)
_AT_ONCE_S = 5.0
_PATIENCE_S = 60.0
_LEAVE_S = 0.5
_SAME_KEY_S = 0.2  # a Ctrl-C that comes by two ways is one


class Launcher:
    """One launch: signals are heeded in the main thread, since torch's agent, in another, may wait for other machines.

    Args:
        plan: what is to be launched.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._output = Output(plan.quiet)
        self._processes = Processes(plan.command, self._output)
        self._folder = tempfile.TemporaryDirectory(prefix="blowtorch-launch-")
        self._received: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._told: int | None = None
        self._interrupts: list[float] = []
        self._deadline = float("inf")
        self._broken_at: float | None = None
        self._leave_at = float("inf")
        self._patience = time.monotonic() + _PATIENCE_S if plan.rendezvous else float("inf")
        self._exit_code = 1

    def run(self) -> int:
        """Launch, wait for the end of all processes, and return the exit status."""
        with self._folder, self._handling_signals():
            agent = threading.Thread(target=self._run_agent, name="agent", daemon=True)
            agent.start()
            while True:
                try:
                    number = self._received.get(timeout=0.1)
                except queue.Empty:
                    self._keep_time()
                    continue
                if number is None:
                    break
                self._heed(number)
        self._output.drain(2.0)
        return self._exit_code

    def _run_agent(self) -> None:
        try:
            from blowtorch_cli.launch.agent import run_agent
            from blowtorch_cli.launch.threads import count_processes, share_cores

            processes = self._plan.processes or count_processes()
            text = f"{processes} process{'es' * (processes > 1)}{share_cores(processes)}"
            if self._plan.rendezvous:
                self._output.say(f"{text}; meeting other machines at {self._plan.rendezvous}")
            elif processes > 1:
                self._output.say(text)
            plan = dataclasses.replace(self._plan, processes=processes)
            folder = Path(self._folder.name)
            self._exit_code = run_agent(plan, self._processes, self._output, lambda: self._told, folder)
        finally:
            self._received.put(None)

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self._received.put(number)

        numbers = [*_STOPPING, *_PASSED_ON, signal.SIGTSTP]
        heeded = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # as under nohup
        earlier = {number: signal.signal(number, note) for number in heeded}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _heed(self, number: int) -> None:
        if number == signal.SIGTSTP:
            self._suspend()
        elif number in _PASSED_ON:
            self._processes.tell(number)
        elif not self._processes.is_any_running():
            self._told = self._told or number
            self._processes.close()
            self._leave_at = min(self._leave_at, time.monotonic() + _LEAVE_S)
        elif number == signal.SIGINT:
            self._interrupt()
        elif self._told is None:
            self._ask_to_stop(number)

    def _ask_to_stop(self, number: int) -> None:
        self._told = number
        self._processes.close()
        self._deadline = time.monotonic() + self._plan.shutdown_timeout
        text = f"the processes are asked to stop, and have {self._plan.shutdown_timeout:g} s"
        if number == signal.SIGINT:
            self._output.say(f"Ctrl-C: {text}; a second Ctrl-C leaves them {_AT_ONCE_S:g} s")
        else:
            self._output.say(f"{signal.Signals(number).name}: {text}")
        self._processes.tell(number)

    def _interrupt(self) -> None:
        """Heed Ctrl-C: the first asks, the second asks for an end at once, the third kills."""
        now = time.monotonic()
        if self._interrupts and now - self._interrupts[-1] < _SAME_KEY_S:
            return
        self._interrupts.append(now)
        if self._told is None:
            self._ask_to_stop(signal.SIGINT)
            return
        self._processes.tell(signal.SIGINT)
        if len(self._interrupts) > 1:
            self._deadline = min(self._deadline, now + _AT_ONCE_S * (len(self._interrupts) == 2))

    def _keep_time(self) -> None:
        """Kill processes whose time to stop is over, and say for how long the other machines have not come."""
        if time.monotonic() > self._leave_at:  # for torch's agent waits, and nothing else interrupts that
            self._folder.cleanup()
            os._exit(128 + (self._told or 0))
        if self._told is not None:
            self._hasten()
        if time.monotonic() > self._deadline:
            self._deadline = float("inf")
            self._output.say("processes that have not ended are killed")
            self._processes.tell_groups(signal.SIGKILL)
        if time.monotonic() > self._patience and not self._processes.poll():
            self._patience = float("inf")
            self._output.say(
                f"in {_PATIENCE_S:g} s, not enough machines have come to {self._plan.rendezvous}, or something else "
                "answers there; this one goes on waiting"
            )

    def _hasten(self) -> None:
        """Leave less time to the others when one has not stopped tidily.

        They may wait for it, or have lost Ctrl-C: Python drops what falls into the middle of some imports.
        """
        now = time.monotonic()
        if self._broken_at is None and any(map(is_failure, self._processes.poll())):
            self._broken_at = now
            self._deadline = min(self._deadline, now + AFTER_FAILURE_S)
        if self._broken_at is not None and now > self._broken_at + _AT_ONCE_S:
            self._broken_at = float("inf")
            self._processes.tell(signal.SIGTERM)

    def _suspend(self) -> None:
        """Stop for as long as the shell wants it, with all processes."""
        self._processes.tell_groups(signal.SIGSTOP)
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)  # returns when the shell lets it go on
        signal.signal(signal.SIGTSTP, handler)
        self._processes.tell_groups(signal.SIGCONT)
