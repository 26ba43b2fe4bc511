"""Scripts in processes of their own that are forked from one which has imported the large packages already.

A process that is started anew spends seconds on its imports, which is more than most scripts of tests take to train.
What is told of an interpreter, of its start and of its end needs one that is started anew.
"""

import contextlib
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path

LARGE = ["numpy", "pytest", "torch._dynamo", "torch.distributed", "torch.distributed.fsdp", "blowtorch.run"]
LARGE += ["sklearn.datasets", "sklearn.model_selection"]  # these and those that follow where they are installed
LARGE += ["transformers.models.bert.modeling_bert", "torch_geometric.nn"]


class Forked:
    """`subprocess.Popen` for a script; it leads a group of processes, and its output can be read at any time."""

    def __init__(self, *words, folder=".", **variables):
        place = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, place)
        self._files = [place / name for name in ("output", "problem")]
        for file in self._files:
            file.touch()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LARGE)
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        given = [str(word) for word in words], str(Path(folder).absolute()), environment, self._files
        self._process = context.Process(target=execute, args=given)
        self._process.start()

    @property
    def pid(self):
        return self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self.returncode

    def read(self):
        """Return what stands in the output and in the error text so far."""
        return tuple(file.read_text() for file in self._files)

    def wait_for(self, text):
        """Wait until the output has a text, or the process has ended."""
        while text not in self.read()[0] and self.poll() is None:
            time.sleep(0.005)

    def communicate(self, timeout=None):
        """Wait for the end; return the output and the error text."""
        self.wait(timeout)
        return self.read()

    def send_signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def kill_group(self):
        """Kill it with all that it has started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has not come so far that it leads a group
            self.kill()


def run(*words, folder=".", timeout=120, **variables):
    """Do what `subprocess.run` does, with a script in a forked process."""
    process = Forked(*words, folder=folder, **variables)
    try:
        output, problem = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(words, process.returncode, output, problem)


def execute(words, folder, environment, outputs):
    """Do in this process what `python WORDS` does in one of its own."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    multiprocessing.set_start_method(None, force=True)  # workers are not started as this process was
    for stream, path in zip((1, 2), outputs, strict=True):
        with path.open("ab") as output:
            os.dup2(output.fileno(), stream)
    os.chdir(folder)
    # Workers that are spawned look for the main module from there.
    multiprocessing.process.ORIGINAL_DIR = folder  # type: ignore[attr-defined]
    os.environ.clear()
    os.environ.update(environment)
    import numpy as np
    import torch

    from blowtorch.parallel.world import join

    torch.set_num_threads(1)
    random.seed()  # processes that are started anew have no numbers in common either
    np.random.seed()
    torch.seed()
    sys.argv, sys.orig_argv = words, [sys.executable, *words]
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, folder)
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            script = Path(folder) / words[0]
            sys.path.insert(0, str(script.parent))
            runpy.run_path(str(script), run_name="__main__")
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)  # which a process of multiprocessing leaves out
        sys.exit(1)
    finally:
        if torch.distributed.is_initialized():
            join().leave()  # as at the exit of Python, which a process of multiprocessing leaves out
