"""Memory of a device: checkpoints that are copied from it while training goes on, and batches that do not fit."""

import contextlib
import io
import itertools
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.on_device import Row, Setting
from benchmarks.on_device.workloads import largest_difference, one_optimizer, to_host
from blowtorch import Run, open_run

MOST_COPIES = 1.3  # of the state to the host, which a checkpoint may hold training up for


class Wide(nn.Module):
    """Weights of so many bytes, of which little is computed."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__()
        self.tables = nn.ParameterList(torch.zeros(num_bytes // 32, dtype=torch.float32) for _ in range(8))
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """A number that moves each weight."""
        total: torch.Tensor = sum(table[: len(batch)].sum() for table in self.tables) + self.factor * batch.mean()
        return total


def check_copies(setting: Setting) -> Iterator[Row]:
    """A checkpoint holds the weights of its step, though training went on while it was written; on each device."""
    devices = [setting.device]
    if setting.is_cuda and torch.cuda.device_count() > 1:
        devices.append(torch.device("cuda", 1))
    else:
        yield Row("a checkpoint from a device that is not the current one", "needs a second device", "equal")
    for device in devices:
        kept: dict[int, Any] = {}
        run = Run(random_seed=0, command_line=[])
        run.train_step(lambda batch, model: model(batch))
        run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))

        @run.on("train_step_end")
        def keep(step, model, kept=kept):
            if step % 5 == 0:
                kept[step] = to_host(model)

        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            batches = [torch.randn(64) for _ in range(20)]
            settings = {"save_path": folder, "progress": False, "checkpoint_every": "5 steps", "keep_last": 9}
            num_bytes = 1 << (20 if setting.is_short else 28)
            result = run(Wide(num_bytes), batches, device=str(device), **settings)
            view = open_run(result.folder)
            differences = [
                largest_difference(to_host(view.load_model(Wide(num_bytes), checkpoint.name)), kept[checkpoint.step])
                for checkpoint in view.checkpoints
            ]
        is_right = len(differences) >= 2 and not any(differences)
        yield Row(f"checkpoints of {device}, in training", f"differ by {max(differences):g}", "equal", is_right)


def time_a_large_checkpoint(setting: Setting) -> Iterator[Row]:
    """How long a checkpoint holds training up, beside one copy of its state to the host."""
    num_bytes = (1 << 24) if setting.is_short else (8 << 30)
    if setting.is_cuda and torch.cuda.mem_get_info(setting.device)[0] < 3 * num_bytes:
        yield Row("an asynchronous checkpoint of 8 GB", "needs 24 GB on the device", f"{MOST_COPIES} copies")
        return
    times: list[float] = []
    run = Run(random_seed=0, command_line=[])
    run.train_step(lambda batch, model: model(batch))
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))

    @run.on("train_step_end")
    def tick():
        setting.synchronize()
        times.append(time.perf_counter())

    model = Wide(num_bytes).to(setting.device)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = {"save_path": folder, "progress": False, "checkpoint_every": "20 steps", "keep_last": 1}
        run(model, [torch.randn(64) for _ in range(60)], device=str(setting.device), **settings)
    steps = [end - begin for begin, end in itertools.pairwise(times)]
    buffers = [torch.empty_like(table, device="cpu", pin_memory=setting.is_cuda) for table in model.parameters()]
    copies = []
    for _ in range(2):  # the first touches the memory
        setting.synchronize()
        begin = time.perf_counter()
        for buffer, table in zip(buffers, model.parameters(), strict=True):
            buffer.copy_(table.detach(), non_blocking=setting.is_cuda)
        setting.synchronize()
        copies.append(time.perf_counter() - begin)
    usual = sorted(steps)[len(steps) // 2]
    stall = sorted(steps)[-1 if len(steps) < 45 else -2] - usual  # the second checkpoint has its buffers already
    found = f"{stall:.3f} s, a copy {copies[-1]:.3f} s, a step {usual:.4f} s"
    is_right = stall <= MOST_COPIES * copies[-1] + usual if setting.is_cuda and not setting.is_short else None
    yield Row(f"a checkpoint of {num_bytes / 1e9:.2g} GB holds training up", found, f"{MOST_COPIES} copies", is_right)


def search_batch_size(setting: Setting) -> Iterator[Row]:
    """`find_batch_size` meets a real lack of memory, and training works with what it returns."""
    if not setting.is_cuda or setting.is_short:
        yield Row("find_batch_size meets a lack of memory", "not on this device", "a size that fits")
        return
    limit = 2 << 30
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(setting.device).total_memory)
    run = Run(random_seed=0, command_line=[])
    run.configure_optimizers(one_optimizer)
    run.train_step(lambda batch, model: model(batch[0]).square().mean())
    data = torch.utils.data.TensorDataset(torch.randn(1 << 16, 1024))
    model = nn.Sequential(nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 1024))
    loader = torch.utils.data.DataLoader(data, 32)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        size = run.find_batch_size(model, loader, device=str(setting.device))
        settings = {"save_path": str(Path(folder)), "progress": False, "max_steps": 3, "device": str(setting.device)}
        run(model, torch.utils.data.DataLoader(data, size), **settings)
    torch.cuda.set_per_process_memory_fraction(1.0)
    yield Row("find_batch_size meets a lack of memory", str(size), "from 1024 to 65535", 1024 <= size < 1 << 16)
