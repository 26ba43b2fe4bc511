"""What it brings to fetch the next batch while one is trained on."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.on_device import Row, Setting, aside, attempt
from benchmarks.on_device.speed import WARM, Watch
from benchmarks.on_device.workloads import one_optimizer
from blowtorch import Run

Step = Callable[[Any, nn.Module], torch.Tensor]


def gain_of_fetching_ahead(setting: Setting) -> Iterator[Row]:
    """Where to copy a batch takes as long as to compute: beside loops by hand, which copy first and compute then."""
    rows, num_steps = (1 << 10, WARM + 5) if setting.is_short else (1 << 16, WARM + 30)
    distinct = [torch.randn(rows, 1024, pin_memory=setting.is_cuda) for _ in range(4)]  # of 256 MB each
    pinned = [distinct[number % 4] for number in range(num_steps)]
    pageable = [distinct[0].clone()] * num_steps
    model = nn.Linear(1024, 64).to(setting.device)
    copying = _seconds(setting, lambda: distinct[0].to(setting.device, non_blocking=True))
    number = _balanced(setting, model, distinct[0], copying)
    yield Row("a copy of one batch, and computing with it", f"{1000 * copying:.2f} ms, {number} products of matrices")
    step = _step_of(number)
    seconds: dict[str, float] = {}
    contestants: dict[str, Callable[[Watch], None]] = {
        "naive loop by hand": lambda watch: _by_hand(setting, model, pinned, step, watch, is_waiting=True),
        "careful loop by hand": lambda watch: _by_hand(setting, model, pinned, step, watch, is_waiting=False),
        "blowtorch": lambda watch: _with_blowtorch(setting, model, pinned, step, watch),
        "blowtorch, memory that is not pinned": lambda watch: _with_blowtorch(setting, model, pageable, step, watch),
    }
    for name, contestant in contestants.items():
        yield attempt(name, "", _measure, setting, name, contestant, num_steps, seconds)


def _measure(
    setting: Setting, name: str, go: Callable[[Watch], None], num_steps: int, seconds: dict[str, float]
) -> Row:
    taken = []
    for _ in range(2):
        watch = Watch(setting, num_steps)
        go(watch)
        taken.append(watch.seconds)
    seconds[name] = min(taken)
    naive = seconds.get("naive loop by hand", 0.0)
    ratio = naive / seconds[name] if seconds[name] else 0.0
    is_right = ratio > 1.2 if name == "blowtorch" and setting.is_cuda and not setting.is_short else None
    wanted = "above 1.2, and 2 at best" if name == "blowtorch" else ""
    return Row(
        name, f"{1000 * seconds[name]:.2f} ms a step, {ratio:.3f} times as fast as the naive loop", wanted, is_right
    )


def _step_of(number: int) -> Step:
    def step(batch: Any, model: nn.Module) -> torch.Tensor:
        total = model(batch).square().mean()
        square = batch[:1024].detach()
        for _ in range(number):
            square = square @ square * 1e-3
        return total + 0.0 * square.mean()

    return step


def _balanced(setting: Setting, model: nn.Module, batch: torch.Tensor, copying: float) -> int:
    """Return how many products of matrices make a step take about as long as a copy."""
    if setting.is_short:
        return 1
    moved = batch.to(setting.device)
    without = _seconds(setting, lambda: _step_of(0)(moved, model).backward())
    with_some = _seconds(setting, lambda: _step_of(20)(moved, model).backward())
    return max(1, round(20 * (copying - without) / max(with_some - without, 1e-6)))


def _seconds(setting: Setting, do: Callable[[], Any]) -> float:
    """The least of three times, after one that does not count."""
    taken = []
    for _ in range(4):
        setting.synchronize()
        begin = time.perf_counter()
        do()
        setting.synchronize()
        taken.append(time.perf_counter() - begin)
    return min(taken[1:])


def _by_hand(setting: Setting, model: nn.Module, batches: Any, step: Step, watch: Watch, is_waiting: bool) -> None:
    optimizer = one_optimizer(model)["optimizer"]
    for batch in batches:
        moved = batch.to(setting.device, non_blocking=not is_waiting)
        optimizer.zero_grad()
        loss = step(moved, model)
        loss.backward()
        optimizer.step()
        if is_waiting:
            loss.item()
        watch.tick()


def _with_blowtorch(setting: Setting, model: nn.Module, batches: Any, step: Step, watch: Watch) -> None:
    run = Run(random_seed=0, command_line=[])
    run.train_step(step)
    run.configure_optimizers(one_optimizer)
    run.on("train_step_end")(watch.tick)
    with aside() as folder:
        settings = {"save_path": folder, "progress": False, "checkpoint_every": None, "device": str(setting.device)}
        run(model, batches, **settings)
