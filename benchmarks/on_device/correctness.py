"""Whether a device trains what a loop by hand trains, and a killed run goes on."""

import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.on_device import Row, Setting
from benchmarks.on_device.workloads import (
    Workload,
    largest_difference,
    make_workloads,
    one_optimizer,
    to_host,
    train_by_hand,
    train_with_blowtorch,
)
from blowtorch import Run

MOST_OF_SPREAD = 3.0  # times the difference between two loops by hand
LEAST_SPREAD = 1e-6  # what kernels may differ by from one call to the next


def compare_with_loops_by_hand(setting: Setting) -> Iterator[Row]:
    """Each workload under each precision, compiled and not, beside the same loop by hand."""
    compiled: dict[str, Any] = {} if setting.is_cuda else {"backend": "eager"}
    for workload in make_workloads(num_batches=6 if setting.is_short else 40):
        for precision in ("fp32", "bf16", "fp16"):
            if precision == "fp16" and workload.drive is not None:
                continue  # a loop by hand would need a scaler for each of its optimizers
            choices: list[dict[str, Any] | None] = [None]
            if precision != "fp16" and workload.name in ("digits", "gpt"):
                choices.append(compiled)
            for choice in choices:
                yield compare(setting, workload, precision, choice)


def compare(setting: Setting, workload: Workload, precision: str, compiled: dict[str, Any] | None) -> Row:
    """One workload, trained three times; two of them by hand, which shows what a difference means."""
    arguments = (workload, setting.device, precision, compiled)
    hand, again = train_by_hand(*arguments), train_by_hand(*arguments)
    difference, spread = largest_difference(train_with_blowtorch(*arguments), hand), largest_difference(again, hand)
    what = f"{workload.name}, {precision}{', compiled' if compiled is not None else ''}"
    if spread == 0.0:
        return Row(what, f"differs by {difference:g}", "the bits of a loop by hand", difference == 0.0)
    allowed = max(MOST_OF_SPREAD * spread, LEAST_SPREAD)
    return Row(
        what, f"differs by {difference:g}", f"at most {allowed:g}: loops by hand differ too", difference <= allowed
    )


