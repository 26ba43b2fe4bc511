"""Whether the host waits for the device on steps that record nothing, and how long the device waits for the host."""

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.on_device import Row, Setting
from benchmarks.on_device.workloads import Decoder, make_workloads, one_optimizer, predict_bytes
from blowtorch import Run

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
FIRST, LAST, EVERY = 25, 45, 50  # the steps that are watched, between two recordings


def count_waits(setting: Setting) -> Iterator[Row]:
    """By torch's own check, which raises where the host waits, and by the events that its profiler sees."""
    if not setting.is_cuda:
        yield Row("waits on steps that record nothing", "not on this device", "0")
        return
    for name, options in {"plain": {}, "bf16": {"precision": "bf16"}, "accumulate": {"accumulate": 2}}.items():
        try:
            _train_watched(setting, lambda: torch.cuda.set_sync_debug_mode("error"), options)
            yield Row(f"nothing waits, {name}", "nothing waits", "nothing waits", True)
        except RuntimeError as error:
            yield Row(f"nothing waits, {name}", str(error)[:200], "nothing waits", False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    profile = torch.profiler.profile(activities=list(torch.profiler.supported_activities()))
    _train_watched(setting, profile.start, {}, profile.stop)
    names = [event.key for event in profile.key_averages() if event.key.startswith(WAITS) and "Async" not in event.key]
    yield Row("events of waiting that the profiler sees", ", ".join(names) or "none", "none", not names)


def _train_watched(
    setting: Setting, start: Callable[[], Any], options: dict[str, Any], stop: Callable[[], Any] = lambda: None
) -> None:
    """Train the decoder; between two recordings, something watches."""
    workload = make_workloads(num_batches=2 * LAST + 10)[1]
    loader = DataLoader(torch.stack(list(workload.batches)), batch_size=None, num_workers=1)  # type: ignore[arg-type]
    run = Run(random_seed=0, command_line=[])
    run.train_step(workload.step)
    run.configure_optimizers(workload.make_optimizers)

    @run.on("train_step_end")
    def watch(step):
        if step == FIRST:
            start()
        elif step == LAST:
            torch.cuda.set_sync_debug_mode("default")
            stop()

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = {"save_path": folder, "progress": False, "log_every": f"{EVERY} steps", "checkpoint_every": None}
        run(workload.make_model(), loader, max_steps=LAST + 3, device=str(setting.device), **settings, **options)


def hold_up_the_device(setting: Setting) -> Iterator[Row]:
    """The host goes ahead while the device is busy: so many steps are asked for before the first of them is done."""
    if not setting.is_cuda:
        yield Row("steps that the host is ahead of a busy device", "not on this device", "above 1")
        return
    busy = torch.cuda.Event()
    run, ahead = Run(random_seed=0, command_line=[]), []

    @run.train_step
    def step(batch, model, step):
        if step == FIRST:
            torch.cuda._sleep(2_000_000_000)  # cycles: about a second
            busy.record()
        ahead.append(FIRST <= step < LAST and not busy.query())
        return model(batch).square().mean()

    run.configure_optimizers(one_optimizer)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = {"save_path": folder, "progress": False, "log_every": f"{EVERY} steps", "checkpoint_every": None}
        loader = DataLoader(torch.randn(64, 8, 16), batch_size=None, num_workers=1)  # type: ignore[arg-type]
        run(nn.Linear(16, 16), loader, max_steps=LAST + 3, device=str(setting.device), **settings)
    yield Row("steps that the host is ahead of a busy device", str(sum(ahead)), "20", sum(ahead) == LAST - FIRST)


def share_of_waiting(setting: Setting) -> Iterator[Row]:
    """The share of the time in which the device has nothing to do, since the host has not asked for more yet."""
    sizes = {"64 wide, 2 deep": (64, 2), "512 wide, 6 deep": (512, 6), "1024 wide, 12 deep": (1024, 12)}
    for name, (width, depth) in list(sizes.items())[: 1 if setting.is_short else None]:
        batch = torch.randint(256, (4 if setting.is_short else 32, 65), device=setting.device)
        model = Decoder(width, depth).to(setting.device)
        optimizer = one_optimizer(model)["optimizer"]

        def train(model=model, optimizer=optimizer, batch=batch) -> None:
            optimizer.zero_grad()
            predict_bytes(batch, model).backward()
            optimizer.step()

        asked, taken = _time_steps(setting, train, 3 if setting.is_short else 30)
        share = 0.0 if not setting.is_cuda else min(1.0, asked / taken)
        yield Row(f"host's share of a step, {name}", f"{share:.2f} of {1000 * taken:.2f} ms")


def _time_steps(setting: Setting, train: Callable[[], None], num_steps: int) -> tuple[float, float]:
    """Seconds in which the host asks for a step, and in which the device does it; medians."""
    for _ in range(3):
        train()
    asked, taken = [], []
    for _ in range(num_steps):
        setting.synchronize()
        begin = time.perf_counter()
        train()
        asked.append(time.perf_counter() - begin)
        setting.synchronize()
        taken.append(time.perf_counter() - begin)
    return statistics.median(asked), statistics.median(taken)
