"""Everything at once, interrupted and continued: no bit and no line of the record differs from a run left alone.

A run accumulates under fp16 with losses that overflow, clips, steps two optimizers, follows a schedule, stops early,
validates in the middle of epochs with the metric object of its training, and logs values that are reduced in all ways.
`ALSO` adds what a run may name besides.
"""

import json
import signal
import subprocess
import sys

import pytest

from tests import forked

ALSO = {
    "nothing": [],
    "an average of the weights": [{"ema": {"decay": 0.9}}],
}

SCRIPT = '''
import os, signal, sys
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from blowtorch import Run

run = Run(random_seed=11)
batches = 0


class Mean:
    def __init__(self):
        self.total, self.number = torch.zeros(()), 0

    def update(self, value):
        self.total += value.detach()
        self.number += 1

    def compute(self):
        return self.total / self.number

    def reset(self):
        self.total.zero_()
        self.number = 0

    def state_dict(self):
        return {"total": self.total, "number": self.number}

    def load_state_dict(self, state):
        self.total, self.number = state["total"], state["number"]


class Augmented(Dataset):
    """Draws from the streams of training; some targets are too large for the gradients of fp16."""

    def __len__(self):
        return 94

    def __getitem__(self, index):
        x = torch.full((4,), index / 94) + torch.rand(4)
        return x, x.sum().reshape(1) * (1e4 if index == 40 else 1)


metric = Mean()


@run.train_step
def step(batch, model, log, step, is_validate):
    global batches
    x, y = batch
    loss = nn.functional.mse_loss(model(x), y)
    metric.update(loss)
    for reduce in ("sum", "max", "min", "last"):
        log({reduce: loss}, reduce=reduce)
    if not is_validate:
        batches += 1
        if batches == run["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
    return {"loss": loss, "metric": metric}


@run.validate_step(every="4 steps", at_start=True)
def validate(batch, model, log, state):
    """Good until step 22, and then worse and worse."""
    return {**step(batch, model, log, None, True), "distance": float(abs(state.step - 22)), "drawn": torch.rand(())}


@run.configure_optimizers
def configure_optimizers(model):
    return {
        "first": torch.optim.SGD(model[0].parameters(), lr=0.01, momentum=0.9),
        "rest": torch.optim.AdamW(model[1:].parameters(), lr=0.01),
    }


@run.on("train_step_end")
def stop(state):
    if state.step == run["stop_at"]:
        signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1))
    result = run(model, DataLoader(Augmented(), 8, shuffle=True), DataLoader(Augmented(), 47), max_epochs=9,
                 accumulate=3, precision="fp16", clip_grad_norm=0.5, clip_grad_value=0.2, scheduler="cosine",
                 callbacks=[{"early_stopping": {"metric": "val/distance", "patience": 3}}, *run["also"]],
                 checkpoint_every="3 steps", log_every="2 steps", sanity_batches=1, resume="auto", progress=False)
    print("RESULT", result.status, result.step)
'''


def run_anew(*words, folder):
    """In a process that is started anew, whose hashes are its own."""
    command = [sys.executable, "-W", "ignore::UserWarning", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def train(folder, also, kill_at=None, stop_at=None, execute=forked.run):
    """One process; what it printed, or the signal that ended it."""
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(SCRIPT)
    words = [f"kill_at={json.dumps(kill_at)}", f"stop_at={json.dumps(stop_at)}", f"also={json.dumps(also)}"]
    done = execute("train.py", "with", *words, folder=folder)
    assert done.returncode in (0, -signal.SIGKILL), done.stdout + done.stderr
    return done.stdout if done.returncode == 0 else signal.SIGKILL


def outcome(folder):
    """The metric lines without their time, digests of all that is in the last checkpoint, and its parts themselves."""
    import torch

    from blowtorch.data.digests import digest

    (run_folder,) = (folder / "train_logs").iterdir()
    events = [json.loads(line) for line in (run_folder / "record.jsonl").read_text().splitlines()]
    lines = [{**event, "time": None} for event in events if event["event"] == "metrics"]
    checkpoint = run_folder / "checkpoints" / (run_folder / "checkpoints" / "latest").read_text().strip()
    training = torch.load(checkpoint / "training.pt", weights_only=True)
    training["parts"]["state"]["seconds"] = training["record_length"] = None  # which no two runs have in common
    named = {**training["parts"], "random": training["random"], "trained": training.get("weights")}
    named["weights"] = torch.load(checkpoint / "model.pt", weights_only=True)
    return lines, {name: digest(value) for name, value in named.items()}, training["parts"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What runs that are left alone give."""
    found = {}
    for name, also in ALSO.items():
        folder = tmp_path_factory.mktemp("straight") / "run"
        assert "RESULT finished" in train(folder, also, execute=run_anew)
        found[name] = outcome(folder)
    return found


def test_everything_that_is_asked_for_happens(straight):
    """Else the rest would prove little."""
    lines, digests, parts = straight["nothing"]
    recorded = {name for line in lines for name in line["metrics"]}
    expected = {f"train/{name}" for name in ("loss", "sum", "max", "min", "last", "grad_norm/first", "grad_norm/rest")}
    expected |= {"train_epoch/metric", "val/metric", "val/sum", "val/distance", "lr/first/0", "lr/rest/0"}
    assert expected <= recorded
    assert 0 < parts["gradients"]["scale"] < 2.0**16  # losses have overflowed
    assert parts["state"]["step"] == 32  # of 36: three validations after the best one it has stopped early
    assert digests["weights"] != straight["an average of the weights"][1]["weights"]


@pytest.mark.parametrize(
    ("also", "interruptions"),
    [
        ("nothing", [{"kill_at": 17}, {"stop_at": 11}, {"kill_at": 25}]),
        ("an average of the weights", [{"kill_at": 25}]),
    ],
)
def test_a_run_interrupted_amid_its_groups_ends_with_the_same_bits(tmp_path, straight, also, interruptions):
    """Killed in the second batch of a group of three and in the first of another; stopped between two checkpoints."""
    for interruption in interruptions:
        ended = train(tmp_path / "run", ALSO[also], **interruption)
        assert ended is signal.SIGKILL if "kill_at" in interruption else "RESULT stopped 11" in ended
    assert "RESULT finished" in train(tmp_path / "run", ALSO[also])
    assert outcome(tmp_path / "run")[:2] == straight[also][:2]
