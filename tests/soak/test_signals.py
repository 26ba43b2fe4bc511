"""Whenever a signal comes, to the process or to its whole group, a run says truly how it ended, and can go on.

`BLOWTORCH_SOAK_SIGNALS` says how often in all; `tox run -e soak` sends 100.
"""

import collections
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from blowtorch import find_runs

SIGNALS = int(os.environ.get("BLOWTORCH_SOAK_SIGNALS", "2"))
SEED = int(os.environ.get("BLOWTORCH_SOAK_SEED", "1"))
KINDS = list(itertools.product((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), (os.kill, os.killpg)))

SCRIPT = """
import time
import torch
import torch._dynamo  # which an optimizer would import in the midst of a run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from blowtorch import Run
print("IMPORTED", flush=True)

run = Run(random_seed=5, config={"workers": 0})
x = torch.linspace(-1, 1, 64)[:, None]
data = TensorDataset(x, x.sin())


@run.train_step
@run.validate_step
def step(batch, model):
    x, y = batch
    time.sleep(0.01)
    return nn.functional.mse_loss(model(x), y)


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


if __name__ == "__main__":
    model = nn.Sequential(nn.Linear(1, 16), nn.Dropout(0.2), nn.Linear(16, 1))
    loader = DataLoader(data, 4, shuffle=True, num_workers=run["workers"], persistent_workers=run["workers"] > 0)
    validate_loader = DataLoader(data, 16, num_workers=run["workers"])
    result = run(model, loader, validate_loader, max_epochs=6, resume="auto", log_every="3 steps",
                 validate_every="10 steps", checkpoint_every="7 steps")
    print("RESULT", result.status, flush=True)
    result.raise_if_stopped()
"""


def start(folder, workers):
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(SCRIPT)
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "train.py", "with", f"workers={workers}"],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore::UserWarning"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )


def read_output(folder):
    return (folder / "output.txt").read_text()


def wait_for_imports(process, folder):
    while "IMPORTED" not in read_output(folder) and process.poll() is None:
        time.sleep(0.005)


def outcome(folder):
    """The last weights, and the metric lines without their time."""
    (view,) = find_runs(folder / "train_logs")
    assert view.status == "finished"
    weights = torch.load(view.checkpoint("latest").path / "model.pt", weights_only=True)
    lines = [{**event, "time": None} for event in view.events() if event["event"] == "metrics"]
    return {name: value.tolist() for name, value in weights.items()}, lines


def describe_end(process, folder, number):
    """How a run ended that was sent a signal: all that is there to be seen has to tell the same."""
    code, said = process.wait(timeout=120), [line for line in read_output(folder).splitlines() if "RESULT" in line]
    statuses = [view.status for view in find_runs(folder / "train_logs")]
    if said:  # or else the script was ended outside of its run, or while Python itself ended
        (status,) = (line.removeprefix("RESULT ") for line in said)
        assert statuses == [status]
        assert code in ({"stopped": 75, "finished": 0}[status], -number), read_output(folder)
        return status
    assert code == -number, read_output(folder)
    assert statuses in ([], ["finished"]), read_output(folder)
    return f"killed, {' '.join(statuses) or 'before the run'}"


@pytest.mark.parametrize("workers", [0, 4])
def test_whenever_a_signal_comes_a_run_ends_truly_and_goes_on_bit_for_bit(tmp_path, workers):
    dice = random.Random(workers + 1000 * SEED)
    straight = tmp_path / "straight"
    process = start(straight, workers)
    wait_for_imports(process, straight)
    begun = time.monotonic()
    assert process.wait(timeout=120) == 0, read_output(straight)
    seconds = time.monotonic() - begun
    expected = outcome(straight)

    ends = collections.Counter()
    for number in range(SIGNALS // 2):
        folder, (wanted, send) = tmp_path / f"run-{number}", KINDS[number % len(KINDS)]
        process = start(folder, workers)
        wait_for_imports(process, folder)
        time.sleep(dice.uniform(0, seconds))
        with contextlib.suppress(ProcessLookupError):
            send(process.pid, wanted)
        ends[describe_end(process, folder, wanted)] += 1
        if not any(view.status == "finished" for view in find_runs(folder / "train_logs")):
            process = start(folder, workers)
            assert process.wait(timeout=120) == 0, read_output(folder)
        assert outcome(folder) == expected, (wanted, send, read_output(folder))
    print(f"\n{workers} workers, {SIGNALS // 2} signals within {seconds:.1f} s: {dict(ends)}")
