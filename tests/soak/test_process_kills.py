"""Whichever of two processes is killed at whatever instant, torchrun starts both again, and they end as if nobody had.

`BLOWTORCH_SOAK_PROCESS_KILLS` says how often in all; `tox run -e soak` kills 100 times. A checkpoint is due every third
step, each process loads by a worker of its own, and there is dropout and augmentation.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from blowtorch import find_runs
from tests.soak.test_soak import SCRIPT, outcome

KILLS = int(os.environ.get("BLOWTORCH_SOAK_PROCESS_KILLS", "1"))
NUM_PROCESSES = 2
NOTE = """
import os, pathlib
pathlib.Path(f"process-{os.environ['RANK']}").write_text(str(os.getpid()))
"""


def start(folder):
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(NOTE + SCRIPT)
    options = [f"--nproc-per-node={NUM_PROCESSES}", "--max-restarts=100000", "--monitor-interval=0.1"]
    options += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "train.py", "with", "workers=1"]
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore::UserWarning"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill_one(folder, rank):
    """Kill a process if it is there; return whether it was."""
    note = folder / f"process-{rank}"
    try:
        os.kill(int(note.read_text()), signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return False
    note.unlink()
    return True


def ends_well(process, folder):
    try:
        assert process.wait(timeout=300) == 0, (folder / "output.txt").read_text()[-5000:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.skipif(os.name != "posix", reason="signals to groups of processes")
def test_whichever_process_is_killed_all_start_again_and_end_as_if_nobody_had_touched_them(tmp_path):
    dice = random.Random(int(os.environ.get("BLOWTORCH_SOAK_SEED", "1")))
    straight = tmp_path / "straight"
    begun = time.monotonic()
    ends_well(start(straight), straight)
    longest_s = time.monotonic() - begun  # from one kill to the next; part of it is the start, on a busy machine too
    expected = outcome(straight)
    assert len(expected[1]) > 30
    spent = runs = before_the_first = 0
    while spent < KILLS:
        runs += 1
        folder = tmp_path / f"run-{runs}"
        process = start(folder)
        try:
            while spent < KILLS and process.poll() is None:
                time.sleep(dice.uniform(0, longest_s))
                if process.poll() is None and kill_one(folder, dice.randrange(NUM_PROCESSES)):
                    spent += 1
                    before_the_first += not list(folder.glob("train_logs/*/checkpoints/step-*"))
        finally:
            ends_well(process, folder)
        for number, view in enumerate(
            find_runs(folder / "train_logs")
        ):  # one killed after its end is followed by another
            assert view.status == "finished"
            assert [event["event"] for event in view.events()].count("start") == 1
            apart = tmp_path / f"apart-{runs}-{number}" / "train_logs"
            apart.mkdir(parents=True)
            view.path.rename(apart / view.path.name)
            assert outcome(apart.parent) == expected
        print(f"{spent} kills in {runs} runs, {before_the_first} of them before the first checkpoint", flush=True)
    assert before_the_first < max(KILLS, 10), "nothing was trained between two kills"
