"""The agent of torch that joins the machines and starts all again after a failure, with processes that are ours.

What torchrun's own does otherwise: a process that has stopped to be continued counts as a failure, one that has ended
gives the others 30 s, and a signal lets the agent fail however well the processes have ended.
"""

import os
import signal
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from blowtorch_cli.launch.failures import AFTER_FAILURE_S, STOPPED, Failure, find_first, is_failure
from blowtorch_cli.launch.output import Output
from blowtorch_cli.launch.plan import Plan
from blowtorch_cli.launch.processes import Processes


def run_agent(
    plan: Plan, processes: Processes, output: Output, get_signal: Callable[[], int | None], folder: Path
) -> int:
    """Launch what is planned, say what fails, and return the exit status.

    Args:
        plan: with a number of processes.
        processes: starts them.
        output: shows what is said.
        get_signal: tells by which signal the processes were asked to stop, if they were.
        folder: an empty one, for what processes write down of their errors.
    """
    # Else all attempts share one store, and a second one meets the addresses of the first.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    try:
        if plan.rendezvous:
            host = plan.rendezvous.rpartition(":")[0].strip("[]")
            socket.getaddrinfo(host, None)  # which torch tries for two minutes
        handler = get_rendezvous_handler(_describe_rendezvous(plan))
    except socket.gaierror as error:
        output.say(f"the host {host!r} of the rendezvous is not known: {error}")
        return 1
    except RendezvousConnectionError as error:
        output.say(f"nothing answers at {plan.rendezvous}, or something else does: {error.__cause__ or error}")
        return 1
    agent = Agent(plan, handler, processes, output, get_signal, folder)
    try:
        agent.run()
    except RendezvousTimeoutError:
        output.say(f"fewer than {plan.nodes[0]} machines have come to {plan.rendezvous}")
        return 1
    except (RendezvousClosedError, RendezvousConnectionError) as error:
        output.say(f"another machine has ended the job, or {plan.rendezvous} is gone: {error}")
        return agent.exit_code or 1
    if get_signal() is None:  # else other machines may go on
        handler.shutdown()
    return agent.exit_code


def _describe_rendezvous(plan: Plan) -> RendezvousParameters:
    fewest, most = plan.nodes
    if not plan.rendezvous:
        return RendezvousParameters("c10d", "127.0.0.1:0", str(uuid.uuid4()), 1, 1, local_addr="127.0.0.1")
    return RendezvousParameters("c10d", plan.rendezvous, os.environ.get("SLURM_JOB_ID", "blowtorch"), fewest, most)


