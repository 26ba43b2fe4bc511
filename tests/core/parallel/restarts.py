"""A run that something happens to: `python restarts.py FOLDER [RANK STEP EVENT]`, and that goes on when started again.

The event is the name of a signal to the process itself, `error`, `late_error`, `stop` or `hang`. It happens in the
first attempt of torchrun alone; `late_error` when the run has ended.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from blowtorch import hookimpl
from tests.core.parallel.jobs import RANK, make_run, train

DROPOUT = float(os.environ.get("DROPOUT", "0.3"))


class Happening:
    def __init__(self, rank, step, event):
        self.rank, self.step, self.event = int(rank), int(step), event

    @hookimpl
    def train_step_end(self, state):
        is_first_attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if (state.rank, state.step) != (self.rank, self.step) or not is_first_attempt:
            return
        if self.event == "error":
            raise ValueError("bad luck")
        if self.event == "stop":
            state.stop("enough")
        elif self.event == "hang":
            time.sleep(600)
        else:
            os.kill(os.getpid(), getattr(signal, self.event))

    @hookimpl
    def run_end(self, state):
        if self.event == "late_error" and state.rank == self.rank:
            raise ValueError("bad luck")


class OfTheFirst:
    """A callback with a state, which the other processes do not have."""

    ranks = "first"
    count = 0

    @hookimpl
    def train_step_end(self, state):
        self.count += 1
        assert self.count == state.step

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    run = make_run(optimizer=torch.optim.AdamW)  # which seeds the streams that the model is drawn from
    noise = torch.Generator().manual_seed(int(RANK))  # other numbers in each process
    run.keep_state("noise", noise)
    run.on("train_step_end")(lambda: torch.rand(1, generator=noise))
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(DROPOUT), nn.Tanh(), nn.Linear(16, 1))
    callbacks = [OfTheFirst(), *([Happening(*sys.argv[2:])] if len(sys.argv) > 2 else [])]
    options = {"checkpoint_every": "5 steps", "resume": "auto", "run_name": "run", "callbacks": callbacks}
    result = train(run, folder, model, max_epochs=6, log_every="3 steps", **options)
    torch.save(noise.get_state(), folder / f"noise-{RANK}.pt")
    in_memory = Path("/proc/self/maps")
    is_mapped = in_memory.exists() and f"{result.folder}/checkpoints/" in in_memory.read_text()
    assert not is_mapped, "nothing of a checkpoint that may be deleted is still read from its file"
    result.raise_if_stopped()
