"""What tests of whole runs share: a callback that hears of every moment, and weights that are compared."""

import torch
from torch import nn

from blowtorch import (
    Run,
    hookimpl,
)

QUIET = {"progress": False}


def step(batch, model):
    x, y = batch
    return {"loss": nn.functional.mse_loss(model(x), y)}


class Ear:
    """A callback that notes every moment."""

    def __init__(self):
        self.heard = []

    @hookimpl
    def run_start(self, state):
        self.heard.append(("run_start", state.step))

    @hookimpl
    def epoch_start(self, state):
        self.heard.append(("epoch_start", state.epoch))

    @hookimpl
    def train_step_end(self, state, metrics):
        self.heard.append(("train_step_end", state.step, sorted(metrics)))

    @hookimpl
    def validation_end(self, state, name, metrics):
        self.heard.append(("validation_end", state.step, name, sorted(metrics)))

    @hookimpl
    def epoch_end(self, state, metrics):
        self.heard.append(("epoch_end", state.epoch, sorted(metrics)))

    @hookimpl
    def checkpoint_saved(self, state, checkpoint, is_best):
        self.heard.append(("checkpoint_saved", checkpoint.name, is_best))

    @hookimpl
    def run_end(self, state, status):
        self.heard.append(("run_end", status))


def weights(model):
    return [value.clone() for value in model.state_dict().values()]


def assert_same(first, second):
    assert len(first) == len(second)
    for mine, other in zip(first, second, strict=True):
        assert torch.equal(mine, other)


def run_by_epoch(train_epoch):
    run = Run(random_seed=0, command_line=[])
    run.train_epoch(train_epoch)
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    return run
