"""Starts scripts in several processes, as torchrun does; or by torchrun itself."""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

SCENARIOS = ["-m", "tests.core.parallel.scenarios"]
ROOT = Path(__file__).parents[3]
LARGE = ["pytest", "torch._dynamo", "torch.distributed", "blowtorch.run"]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(rank=0, size=1, port=0, **variables):
    """What torchrun tells a process, and further variables."""
    several = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    told = {name: str(value) for name, value in {**(several if size > 1 else {}), **variables}.items()}
    return {**os.environ, "OMP_NUM_THREADS": "1", **told}


class Forked:
    """A script in a process that is forked from one which has imported the large packages already.

    A process that is started anew spends seconds on its imports, which is more than these scripts take to train.
    """

    def __init__(self, words, variables):
        self._streams = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LARGE)
        names = [stream.name for stream in self._streams]
        self._process = context.Process(target=execute, args=([str(word) for word in words], variables, names))
        self._process.start()

    def communicate(self, timeout=None):
        """Wait for the end; return the output and the error text."""
        self._process.join(timeout)
        self.returncode = self._process.exitcode
        if self.returncode is None:
            raise TimeoutError(f"{self._process} has not ended within {timeout} s")
        texts = tuple(stream.read() for stream in self._streams)
        for stream in self._streams:
            stream.close()
        return texts

    def kill(self):
        self._process.kill()


def execute(words, variables, outputs):
    """Do in this process what `python WORDS` does in one of its own."""
    for stream, name in zip((1, 2), outputs, strict=True):
        with Path(name).open("ab") as output:
            os.dup2(output.fileno(), stream)
    os.chdir(ROOT)
    os.environ.update(variables)
    import torch

    from blowtorch.parallel.world import join

    torch.set_num_threads(1)
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    finally:
        if torch.distributed.is_initialized():
            join().leave()  # as at the exit of Python, which a process of multiprocessing leaves out


def fork(words, size, **variables):
    """Start a script in so many processes, each forked: for scripts that start no process themselves."""
    port = free_port()
    return [Forked(words, environment(rank, size, port, **variables)) for rank in range(size)]


def start(words, size, **variables):
    """Start a script in so many processes, each anew: for scripts whose loaders have workers."""
    port = free_port()
    return [
        _start([sys.executable, *map(str, words)], environment(rank, size, port, **variables)) for rank in range(size)
    ]


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
