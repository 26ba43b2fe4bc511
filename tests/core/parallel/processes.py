"""Starts scripts in several processes, as torchrun does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

SCENARIOS = ["-m", "tests.core.parallel.scenarios"]
ROOT = Path(__file__).parents[3]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(rank=0, size=1, port=0, **variables):
    """What torchrun tells a process, and further variables."""
    several = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    told = {name: str(value) for name, value in {**(several if size > 1 else {}), **variables}.items()}
    return {**os.environ, "OMP_NUM_THREADS": "1", **told}


def start(words, size, **variables):
    """Start a script in so many processes."""
    port = free_port()
    command = [sys.executable, *map(str, words)]
    return [_start(command, environment(rank, size, port, **variables)) for rank in range(size)]


def start_by_torchrun(words, size, *options):
    """Start a script by torchrun, which starts it again if it may."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}", *options]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", *map(str, words)]
    return _start(command, environment())


def _start(command, variables):
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=variables, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


def finish(processes, seconds=120):
    """Wait for processes; return the exit code, the output and the error text of each."""
    try:
        ended = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, ended, strict=True)]


def run_scenarios(folder, size, *names):
    """Do scenarios in so many processes, and return the folder with what they came to."""
    for code, _, problem in finish(start([*SCENARIOS, folder, *names], size)):
        assert code == 0, problem
    return folder
