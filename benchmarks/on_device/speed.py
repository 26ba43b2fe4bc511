"""Tokens per second beside loops by hand and other frameworks."""

import contextlib
import functools
import importlib.util
import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.on_device import Row, Setting, aside
from benchmarks.on_device.workloads import Decoder, one_optimizer, predict_bytes
from blowtorch import Run

WARM = 3  # steps of each round that do not count
LEAST_RATIO = 0.99  # of the tokens per second of the careful loop: less is more than noise


class Watch:
    """Seconds of a step, from the end of the warm-up to the last one."""

    def __init__(self, setting: Setting, num_steps: int) -> None:
        self._setting, self._num_steps, self._count, self._begin = setting, num_steps, 0, 0.0
        self.seconds = 0.0

    def tick(self) -> None:
        """Take note of a step that is done."""
        self._count += 1
        if self._count in (WARM, self._num_steps):
            self._setting.synchronize()
            now = time.perf_counter()
            self.seconds = (now - self._begin) / (self._num_steps - WARM)
            self._begin = now


Contestant = Callable[[Setting, nn.Module, Any, Watch, int], None]


def naively(setting: Setting, model: nn.Module, loader: Any, watch: Watch, num_steps: int) -> None:
    """As most loops are written: it copies when it needs a batch, and reads each loss."""
    optimizer, total = one_optimizer(model)["optimizer"], 0.0
    for batch in itertools.islice(loader, num_steps):
        optimizer.zero_grad()
        with torch.autocast(setting.device.type, dtype=torch.bfloat16):
            loss = predict_bytes(batch.to(setting.device), model)
        loss.backward()
        optimizer.step()
        total += loss.item()
        watch.tick()


def carefully(setting: Setting, model: nn.Module, loader: Any, watch: Watch, num_steps: int) -> None:
    """With pinned memory, copies that are not waited for, and losses that stay on the device."""
    optimizer, total = one_optimizer(model)["optimizer"], torch.zeros((), device=setting.device)
    for batch in itertools.islice(loader, num_steps):
        moved = batch.to(setting.device, non_blocking=True)
        optimizer.zero_grad()
        with torch.autocast(setting.device.type, dtype=torch.bfloat16):
            loss = predict_bytes(moved, model)
        loss.backward()
        optimizer.step()
        total += loss.detach()
        watch.tick()


def with_blowtorch(
    setting: Setting, model: nn.Module, loader: Any, watch: Watch, num_steps: int, log_every: str = "50 steps"
) -> None:
    """With the defaults, but for checkpoints."""
    options = {"max_steps": num_steps, "precision": "bf16", "log_every": log_every}
    train_watched(setting, model, loader, predict_bytes, watch, **options)


def train_watched(
    setting: Setting, model: nn.Module, loader: Any, step: Callable[..., Any], watch: Watch, **options: Any
) -> None:
    """Train with the defaults, but for checkpoints, and have each step timed."""
    run = Run(random_seed=0, command_line=[])
    run.train_step(step)
    run.configure_optimizers(one_optimizer)
    run.on("train_step_end")(watch.tick)
    with aside() as folder:
        settings = {"save_path": folder, "progress": False, "checkpoint_every": None, "device": str(setting.device)}
        run(model, loader, **settings, **options)


def with_accelerate(setting: Setting, model: nn.Module, loader: Any, watch: Watch, num_steps: int) -> None:
    """As its guide shows."""
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision="bf16", cpu=not setting.is_cuda)
    model, optimizer, loader = accelerator.prepare(model, one_optimizer(model)["optimizer"], loader)
    for batch in itertools.islice(loader, num_steps):
        optimizer.zero_grad()
        loss = predict_bytes(batch, model)
        accelerator.backward(loss)
        optimizer.step()
        watch.tick()


def with_lightning(setting: Setting, model: nn.Module, loader: Any, watch: Watch, num_steps: int) -> None:
    """With the defaults, but for checkpoints and the bar."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch, batch_index):
            loss = predict_bytes(batch, self.net)
            self.log("loss", loss)
            return loss

        def on_train_batch_end(self, *_: object) -> None:
            watch.tick()

        def configure_optimizers(self):
            return one_optimizer(self.net)["optimizer"]

    silence = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False)
    kind = "gpu" if setting.is_cuda else "cpu"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        lightning.Trainer(
            max_steps=num_steps, accelerator=kind, devices=1, precision="bf16-mixed", **silence
        ).fit(Module(), loader)  # fmt: skip


CONTESTANTS: dict[str, tuple[Contestant, str]] = {  # and the package that each needs
    "careful loop by hand": (carefully, "torch"),
    "naive loop by hand": (naively, "torch"),
    "blowtorch": (with_blowtorch, "blowtorch"),
    "blowtorch, recording each step": (functools.partial(with_blowtorch, log_every="1 step"), "blowtorch"),
    "Accelerate": (with_accelerate, "accelerate"),
    "Lightning": (with_lightning, "lightning"),
}


def tokens_per_second(setting: Setting) -> Iterator[Row]:
    """Each trains the same model on the same windows; they take turns."""
    width, depth, size = (64, 2, 8) if setting.is_short else (512, 6, 64)
    rounds, num_steps = (1, 8) if setting.is_short else (5, 60)
    data = torch.randint(256, (size * num_steps, 65), generator=torch.Generator().manual_seed(0))
    there = {name: call for name, (call, package) in CONTESTANTS.items() if importlib.util.find_spec(package)}
    seconds: dict[str, list[float]] = {name: [] for name in there}
    for number in range(rounds):
        for name in list(there)[:: -1 if number % 2 else 1]:
            torch.manual_seed(0)
            model, watch = Decoder(width, depth).to(setting.device), Watch(setting, num_steps)
            loader = DataLoader(data, size, num_workers=1, pin_memory=setting.is_cuda)  # type: ignore[arg-type]
            try:
                there[name](setting, model.train(), loader, watch, num_steps)
            except Exception as error:  # of another framework, say, in a version whose guide was another
                yield Row(name, f"{type(error).__name__}: {str(error)[:300]}", "to train", name != "blowtorch" and None)
                del there[name]
            seconds[name].append(watch.seconds)
    careful = seconds["careful loop by hand"]
    for name in there if "careful loop by hand" in there else ():
        ratios = sorted(hand / mine for hand, mine in zip(careful, seconds[name], strict=True))
        ratio = statistics.median(ratios)
        is_right = ratio >= LEAST_RATIO if name == "blowtorch" and setting.is_cuda and not setting.is_short else None
        value = f"{64 * size / statistics.median(seconds[name]):.0f} tokens/s, {ratio:.3f} of the careful loop"
        value += f" (from {ratios[0]:.3f} to {ratios[-1]:.3f})"
        yield Row(name, value, f"at least {LEAST_RATIO}" if name == "blowtorch" else "", is_right)
