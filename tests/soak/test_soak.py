"""Runs that are killed at random instants, again and again, and must end as if nobody had touched them.

`BLOWTORCH_SOAK_KILLS` says how often in all; `tox run -e soak` kills 300 times. Half a checkpoint is on the disk
at many of these instants: one is due every third step, and takes about as long to write.
"""

import hashlib
import os
import random
import subprocess

import pytest
import torch

from blowtorch import find_runs
from tests.forked import Forked

KILLS = int(os.environ.get("BLOWTORCH_SOAK_KILLS", "6"))
LONGEST_SECONDS = 3.0  # of a process before it is killed
VARIANTS = {  # the number of workers of each process is one of these
    "without workers": [0],
    "workers that stay": [2],
    "a changing number of workers": [1, 2, 4],
}

SCRIPT = """
import random, time
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from blowtorch import Run

run = Run(random_seed=11, config={"workers": 0, "stay": False})


class Augmented(Dataset):
    def __len__(self):
        return 96

    def __getitem__(self, index):
        x = torch.full((400,), index / 96) + torch.rand(400) + float(np.random.rand()) + random.random()
        return x, x.mean().reshape(1)


@run.train_step
def step(batch, model):
    x, y = batch
    time.sleep(0.004)
    return {"loss": nn.functional.mse_loss(model(x), y)}


@run.validate_step(DataLoader(Augmented(), batch_size=48))
@run.validate_step(DataLoader(Augmented(), batch_size=48), name="often", every="5 steps")
def validate(batch, model):
    x, y = batch
    return {"loss": nn.functional.l1_loss(model(x), y), "noise": torch.rand(())}


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.AdamW(model.parameters(), lr=0.001)


if __name__ == "__main__":
    model = nn.Sequential(
        nn.Linear(400, 400), nn.BatchNorm1d(400), nn.ReLU(), nn.Dropout(0.3), nn.Linear(400, 400), nn.Linear(400, 1)
    )
    loader = DataLoader(
        Augmented(), batch_size=8, shuffle=True, num_workers=run["workers"], persistent_workers=run["stay"]
    )
    run(model, loader, max_epochs=10, scheduler="cosine", log_every="4 steps", resume="auto",
        checkpoint_every="3 steps", keep_last=3, callbacks=[{"early_stopping": {"patience": 50}}])
"""


def start(folder, variant):
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(SCRIPT)
    workers, stays = random.choice(VARIANTS[variant]), variant == "workers that stay"
    return Forked("train.py", "with", f"workers={workers}", f"stay={str(stays).lower()}", folder=folder)


def ends_well(process):
    _, problem = process.communicate(timeout=300)
    assert process.returncode == 0, problem[-3000:]


def is_finished(folder):
    """Also that of a run which was killed after its end, when its process had nothing left to do."""
    return any(view.status == "finished" for view in find_runs(folder / "train_logs"))


def outcome(folder):
    """The digest of the last weights, and the metric lines without their time."""
    (view,) = find_runs(folder / "train_logs")
    weights = torch.load(view.checkpoint("latest").path / "model.pt", weights_only=True)
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in weights.values())).hexdigest()
    return digest, [{**event, "time": None} for event in view.events() if event["event"] == "metrics"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_whenever_a_run_is_killed_it_ends_as_if_nobody_had_touched_it(tmp_path, variant):
    """A run that has ended before all kills are spent is compared, and followed by another one."""
    place = list(VARIANTS).index(variant)
    kills = KILLS // len(VARIANTS) + (place < KILLS % len(VARIANTS))
    random.seed(place + 1000 * int(os.environ.get("BLOWTORCH_SOAK_SEED", "1")))
    straight = tmp_path / "straight"
    ends_well(start(straight, variant))
    expected = outcome(straight)
    assert len(expected[1]) > 30
    spent = runs = while_writing = before_the_first = 0
    while spent < kills:
        runs += 1
        folder = tmp_path / f"run-{runs}"
        while not is_finished(folder):
            process = start(folder, variant)
            try:
                process.wait(random.uniform(0, LONGEST_SECONDS) if spent < kills else None)
            except subprocess.TimeoutExpired:
                process.kill_group()
                process.wait()
                spent += 1
                while_writing += bool(list(folder.glob("train_logs/*/checkpoints/.tmp-step-*")))
                before_the_first += not list(folder.glob("train_logs/*/checkpoints/step-*"))
            else:
                ends_well(process)
        assert outcome(folder) == expected
    print(
        f"\n{variant}: {spent} kills in {runs} runs, {while_writing} of them while a checkpoint was being written, "
        f"{before_the_first} before the first; all went on and ended the same"
    )
