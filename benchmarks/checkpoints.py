"""What a checkpoint of 600 MB costs the training that goes on beside it.

    python benchmarks/checkpoints.py [--rounds 5] [--megabytes 600]

Each contestant saves the same model in the middle of the same training of a small network, one thread, in one process,
taking turns. What is printed are medians over the rounds, the first of which warms up and does not count:

    wait    how much longer than usual the step took after which the checkpoint was asked for; in brackets, how often
            the state could have been copied within memory meanwhile
    stall   the longest step after that, until the checkpoint is on the disk
    lost    training time lost in all: what the steps took until the checkpoint was on the disk, less what as many steps
            take without one
    verify  checking the checksums, as a part of the time that the load takes which follows it
"""

import argparse
import contextlib
import io
import itertools
import os
import shutil
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

EVERY = 4000  # steps from one checkpoint to the next; the second is measured, when memory has been touched
Figures = dict[str, float]


class Trained(nn.Module):
    """A small network that is trained, and much that is only kept."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))
        for index in range(30):
            self.register_buffer(f"kept{index}", torch.randn(megabytes * 250_000 // 30))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.net(x)
        return result


class Stopwatch:
    """When each step began, and when the second checkpoint was on the disk."""

    def __init__(self) -> None:
        self.began: list[float] = []
        self.done = 0.0

    def figures(self) -> Figures:
        gaps = [after - before for before, after in itertools.pairwise(self.began)]
        usual = statistics.median(gaps[2 * EVERY - 1000 : 2 * EVERY - 10])
        first = 2 * EVERY - 1  # the gap in which the second checkpoint is asked for
        during = [gap for gap, start in zip(gaps[first:], self.began[first:], strict=False) if start < self.done]
        lost = sum(during) - usual * len(during)
        return {"wait": during[0] - usual, "stall": max(during[1:], default=0.0), "lost": lost}


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3)


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(128, 256), torch.randn(128, 1)


Save = Callable[[nn.Module, Path], Callable[[], object]]  # begins to save; what it returns waits for the end


def by_hand(save: Save) -> Callable[[nn.Module, Path], Figures]:
    """The loop by hand, with a save that may go on beside the training."""

    def train(model: nn.Module, folder: Path) -> Figures:
        watch, (x, y), optimizer = Stopwatch(), make_batch(), make_optimizer(model)

        def wait_until_saved(wait: Callable[[], object]) -> None:
            wait()
            watch.done = time.perf_counter()

        waiter = threading.Thread()
        while len(watch.began) < 2 * EVERY + 1 or waiter.is_alive():
            watch.began.append(time.perf_counter())
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
            if len(watch.began) % EVERY == 0 and not waiter.is_alive():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                waiter = threading.Thread(target=wait_until_saved, args=(save(model, folder),))
                waiter.start()
        watch.began.append(time.perf_counter())
        return watch.figures()

    return train


def save_synchronously(model: nn.Module, folder: Path) -> Callable[[], object]:
    with (folder / "model.pt").open("wb") as file:
        torch.save(model.state_dict(), file)
        file.flush()
        os.fsync(file.fileno())
    return lambda: None


def save_in_a_thread(model: nn.Module, folder: Path) -> Callable[[], object]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    thread = threading.Thread(target=torch.save, args=(state, folder / "model.pt"))
    thread.start()
    return thread.join


def save_distributed(model: nn.Module, folder: Path) -> Callable[[], object]:
    import torch.distributed.checkpoint as dcp

    result: Callable[[], object] = dcp.async_save(  # type: ignore[attr-defined]
        {"model": model.state_dict()}, checkpoint_id=folder / "dcp"
    ).result
    return result


def blowtorch(model: nn.Module, folder: Path) -> Figures:
    from blowtorch import Run

    watch, data = Stopwatch(), make_batch()
    run = Run(random_seed=1, command_line=[])

    @run.train_step
    def step(batch: tuple[torch.Tensor, torch.Tensor], model: nn.Module) -> torch.Tensor:
        watch.began.append(time.perf_counter())
        x, y = batch
        return F.mse_loss(model(x), y)

    run.configure_optimizers(make_optimizer)

    @run.on("checkpoint_saved")
    def note(state, checkpoint):  # type: ignore[no-untyped-def]
        if checkpoint.step == 2 * EVERY:
            watch.done = time.perf_counter()
            state.stop("it was measured")

    result = run(model, [data] * EVERY, max_epochs=9, checkpoint_every="1 epoch", save_path=folder, progress=False)
    return watch.figures() | measure_load(result.folder)


def measure_load(folder: Path) -> Figures:
    """Verification beside the load that it comes before, when the file is in the memory of the system."""
    from blowtorch.checkpoint.tensors import read_tensors
    from blowtorch.folder.manifest import verify

    path = folder / "checkpoints" / (folder / "checkpoints" / "latest").read_text().strip()
    began = time.perf_counter()
    assert verify(path) == []
    verified = time.perf_counter()
    read_tensors(path / "model.pt"), read_tensors(path / "training.pt")
    loaded = time.perf_counter()
    return {"verify": (verified - began) / (loaded - verified)}


def one_copy(model: nn.Module) -> float:
    """Seconds that one copy of the state within memory takes, into memory that was touched before."""
    state = model.state_dict()
    twin = {name: value.clone() for name, value in state.items()}
    began = time.perf_counter()
    for name, value in state.items():
        twin[name].copy_(value)
    return time.perf_counter() - began


CONTESTANTS: dict[str, Callable[[nn.Module, Path], Figures]] = {
    "blowtorch": blowtorch,
    "torch.save": by_hand(save_synchronously),
    "torch.save in a thread": by_hand(save_in_a_thread),
    "torch async_save": by_hand(save_distributed),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--only", choices=CONTESTANTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = Trained(given.megabytes)
    found: dict[str, list[Figures]] = {name: [] for name in CONTESTANTS if given.only in (None, name)}
    copies = []
    for _ in range(given.rounds + 1):
        copies.append(one_copy(model))
        for name, rows in found.items():
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                rows.append(CONTESTANTS[name](model, Path(folder) / "saved"))
    copy = statistics.median(copies[1:])
    print(f"{given.megabytes} MB, one copy within memory {copy * 1000:.0f} ms; medians of {given.rounds} rounds")
    for name, rows in found.items():
        median = {key: statistics.median(row[key] for row in rows[1:]) for key in rows[0]}
        line = f"{name:24} wait {median['wait'] * 1000:5.0f} ms ({median['wait'] / copy:4.1f} copies)"
        line += f"   stall {median['stall'] * 1000:5.0f} ms   lost {median['lost']:5.2f} s"
        print(line + (f"   verify {median['verify']:.0%} of the load" if "verify" in median else ""))


if __name__ == "__main__":
    main()
