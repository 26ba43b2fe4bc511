"""Whole scripts in processes of their own."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from tests import forked

MY_PROJECT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
    def forward(self, x):
        return self.layers(x)

generator = torch.Generator().manual_seed(0)
x = torch.randn(64, 4, generator=generator)
data = TensorDataset(x, x[:, :3].argmax(dim=1))
train_loader = DataLoader(data, batch_size=8, shuffle=True, num_workers={workers}, multiprocessing_context={context!r})
validate_loader = DataLoader(data, batch_size=32)
"""

TRAIN = """
import torch.nn.functional as F
from torch.optim import Adam
from blowtorch import Run
from my_project import Net, train_loader, validate_loader

run = Run(config_files=["config/default.yaml"], random_seed=123)

@run.train_step
@run.validate_step
def step(batch, model):
    x, y = batch
    return {"loss": F.cross_entropy(model(x), y REDUCTION)}

@run.configure_optimizers
def configure_optimizers(model):            # called when the model is on its device
    return Adam(model.parameters(), lr=run["optimizer.lr"])

if __name__ == "__main__":                  # loader workers import the script again under spawn and forkserver
    result = run(Net(run["model.width"]), train_loader, validate_loader, max_epochs=10)
"""


PLAIN = TRAIN.replace(" REDUCTION", "")


@pytest.fixture
def script(tmp_path):
    def write(train=PLAIN, workers=0, context=None):
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "default.yaml").write_text("model:\n  width: 8\noptimizer:\n  lr: 1e-2\n")
        (tmp_path / "my_project.py").write_text(MY_PROJECT.format(workers=workers, context=context))
        (tmp_path / "train.py").write_text(train)
        return tmp_path

    return write


def execute(folder, *arguments):
    return forked.run("train.py", *arguments, folder=folder)


def execute_anew(folder, *arguments, **environment):
    """In a process that is started anew, as a user does it."""
    command = [sys.executable, "train.py", *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=variables, timeout=120)


def only_run(folder):
    (found,) = (folder / "train_logs").iterdir()
    return found


def test_the_public_script_works_as_printed(script):
    folder = script()
    done = execute_anew(folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert re.search(r"finished .*epoch 10.* step 80", done.stdout)
    assert not any(character in done.stdout for character in "\r\x1b\x08")
    logs = only_run(folder)
    assert sorted(path.name for path in (logs / "source").iterdir()) == ["my_project.py", "train.py"]
    for name in ("run.yaml", "config.yaml", "origins.yaml", "environment.txt", "model.txt", "console.log"):
        assert (logs / name).read_text()
    assert "model.width: config/default.yaml:2" in (logs / "origins.yaml").read_text()


def test_a_loss_that_is_no_scalar_is_averaged_with_one_warning(script):
    done = execute(script(TRAIN.replace(" REDUCTION", ', reduction="none"')))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("BlowtorchWarning") == 2  # once for training, once for validation
    assert "returned 'loss' with shape (8,)" in done.stderr


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_that_import_the_script_again_are_silent(script, context):
    folder = script(workers=1, context=context)
    done = execute_anew(folder, "with", "run.max_epochs=1", "unknown=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("begins") == 1
    assert done.stderr.count("no source has 'unknown'") == 1
    assert len(list((folder / "train_logs").iterdir())) == 1


def test_a_script_without_the_guard_is_told_of_it(script):
    unguarded = PLAIN.replace('if __name__ == "__main__":', "if True:")
    done = execute_anew(script(unguarded, workers=1, context="spawn"))
    assert done.returncode != 0
    assert 'put the call behind `if __name__ == "__main__":`' in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["with", "run.max_epoch=3"], "unknown option 'max_epoch' in the configuration section 'run'. Did you mean"),
        (["with", "missing.yaml"], "missing.yaml"),
        (["with", "run.loggers=wandbb"], "no logger is called 'wandbb'"),
        (["with", "run.device=tpu9"], "option device"),
        (["with", "run.resume=config"], "is no run folder"),
    ],
)
def test_bad_input_ends_with_one_clear_sentence_and_leaves_nothing(script, arguments, message):
    folder = script()
    done = execute(folder, *arguments)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert not (folder / "train_logs").exists()


def test_what_follows_with_beats_everything(script):
    folder = script()
    done = execute(folder, "with", "run.max_epochs=2", "model.width=5", "optimizer.lr=0.5")
    assert done.returncode == 0, done.stderr
    assert re.search(r"finished .*epoch 2\b", done.stdout)
    assert "(8, 4)" not in (only_run(folder) / "model.txt").read_text()
    assert "out_features=5" in (only_run(folder) / "model.txt").read_text()
    assert "optimizer.lr: command line" in (only_run(folder) / "origins.yaml").read_text()


def test_secrets_are_kept_nowhere(script):
    folder = script()
    words = ["service.api_key=hunter2", "store=redis://me:hunter2@host", "credentials={user: hunter2}"]
    done = execute(folder, "--token", "hunter2", "with", "run.max_epochs=1", *words)
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    for path in only_run(folder).rglob("*"):
        if path.is_file():
            assert b"hunter2" not in path.read_bytes(), path


def test_a_disk_that_is_full_fails_the_run_loudly_and_a_later_start_goes_on(script):
    """A limit on the size of files stands for the full disk: no checkpoint fits under it."""
    limited = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limited += "import os\nif os.environ.get('FULL'): resource.setrlimit(resource.RLIMIT_FSIZE, (3500, 3500))\n"
    folder = script(limited + PLAIN)
    done = execute_anew(folder, "with", "run.max_epochs=2", "run.resume=auto", FULL="1", PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 1
    assert "could not be written" in done.stderr
    again = execute(folder, "with", "run.max_epochs=2", "run.resume=auto")
    assert again.returncode == 0, again.stderr
    events = [json.loads(line) for line in (only_run(folder) / "record.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "checkpoint"] == [8, 16]


def test_a_broken_logger_costs_the_run_nothing(script):
    broken = """
from blowtorch import hookimpl
class Broken:
    @hookimpl
    def log_metrics(self, metrics):
        raise OSError("the tracker is down")
"""
    train = broken + PLAIN.replace("max_epochs=10", "max_epochs=2, loggers=[Broken()]")
    folder = script(train)
    started = time.monotonic()
    done = execute(folder, "with", "run.logger_timeout=1 second")
    assert done.returncode == 0, done.stderr
    assert "logger 'Broken' is" in done.stderr and "the tracker is down" in done.stderr
    assert time.monotonic() - started < 60
