"""What a checkpoint of 8 GB costs the training that goes on beside it."""

import contextlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.on_device import Row, Setting, aside, attempt
from benchmarks.on_device.workloads import Wide
from blowtorch import Run

MOST_COPIES = 1.3  # of the state to the host, which a checkpoint may hold training up for
MOST_WRITING_S = 40.0  # which a disk may need for one


class EnoughError(KeyboardInterrupt):
    """Ends the run, which waits for no checkpoint then, and saves no other one."""


class Times:
    """When each step began and ended on the device, and when the first checkpoint was published."""

    def __init__(self) -> None:
        self.begins: dict[int, float] = {}
        self.ends: dict[int, float] = {}
        self.published = 0.0

    def gap_after(self, step: int) -> float:
        """Seconds between the end of a step and the begin of the next."""
        return self.begins[step + 1] - self.ends[step]

    def median(self, steps: range) -> float:
        """The median of the seconds that a step takes."""
        return statistics.median(self.ends[step] - self.begins[step] for step in steps if step in self.ends)


def time_a_large_checkpoint(setting: Setting) -> Iterator[Row]:
    """How long a checkpoint holds training up, beside one copy of its state to the host, and what it slows down."""
    num_bytes = (1 << 24) if setting.is_short else (8 << 30)
    what = f"a checkpoint of {num_bytes / 1e9:.2g} GB"
    if setting.is_cuda and torch.cuda.mem_get_info(setting.device)[0] < 4 * num_bytes:
        yield Row(what, "needs four times as much memory on the device", f"{MOST_COPIES} copies")
        return
    every, times = (20 if setting.is_short else 100), Times()
    yield attempt(f"{what} holds training up", "a figure", hold_up, setting, what, num_bytes, every, times)
    if 2 * every + 1 not in times.begins:
        return
    usual, beside = times.median(range(5, every)), times.median(range(every + 1, 2 * every - 1))
    written = times.published - times.begins[every + 1]
    yield Row(f"{what} is written in the background", f"in {written:.2f} s, {num_bytes / 1e9 / written:.2f} GB/s")
    found = f"{1000 * beside:.2f} ms a step, without it {1000 * usual:.2f} ms: a loss of {beside / usual - 1:.1%}"
    yield Row("training while it is written", found)
    yield Row("the first one, which also takes the memory for the copy", f"{times.gap_after(every):.3f} s")


def hold_up(setting: Setting, what: str, num_bytes: int, every: int, times: Times) -> Row:
    """Train until the second checkpoint is copied; only the first one has to find memory for its copy."""
    run, model = Run(random_seed=0, command_line=[]), Wide(num_bytes).to(setting.device)
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))

    def await_first(folder: Path) -> None:
        until = time.perf_counter() + MOST_WRITING_S
        while not (found := list(folder.glob("*/checkpoints/step-*/manifest.json"))) and time.perf_counter() < until:
            time.sleep(0.005)
        age = time.time() - found[0].stat().st_mtime if found else 0.0
        times.published = time.perf_counter() - age

    with aside() as folder:

        @run.train_step
        def step(batch, model, step):
            times.begins[step] = time.perf_counter()
            if step == 2 * every:  # or the second would wait until the first is written
                await_first(Path(folder))
            if step == 2 * every + 1:
                raise EnoughError
            return model(batch)

        @run.on("train_step_end")
        def end(step):
            setting.synchronize()
            times.ends[step] = time.perf_counter()

        settings = {"save_path": folder, "progress": False, "keep_last": 1, "validate_every": None}
        batches = [torch.randn(64) for _ in range(3 * every)]
        with contextlib.suppress(EnoughError):
            run(model, batches, device=str(setting.device), checkpoint_every=f"{every} steps", **settings)
    copied, usual, stall = time_a_copy(setting, model), times.median(range(5, every)), times.gap_after(2 * every)
    found = f"{stall:.3f} s, a copy {copied:.3f} s, a step {usual:.4f} s"
    is_right = stall <= MOST_COPIES * copied + usual if setting.is_cuda and not setting.is_short else None
    return Row(f"{what} holds training up", found, f"{MOST_COPIES} copies", is_right)


def time_a_copy(setting: Setting, model: torch.nn.Module) -> float:
    """Seconds in which the weights are copied to memory of the host that is pinned, and has been touched before."""
    buffers = [torch.empty_like(table, device="cpu", pin_memory=setting.is_cuda) for table in model.parameters()]
    for _ in range(2):  # the first touches the memory
        setting.synchronize()
        begin = time.perf_counter()
        for buffer, table in zip(buffers, model.parameters(), strict=True):
            buffer.copy_(table.detach(), non_blocking=setting.is_cuda)
        setting.synchronize()
        seconds = time.perf_counter() - begin
    return seconds
