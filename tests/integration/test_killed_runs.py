"""Runs in processes of their own, killed for real, and continued."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.forked import Forked

SCRIPT = """
import sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from blowtorch import Run

run = Run(random_seed=11)

@run.train_step
@run.validate_step
def step(batch, model):
    x, y = batch
    time.sleep(run["pause"])
    return {"loss": nn.functional.mse_loss(model(x), y)}

@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)

if __name__ == "__main__":
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 4, generator=generator)
    data = TensorDataset(x, x.sum(dim=1, keepdim=True))
    loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=run["workers"])
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 1))
    result = run(model, loader, DataLoader(data, batch_size=48), max_epochs=5, scheduler="cosine", log_every="5 steps",
                 resume="auto", checkpoint_every="7 steps", callbacks=[{"early_stopping": {"patience": 50}}])
    torch.save(model.state_dict(), "weights.pt")
    print("RESULT", result.status)
"""


def start(folder, workers, pause=0.0):
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(SCRIPT)
    return Forked("train.py", "with", f"workers={workers}", f"pause={pause}", folder=folder)


def finish(process):
    output, problem = process.communicate(timeout=120)
    assert process.returncode == 0, output + problem
    assert "RESULT finished" in output
    return output


def run_folder(folder):
    (found,) = (folder / "train_logs").iterdir()
    return found


def outcome(folder):
    """The weights' digest and the metric lines without their time."""
    events = [json.loads(line) for line in (run_folder(folder) / "record.jsonl").read_text().splitlines()]
    metrics = [{**event, "time": None} for event in events if event["event"] == "metrics"]
    import torch

    weights = torch.load(folder / "weights.pt", weights_only=True)
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in weights.values())).hexdigest()
    return digest, metrics


def checkpoints(folder):
    logs = folder / "train_logs"
    return len(list(logs.glob("*/checkpoints/step-*/manifest.json"))) if logs.is_dir() else 0


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What uninterrupted runs give, by number of workers, in processes whose hashes are their own."""
    root = tmp_path_factory.mktemp("straight")
    found = {}
    for workers in (0, 2):
        folder = root / str(workers)
        folder.mkdir()
        (folder / "train.py").write_text(SCRIPT)
        command = [sys.executable, "-W", "ignore::UserWarning", "train.py", "with", f"workers={workers}", "pause=0"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
        found[workers] = outcome(folder)
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_continues_bit_for_bit(tmp_path, straight, workers):
    """Killed once as soon as it has a checkpoint, again some steps later, then left alone."""
    for number in (1, 2):
        process = start(tmp_path / "run", workers, pause=0.01)
        seen, deadline = checkpoints(tmp_path / "run"), time.monotonic() + 60
        while checkpoints(tmp_path / "run") <= min(seen, 1) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
    output = finish(start(tmp_path / "run", workers))
    assert "goes on" in output
    assert outcome(tmp_path / "run") == straight[workers]


def test_a_run_killed_before_its_first_checkpoint_begins_again_in_its_own_folder(tmp_path, straight):
    folder = tmp_path / "run"
    process = start(folder, 0, pause=0.5)
    deadline = time.monotonic() + 60
    while not list(folder.glob("train_logs/*/model.txt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoints(folder) == 0
    finish(start(folder, 0))
    assert outcome(folder) == straight[0]


def test_ctrl_c_ends_a_run_tidily_and_the_same_command_goes_on(tmp_path, straight):
    folder = tmp_path / "run"
    process = start(folder, 2, pause=0.02)
    deadline = time.monotonic() + 60
    while not checkpoints(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    output, problem = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "RESULT stopped" in output and "Traceback" not in output + problem
    assert "run.resume=auto" in output
    finish(start(folder, 2))
    assert outcome(folder) == straight[2]


def test_a_run_that_a_living_process_owns_is_refused(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, 0, pause=0.2)
    deadline = time.monotonic() + 60
    while not list(folder.glob("train_logs/*/model.txt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    second = start(folder, 0)
    problem = second.communicate(timeout=60)[1]
    process.kill()
    process.wait()
    assert second.returncode == 1
    assert f"is being trained by process {process.pid} on host" in problem


def test_a_worker_that_outlives_a_killed_run_does_not_keep_its_lock(tmp_path):
    """With workers alive the continued run must still get the folder."""
    folder = tmp_path / "run"
    process = start(folder, 2, pause=0.05)
    deadline = time.monotonic() + 60
    while not checkpoints(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finish(start(folder, 2))
    assert Path(run_folder(folder) / "owner.lock").read_text() == ""
