"""What the scripts of these tests share: data, a model, the functions of a run, and what is kept of it."""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from blowtorch import Run
from blowtorch.parallel.pieces import whole

RANK = os.environ.get("RANK", "0")
PARALLEL = os.environ.get("TEST_PARALLEL", "auto")  # the option, for all that follows


def make_data(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator)
    return TensorDataset(x, x[:, :3].sum(1, keepdim=True).sin())


def make_loaders(batch_size=12, train=103, validate=37):
    return (
        DataLoader(make_data(train, 0), batch_size=batch_size, shuffle=True),
        DataLoader(make_data(validate, 1), batch_size=batch_size),
    )


def make_model():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def make_run(run=None, lr=1e-2, optimizer=torch.optim.SGD):
    run = Run(random_seed=1, command_line=[]) if run is None else run

    @run.train_step
    def train_step(batch, model):
        x, y = batch
        loss = nn.functional.mse_loss(model(x), y)
        return {"loss": loss, "error": (model(x) - y).abs().mean()}

    @run.validate_step
    def validate_step(batch, model):
        x, y = batch
        return {"loss": nn.functional.mse_loss(model(x), y)}

    @run.configure_optimizers
    def configure_optimizers(model):
        return optimizer(model.parameters(), lr=lr)

    return run


def train(run, folder, model=None, loaders=None, **options):
    model = make_model() if model is None else model
    given = {
        "max_epochs": 3,
        "log_every": "5 steps",
        "save_path": str(folder / "runs"),
        "progress": False,
        "parallel": PARALLEL,
        **options,
    }
    result = run(model, *(make_loaders() if loaders is None else loaders), **given)
    keep(folder, model, result.metrics, result.status, result.step)
    return result


def keep(folder, model, metrics, status="finished", step=0):
    torch.save({name: whole(value) for name, value in model.state_dict().items()}, folder / f"weights-{RANK}.pt")
    (folder / f"metrics-{RANK}.json").write_text(json.dumps({"metrics": metrics, "status": status, "step": step}))


def go_backward(loss, optimizer):
    optimizer.zero_grad()
    loss.backward()
    return loss


class Jobs(dict):
    """Functions that are each given a folder, by their names; one that is decorated with it is added."""

    def __call__(self, function):
        self[function.__name__] = function
        return function


def do_named(jobs):
    """Do those of the jobs that the command line names after a folder, or all; each in a folder of its own."""
    for name in sys.argv[2:] or jobs:
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True, exist_ok=True)
        jobs[name](folder)
