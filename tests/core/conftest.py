import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from blowtorch import Run
from tests.core.small_runs import step
from tests.core.stand_in import Gpus


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Every test works in a folder of its own, and leaves the random streams as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(sys.modules["__main__"], "__file__", pytest.__file__, raising=False)  # unset beside xdist
    streams = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    yield
    random.setstate(streams[0])
    np.random.set_state(streams[1])
    torch.random.set_rng_state(streams[2])


def small_net(dropout=0.0):
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return small_net()


@pytest.fixture
def fresh():
    """The same small model with dropout, again and again."""

    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))

    return make


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=generator)
    return TensorDataset(x, x.sum(dim=1, keepdim=True))


@pytest.fixture
def loader(data):
    return DataLoader(data, batch_size=8, shuffle=True)


@pytest.fixture
def make_run():
    """A run with a step for training and validation and an optimizer; `train` alone leaves validation out."""

    def make(*command_line, validates=True, **keywords):
        keywords.setdefault("random_seed", 123)
        run = Run(command_line=["train.py", *command_line], **keywords)
        run.train_step(step)
        if validates:
            run.validate_step(step)

        @run.configure_optimizers
        def configure_optimizers(model):
            return torch.optim.Adam(model.parameters(), lr=0.01)

        return run

    return make


@pytest.fixture(params=["copies", "computations"])
def gpus(request):
    """A stand-in for two GPUs, which is late in each of two ways."""
    with Gpus(slow=request.param) as stand_in:
        yield stand_in


@pytest.fixture
def events():
    """The events of a run's record, or those of one kind."""

    def read(result, kind=None):
        lines = (Path(result.folder) / "record.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return [event for event in found if kind is None or event["event"] == kind]

    return read