class Agent(SimpleElasticAgent):
    """Watches over the processes of this machine.

    Attributes:
        exit_code: of the launch, when `run` has returned.
    """

    def __init__(
        self,
        plan: Plan,
        handler: RendezvousHandler,
        processes: Processes,
        output: Output,
        get_signal: Callable[[], int | None],
        folder: Path,
    ) -> None:
        assert plan.processes is not None
        super().__init__(
            WorkerSpec(
                role="default",
                local_world_size=plan.processes,
                rdzv_handler=handler,
                entrypoint=plan.command[1],
                max_restarts=plan.restarts,
            )
        )
        self._plan = plan
        self._processes = processes
        self._output = output
        self._get_signal = get_signal
        self._folder = folder
        self._starts = 0
        self._time_after_failure = min(AFTER_FAILURE_S, plan.shutdown_timeout)
        self.exit_code = 0

    def _error_file(self, rank: int) -> Path:
        return self._folder / f"{self._starts}-{rank}.json"

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._starts += 1
        spec = worker_group.spec
        environments = [
            {
                "RANK": str(worker.global_rank),
                "LOCAL_RANK": str(worker.local_rank),
                "GROUP_RANK": str(worker_group.group_rank),
                "ROLE_RANK": str(worker.role_rank),
                "ROLE_NAME": spec.role,
                "WORLD_SIZE": str(worker.world_size),
                "LOCAL_WORLD_SIZE": str(spec.local_world_size),
                "GROUP_WORLD_SIZE": str(worker_group.group_world_size),
                "ROLE_WORLD_SIZE": str(worker.role_world_size),
                "MASTER_ADDR": str(worker_group.master_addr),
                "MASTER_PORT": str(worker_group.master_port),
                "TORCHELASTIC_RESTART_COUNT": str(spec.max_restarts - self._remaining_restarts),
                "TORCHELASTIC_MAX_RESTARTS": str(spec.max_restarts),
                "TORCHELASTIC_RUN_ID": spec.rdzv_handler.get_run_id(),
                "TORCHELASTIC_USE_AGENT_STORE": "False",
                "TORCHELASTIC_ERROR_FILE": str(self._error_file(worker.global_rank)),
                "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
            }
            for worker in worker_group.workers
        ]
        return dict(enumerate(self._processes.start(environments)))

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = self._processes.poll()
        told = self._get_signal()
        if told is not None and not codes:  # it came before they were started
            self.exit_code = 128 + told
            self._remaining_restarts = 0
            return RunResult(state=WorkerState.FAILED)
        is_over = None not in codes
        ranks = [worker.global_rank for worker in worker_group.workers]
        failures = [
            Failure(rank, code, self._error_file(rank))
            for rank, code in zip(ranks, codes, strict=False)
            if code is not None and is_failure(code)
        ]
        if not is_over and (not failures or told is not None):
            if told is None and self._plan.rendezvous and worker_group.spec.rdzv_handler.is_closed():
                return self._end_with_others()
            return RunResult(state=WorkerState.HEALTHY)
        if failures:
            self._end_after(failures, worker_group.workers[0].world_size)
            return RunResult(state=WorkerState.FAILED)
        self.exit_code = STOPPED if STOPPED in codes else 0
        return RunResult(state=WorkerState.SUCCEEDED, return_values=dict(zip(ranks, codes, strict=False)))

    def _end_after(self, failures: list[Failure], world_size: int) -> None:
        """Say what has failed, end the others, and decide on what comes then."""
        told = self._get_signal()
        if told is not None:
            self._remaining_restarts = 0
            unasked = [failure for failure in failures if failure.code not in (-told, -signal.SIGTERM, -signal.SIGKILL)]
            self.exit_code = 128 + told
            if unasked:
                first = find_first(unasked)
                self.exit_code = first.exit_code
                self._output.say(f"process {first.rank} of {world_size} failed: {first.describe()}")
            return
        timeout = self._time_after_failure
        if self._processes.is_any_running():
            self._output.say(f"a process has failed: the others are asked to stop, and have {timeout:g} s")
        self._processes.stop(timeout)
        ended = {failure.rank for failure in failures}
        for worker in self._worker_group.workers:  # one may have raised first and end last
            if worker.global_rank not in ended and self._error_file(worker.global_rank).exists():
                failures.append(Failure(worker.global_rank, 1, self._error_file(worker.global_rank)))
        first = find_first(failures)
        self.exit_code = first.exit_code
        self._output.drain(1.0)
        self._output.show_last_lines(first.rank)
        text = f"process {first.rank} of {world_size} failed: {first.describe()}"
        if first.is_consequence and self._plan.rendezvous:
            text += ", which may follow from a failure on another machine"
        if self._remaining_restarts:
            number = self._plan.restarts - self._remaining_restarts + 1
            text += f"; all are started again (restart {number} of {self._plan.restarts})"
        self._output.say(text)

    def _end_with_others(self) -> RunResult:
        """End the processes, since another machine has failed for good and closed the rendezvous."""
        self._output.say("another machine has ended the job, and says why")
        self._processes.stop(self._time_after_failure)
        self._remaining_restarts = 0
        self.exit_code = 1
        return RunResult(state=WorkerState.FAILED)

    def _stop_workers(self, worker_group: WorkerGroup, *_: Any, **__: Any) -> None:
        self._processes.stop(self._plan.shutdown_timeout)

    def _shutdown(self, *_: Any, **__: Any) -> None:
        self._processes.stop(self._time_after_failure)
