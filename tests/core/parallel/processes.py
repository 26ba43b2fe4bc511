"""Starts scripts in several processes, as torchrun does; or by torchrun itself."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from tests.forked import Forked

SCENARIOS = ["-m", "tests.core.parallel.scenarios"]
ROOT = Path(__file__).parents[3]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def fork(words, size, **variables):
    """Start a script in so many processes, with what torchrun tells each, and further variables."""
    told = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        Forked(*words, folder=ROOT, **({"RANK": rank, "LOCAL_RANK": rank, **told} if size > 1 else {}), **variables)
        for rank in range(size)
    ]


def start_by_torchrun(words, size, *options):
    """Start a script by torchrun, which starts it again if it may."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}", *options]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", *map(str, words)]
    environment, pipe = {**os.environ, "OMP_NUM_THREADS": "1"}, subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


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
    for code, _, problem in finish(fork([*SCENARIOS, folder, *names], size)):
        assert code == 0, problem
    return folder


def read(folder, name, rank=0):
    """Return what a process has told of a run, as `keep` in `jobs` has written it, and its weights."""
    told = json.loads((folder / name / f"metrics-{rank}.json").read_text())
    return told, torch.load(folder / name / f"weights-{rank}.pt")
