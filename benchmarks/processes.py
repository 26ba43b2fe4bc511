"""Time of a training step in several processes on a CPU, beside the same exchange of gradients by hand.

    python benchmarks/processes.py [--processes 2] [--rounds 15] [--steps 200] [--width 256]

Each round trains the same model on the same list of batches, first by one contestant and then by the others, in an
order drawn anew. By hand is torch's `DistributedDataParallel` with a loop of its own, which takes its samples of each
batch, and adds up the loss over all processes and reads it every 50 steps; blowtorch records as often. What is told, in
microseconds, is what a tenth of all steps stay below, and its ratio to that by hand: where processes wait for one
another, most steps tell of the machine.

Read it on a machine with at least as many free cores as processes: otherwise it measures who waits for whom.
"""

import argparse
import itertools
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Batch = tuple[torch.Tensor, torch.Tensor]
EVERY = 50


def make_job(steps: int, width: int) -> tuple[nn.Module, list[Batch]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    return model, [(torch.randn(64, 64), torch.randint(10, (64,))) for _ in range(steps)]


def by_hand(model: nn.Module, batches: list[Batch], ticks: list[float]) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    total = torch.zeros(2, dtype=torch.float64)
    for number, (x, y) in enumerate(batches, 1):
        start, stop = len(x) * rank // size, len(x) * (rank + 1) // size
        ticks.append(time.perf_counter())
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(wrapped(x[start:stop]), y[start:stop])
        loss.backward()
        optimizer.step()
        total += torch.tensor([loss.item() * (stop - start), stop - start])
        if number % EVERY == 0:
            dist.all_reduce(total)
            total.zero_()


def by_blowtorch(model: nn.Module, batches: list[Batch], ticks: list[float]) -> None:
    from blowtorch import Run

    run = Run(random_seed=0, command_line=[])

    @run.train_step
    def train_step(batch: Batch, model: nn.Module) -> torch.Tensor:
        ticks.append(time.perf_counter())
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    @run.configure_optimizers
    def configure_optimizers(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-3)

    options = {"log_every": f"{EVERY} steps", "checkpoint_every": None, "progress": False}
    run(model, batches, max_epochs=1, save_path=os.environ["SAVE_PATH"], **options)


CONTESTANTS = {"by hand": by_hand, "by hand again": by_hand, "blowtorch": by_blowtorch}


def compete(options: argparse.Namespace) -> None:
    """Measure in this process, one of several; the first prints."""
    dist.init_process_group("gloo")
    taken: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for number in range(options.rounds + 1):
        names = [*CONTESTANTS]
        random.Random(number).shuffle(names)
        for name in names:
            ticks: list[float] = []
            dist.barrier()
            CONTESTANTS[name](*make_job(options.steps, options.width), ticks)
            steps = [after - before for before, after in itertools.pairwise(ticks[20:])]
            if number:  # the first round warms up
                taken[name].extend(step * 1e6 for step in steps)
    if dist.get_rank() == 0:
        tenths = {name: statistics.quantiles(steps, n=10)[0] for name, steps in taken.items()}
        for name, tenth in tenths.items():
            print(f"{name:15}{tenth:9.0f} us{tenth / tenths['by hand']:9.3f} of by hand")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        compete(options)
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared: dict[str, Any] = {"WORLD_SIZE": options.processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with tempfile.TemporaryDirectory() as folder:
        shared["SAVE_PATH"] = folder
        processes = [
            subprocess.Popen(
                [sys.executable, *sys.argv],
                env={**os.environ, **{name: str(value) for name, value in shared.items()}, "RANK": str(rank)},
            )
            for rank in range(options.processes)
        ]
        code = max(process.wait() for process in processes)
    sys.exit(code)


if __name__ == "__main__":
    main()