class Looked:
    """A dataset whose rows are as long as their index says, so that each batch has another shape."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((1 + index % 7,), float(index))


def collate(rows: list[torch.Tensor]) -> dict[str, Any]:
    """A batch with all that batches are made of."""
    return {"rows": nn.utils.rnn.pad_sequence(rows, batch_first=True), "pair": (rows[0], [rows[-1]]), "text": "a"}


def compare_what_arrives(setting: Setting) -> Iterator[Row]:
    """Odd batches, fetched ahead: what the step sees is what the loader gave."""
    for workers in (0, 2):
        loader = DataLoader(Looked(), 4, collate_fn=collate, num_workers=workers)  # type: ignore[arg-type]
        seen: list[torch.Tensor] = []
        run = Run(random_seed=0, command_line=[])
        run.configure_optimizers(one_optimizer)

        @run.train_step
        def step(batch, model, seen=seen):
            for _ in range(20):  # keep the device busy, so that a copy that is not waited for shows
                model(torch.ones(256, 256, device=batch["rows"].device))
            seen.append(batch["rows"].sum() + batch["pair"][0].sum() + batch["pair"][1][0].sum())
            return model(torch.ones(1, 256, device=batch["rows"].device)).mean()

        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            model = nn.Linear(256, 256)
            run(model, loader, max_epochs=2, device=str(setting.device), save_path=folder, progress=False)
        found = [value.item() for value in seen]
        rows = [loader.collate_fn([Looked()[index] for index in range(first, first + 4)]) for first in range(0, 64, 4)]
        expected = [float(b["rows"].sum() + b["pair"][0].sum() + b["pair"][1][0].sum()) for b in rows]
        is_right = found == expected * 2
        yield Row(f"batches of odd shapes, {workers} workers", "equal" if is_right else "differ", "equal", is_right)


def measure_and_predict(setting: Setting) -> Iterator[Row]:
    """`evaluate` and `predict` beside the same by hand."""
    workload = make_workloads(num_batches=4)[0]
    model = workload.make_model().to(setting.device).eval()
    run = Run(random_seed=0, command_line=[])
    run.validate_step(workload.step)
    run.predict_step(lambda batch, model: model(batch[0]))
    with contextlib.redirect_stdout(io.StringIO()):
        measured = run.evaluate(model, list(workload.batches), device=str(setting.device))
        predicted = run.predict(model, list(workload.batches), gather=True, device=str(setting.device))
    with torch.no_grad():
        moved = [[part.to(setting.device) for part in batch] for batch in workload.batches]
        loss = sum(workload.step(batch, model).item() for batch in moved) / len(moved)
        outputs = torch.cat([model(batch[0]) for batch in moved]).cpu()
    difference = abs(measured["loss" if "loss" in measured else "val/loss"] - loss)
    yield Row("evaluate", f"differs by {difference:g}", "at most 1e-6", difference <= 1e-6)
    distance = float((predicted.cpu() - outputs).abs().max())
    yield Row("predict", f"differs by {distance:g}", "at most 1e-6", distance <= 1e-6)


def kill_and_continue(setting: Setting) -> Iterator[Row]:
    """Training that is killed at random moments, and goes on, until it is done; beside the same without."""
    most = 2 if setting.is_short else 20
    with tempfile.TemporaryDirectory() as folder:
        straight = _digest_of(Path(folder) / "straight", setting, kills=0)[0]
        found, num_killed = _digest_of(Path(folder) / "killed", setting, kills=most)
    is_right = found == straight and num_killed > 0
    yield Row(
        f"killed {num_killed} times and continued", "equal" if found == straight else "differs", "equal", is_right
    )


def _digest_of(folder: Path, setting: Setting, kills: int) -> tuple[str, int]:
    """Train in processes of their own, of which so many are killed; return a digest of the weights, and how many."""
    command = [sys.executable, str(Path(sys.argv[0]).resolve()), "--device", str(setting.device)]
    command += ["--killed-part", str(folder)] + (["--short"] if setting.is_short else [])
    num_killed = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        is_to_die = num_killed < kills
        if is_to_die:
            _await_steps(process, folder)
            time.sleep(random.Random(num_killed).random() * 0.5)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                num_killed += 1
        said, _ = process.communicate()
        if process.returncode == 0:
            return said.split()[-1], num_killed
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the process ended with {process.returncode}: {said[-2000:]}")


def _await_steps(process: "subprocess.Popen[str]", folder: Path) -> None:
    """Wait until a process has published a checkpoint that was not there, or has ended."""
    before = set(folder.glob("*/checkpoints/step-*"))
    while process.poll() is None and not set(folder.glob("*/checkpoints/step-*")) - before:
        time.sleep(0.02)


def train_to_be_killed(setting: Setting, folder: Path) -> None:
    """Train the digits, from the last checkpoint where there is one, and print a digest of the weights."""
    workload = make_workloads(num_batches=40)[0]
    run = Run(random_seed=0, command_line=[])

    @run.train_step
    def step(batch, model):
        time.sleep(0.005)  # there has to be time to be killed
        return workload.step(batch, model)

    run.configure_optimizers(workload.make_optimizers)
    settings = {"save_path": str(folder), "run_name": "killed", "resume": "auto", "device": str(setting.device)}
    epochs, model = 6 if setting.is_short else 30, workload.make_model()
    options = {"max_epochs": epochs, "checkpoint_every": "20 steps", "precision": "bf16", "progress": False}
    run(model, list(workload.batches), **settings, **options)
    weights = [value.double() for value in to_host(model).values()]
    print(f"{sum(float(value.sum()) for value in weights)!r}:{sum(float(value.square().sum()) for value in weights)!r}")
