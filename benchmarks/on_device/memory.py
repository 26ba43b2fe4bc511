"""Memory of a device: checkpoints that are copied from it while training goes on, and batches that do not fit."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.on_device import Row, Setting, aside, attempt
from benchmarks.on_device.workloads import Wide, largest_difference, one_optimizer, to_host
from blowtorch import Run, open_run


def check_copies(setting: Setting) -> Iterator[Row]:
    """A checkpoint holds the weights of its step, though training went on while it was written; on each device."""
    devices = [setting.device]
    second = "a checkpoint from a device that is not the current one"
    if setting.is_cuda and torch.cuda.device_count() > 1:
        devices.append(torch.device("cuda", 1))
    else:
        yield Row(second, "needs a second device", "equal")
    for device in devices:
        what = f"checkpoints of {device}, in training"
        yield attempt(what, "equal", compare_copies, setting, what, device)


def compare_copies(setting: Setting, what: str, device: torch.device) -> Row:
    """Train weights that all change in each step, and compare each checkpoint with what was kept by hand."""
    kept: dict[int, Any] = {}
    run = Run(random_seed=0, command_line=[])
    run.train_step(lambda batch, model: model(batch))
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))

    @run.on("train_step_end")
    def keep(step, model):
        if step % 5 == 0:
            kept[step] = to_host(model)

    num_bytes = 1 << (20 if setting.is_short else 28)
    with aside() as folder:
        settings = {"save_path": folder, "progress": False, "checkpoint_every": "5 steps", "keep_last": 9}
        result = run(Wide(num_bytes), [torch.randn(64) for _ in range(20)], device=str(device), **settings)
        view = open_run(result.folder)
        differences = [
            largest_difference(to_host(view.load_model(Wide(num_bytes), checkpoint.name)), kept[checkpoint.step])
            for checkpoint in view.checkpoints
        ]
    is_right = len(differences) >= 2 and not any(differences)
    return Row(what, f"{len(differences)} of them differ by {max(differences):g}", "equal", is_right)


def search_batch_size(setting: Setting) -> Iterator[Row]:
    """`find_batch_size` meets a real lack of memory, and training works with what it returns."""
    what = "find_batch_size meets a lack of memory"
    if not setting.is_cuda or setting.is_short:
        yield Row(what, "not on this device", "a size that fits")
        return
    whole = torch.cuda.get_device_properties(setting.device).total_memory
    torch.cuda.set_per_process_memory_fraction((2 << 30) / whole, setting.device.index)  # which may be None
    yield attempt(what, "a size that fits", find_and_train, setting, what)


def find_and_train(setting: Setting, what: str) -> Row:
    """Search within 2 GiB, of which a sample takes about 60 kB, and train with what was found."""
    run = Run(random_seed=0, command_line=[])
    run.configure_optimizers(one_optimizer)
    run.train_step(lambda batch, model: model(batch[0]).square().mean())
    data = TensorDataset(torch.randn(1 << 16, 1024))
    model = nn.Sequential(nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 1024))
    options = {"device": str(setting.device), "progress": False}
    with warnings.catch_warnings(), aside() as folder:
        warnings.simplefilter("ignore")
        size = run.find_batch_size(model, DataLoader(data, 32), **options)
        num_lacks = torch.cuda.memory_stats(setting.device).get("num_ooms", 0)
        left = torch.cuda.memory_reserved(setting.device) / 2**20
        step = run(model, DataLoader(data, size), max_steps=3, save_path=folder, **options).step
    found = f"{size}, after {num_lacks} lacks of memory; {left:.0f} MiB stayed reserved; then {step} steps"
    return Row(what, found, "from 1024 to 65535, and 3 steps", 1024 <= size < 1 << 16 and num_lacks > 0 and step == 3)
