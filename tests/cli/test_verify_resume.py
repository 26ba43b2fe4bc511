"""`blowtorch runs verify-resume`, on scripts of a user's own, some of which cannot be continued exactly."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, time
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from blowtorch import Run

run = Run(config={"fault": "none"})
fault = run["fault"]
calls = []


class Data(Dataset):
    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)

    def __len__(self):
        return 48

    def __getitem__(self, index):
        generator = self.generator if fault == "dataset" else None
        x = torch.full((4,), index / 48) + torch.rand(4, generator=generator)
        return x, x.sum()


class Turning(Sampler):
    # Its order follows from what has been trained on, which no drawing can bring back.
    def __iter__(self):
        return iter([(place + len(calls)) % 48 for place in range(48)])

    def __len__(self):
        return 48


@run.train_step
@run.validate_step
def step(batch, model, is_validate, step):
    x, y = batch
    if fault == "error" and step == 9:
        raise ValueError("mine")
    calls.append(None)
    scale = 1 + len(calls) / 1000 if fault == "counter" else 1.0
    return nn.functional.mse_loss(model(x)[:, 0], y) * scale


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


if __name__ == "__main__":
    if fault == "nothing":
        raise SystemExit
    data = Data()
    sampler = Turning() if fault == "sampler" else None
    if fault == "unseeded":
        torch.manual_seed(time.time_ns() % 1_000_000)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    loader = DataLoader(data, batch_size=8, sampler=sampler, shuffle=None if sampler else True)
    run(model, loader, DataLoader(data, batch_size=24), max_epochs=3, scheduler="cosine", log_every="4 steps",
        loggers=["there is none of this name"], save_path="mine")
"""


@pytest.fixture
def verify(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)

    def verify(fault, *options):
        command = [sys.executable, "-m", "blowtorch_cli", "runs", "verify-resume", *options, "train.py", "with"]
        done = subprocess.run(
            [*command, f"fault={fault}"], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
        )
        assert not (tmp_path / "mine").exists()
        return done

    return verify


def test_a_sound_script_is_found_identical(verify, tmp_path):
    done = verify("none", "--kills", "2", "--keep", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stdout + done.stderr
    straight, killed, continued, identical = done.stdout.splitlines()
    assert straight.startswith("straight   18 steps in ")
    assert killed.startswith("killed     after step ") and killed.endswith("a checkpoint every 3 steps")
    assert continued.startswith("continued  from step ")
    assert identical == "identical  every batch, random stream and weight of 18 steps, and 10 metric lines"
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"straight", "killed"}


@pytest.mark.parametrize(
    ("fault", "what", "hint"),
    [
        ("dataset", "the batch has the same samples and other contents", "generator that it keeps itself"),
        ("sampler", "the batch has the samples ", "Does the sampler keep a state of its own"),
        ("counter", "the metric 'loss' is ", "run.keep_state saves it"),
        ("unseeded", "the batch has the same samples and other contents", "Two straight runs differ too"),
    ],
)
def test_what_differs_first_is_named_with_what_may_cause_it(verify, tmp_path, fault, what, hint):
    done = verify(fault, "--kills", "1", "--keep", str(tmp_path / "kept"), "--kill-seed", "3")
    assert done.returncode == 1, done.stdout + done.stderr
    different = done.stdout.partition("different  ")[2]
    assert different.startswith(what), done.stdout
    assert hint in " ".join(different.split())
    assert "in step " in different and "folders " in different


def test_a_script_that_fails_is_shown_with_its_own_error(verify):
    done = verify("error")
    assert done.returncode == 1
    assert "the script ended with exit code 1" in done.stderr and "ValueError: mine" in done.stderr


def test_a_script_that_trains_nothing_is_told_so(verify):
    done = verify("nothing")
    assert done.returncode == 1
    assert "the script has trained no run that reads its command line" in done.stderr
