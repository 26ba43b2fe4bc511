"""What it brings to copy the next batch while one is trained on."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.on_device import Row, Setting, attempt
from benchmarks.on_device.speed import WARM, Watch, train_watched
from benchmarks.on_device.workloads import one_optimizer

Step = Callable[[Any, nn.Module], torch.Tensor]
LEAST_GAIN = 1.2


class Prepared:
    """A dataset whose samples are batches that cost nothing but their way: numbers of 32 MB."""

    def __init__(self, rows: int, num_batches: int) -> None:
        self._batch, self._num_batches = torch.randn(rows, 1024), num_batches

    def __len__(self) -> int:
        return self._num_batches

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._batch


def gain_of_fetching_ahead(setting: Setting) -> Iterator[Row]:
    """Where to copy a batch takes as long as to compute with it: beside loops by hand, which do one after the other."""
    num_steps = WARM + (5 if setting.is_short else 40)
    data = Prepared(1 << (8 if setting.is_short else 13), num_steps)
    model = nn.Linear(1024, 64).to(setting.device)
    copying = _seconds(setting, lambda: data[0].to(setting.device))
    number = _balanced(setting, model, data[0], copying)
    yield Row("a copy of one batch, and computing with it", f"{1000 * copying:.2f} ms, {number} products of matrices")
    step, seconds = _step_of(number), dict[str, float]()
    for kind, workers in (("a list of batches", 0), ("a loader with 4 workers", 1 if setting.is_short else 4)):
        contestants = {"naive loop by hand": _naively, "careful loop by hand": _carefully, "blowtorch": train_watched}
        for name, go in contestants.items():
            pins = name == "careful loop by hand" and setting.is_cuda
            loaders = [_make_loader(data, workers, pins) for _ in range(2)]
            look = _measure, setting, f"{kind}, {name}", kind, go, loaders, model, step, seconds
            yield attempt(f"{kind}, {name}", "", *look)


def _make_loader(data: Prepared, workers: int, pins: bool) -> Any:
    if workers:
        return DataLoader(data, batch_size=None, num_workers=workers, pin_memory=pins)  # type: ignore[arg-type]
    return [data[index] for index in range(len(data))]


def _measure(
    setting: Setting,
    what: str,
    kind: str,
    go: Callable[..., None],
    loaders: list[Any],
    model: nn.Module,
    step: Step,
    seconds: dict[str, float],
) -> Row:
    taken = []
    for loader in loaders:
        watch = Watch(setting, len(loader))
        go(setting, model, loader, step, watch)
        taken.append(watch.seconds)
    seconds.setdefault(kind, min(taken))  # the naive loop comes first
    ratio = seconds[kind] / min(taken)
    is_counted = what.endswith("blowtorch") and setting.is_cuda and not setting.is_short
    found = f"{1000 * min(taken):.2f} ms a step, {ratio:.3f} times as fast as the naive loop"
    wanted = f"above {LEAST_GAIN}, and 2 at best" if what.endswith("blowtorch") else ""
    return Row(what, found, wanted, ratio > LEAST_GAIN if is_counted else None)


def _step_of(number: int) -> Step:
    def step(batch: Any, model: nn.Module) -> torch.Tensor:
        total = model(batch).square().mean()
        side = min(2048, int(batch.numel() ** 0.5))
        square = batch.detach().flatten()[: side * side].view(side, side)
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


def _naively(setting: Setting, model: nn.Module, loader: Any, step: Step, watch: Watch) -> None:
    """As most loops are written: it copies when it needs a batch, and reads each loss."""
    _by_hand(model, loader, lambda batch: step(batch.to(setting.device), model), lambda loss: loss.item(), watch)


def _carefully(setting: Setting, model: nn.Module, loader: Any, step: Step, watch: Watch) -> None:
    """With memory that a loader pins, and copies and losses that are not waited for."""

    def train(batch: torch.Tensor) -> torch.Tensor:
        return step(batch.to(setting.device, non_blocking=True), model)

    _by_hand(model, loader, train, lambda loss: None, watch)


def _by_hand(
    model: nn.Module, loader: Any, train: Callable[[Any], Any], read: Callable[[Any], Any], watch: Watch
) -> None:
    optimizer = one_optimizer(model)["optimizer"]
    for batch in loader:
        optimizer.zero_grad()
        loss = train(batch)
        loss.backward()
        optimizer.step()
        read(loss)
        watch.tick()
