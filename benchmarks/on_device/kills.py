"""Whether training that is killed goes on as if nothing had been."""

import math
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.on_device import Row, Setting, aside
from benchmarks.on_device.workloads import Weights, largest_difference, make_workloads, to_host
from blowtorch import Run

RUNS, KILLS = 4, 5  # so many runs beside each other, each of which is killed so often
# Forked, since torch is imported already, and CUDA only begins in the process itself; on a Mac that is not safe.
CONTEXT: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def kill_and_continue(setting: Setting) -> Iterator[Row]:
    """Training that is killed at random moments, and goes on, until it is done; beside the same without."""
    runs, kills = (1, 2) if setting.is_short else (RUNS, KILLS)
    with aside() as folder:
        straight = Lane(Path(folder) / "straight", setting, 0, 0)
        killed = [Lane(Path(folder) / f"run{number}", setting, kills, number) for number in range(runs)]
        while unfinished := [lane for lane in (straight, *killed) if lane.weights is None]:
            for lane in unfinished:
                lane.look()
            time.sleep(0.02)
    num_killed = sum(lane.num_killed for lane in killed)
    unequal = sum(largest_difference(lane.weights or {}, straight.weights or {}) > 0.0 for lane in killed)
    what = f"bf16, killed {num_killed} times in {runs} runs, and continued"
    yield Row(what, f"{unequal} runs differ", "the bits without a kill", unequal == 0 and num_killed > 0)


class Lane:
    """A run in processes of its own, one after the other, each of which is killed but for the last.

    Args:
        folder: of the run; it is made.
        setting: where.
        kills: how often.
        number: of the lane, from which the moments are drawn.
    """

    def __init__(self, folder: Path, setting: Setting, kills: int, number: int) -> None:
        folder.mkdir()
        self.weights: Weights | None = None
        self.num_killed = 0
        self._folder, self._setting, self._kills = folder, setting, kills
        self._draw = random.Random(number)
        self._start()

    def _start(self) -> None:
        self._before, self._kill_at = self._checkpoints(), math.inf
        self._process = CONTEXT.Process(target=train_to_be_killed, args=(self._setting, self._folder))
        self._process.start()

    def _checkpoints(self) -> set[Path]:
        return set(self._folder.glob("*/checkpoints/step-*"))

    def look(self) -> None:
        """Kill the process, start the next, or take the weights, if it is time to."""
        now = time.monotonic()
        if self._process.exitcode == 0:
            self.weights = torch.load(self._folder / "weights.pt", weights_only=True)
        elif self._process.exitcode == -signal.SIGKILL:
            self._start()
        elif self._process.exitcode is not None:
            said = (self._folder / "said").read_text(errors="replace")[-1000:]
            raise RuntimeError(f"the process ended with {self._process.exitcode}: {said}")
        elif now >= self._kill_at:
            assert self._process.pid is not None
            os.kill(self._process.pid, signal.SIGKILL)
            self.num_killed += 1
            self._process.join()
        elif self.num_killed < self._kills and self._kill_at == math.inf and self._checkpoints() - self._before:
            self._kill_at = now + 0.5 * self._draw.random()


def train_to_be_killed(setting: Setting, folder: Path) -> None:
    """Train the digits, from the last checkpoint where there is one, and save the weights."""
    with (folder / "said").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    workload = make_workloads(num_batches=40)[0]
    run = Run(random_seed=0, command_line=[], deterministic=True)

    @run.train_step
    def step(batch, model):
        time.sleep(0.005)  # there has to be time to be killed
        return workload.step(batch, model)

    run.configure_optimizers(workload.make_optimizers)
    settings = {"save_path": str(folder), "run_name": "killed", "resume": "auto", "device": str(setting.device)}
    epochs, model = 6 if setting.is_short else 20, workload.make_model()
    options = {"max_epochs": epochs, "checkpoint_every": "20 steps", "precision": "bf16", "progress": False}
    run(model, list(workload.batches), **settings, **options)
    torch.save(to_host(model), folder / "weights.pt")
