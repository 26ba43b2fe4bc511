"""Learning from a stream that never ends and drifts: judged by its next sample before it learns from it."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from blowtorch import Run

SEED, STEPS = 19, 60
run = Run(random_seed=SEED)


class Drift(IterableDataset):
    """A line whose slope turns; its state is the number of the sample that comes next."""

    def __init__(self):
        self.number = 0

    def __iter__(self):
        while True:
            generator = torch.Generator().manual_seed(self.number)
            x, angle = torch.randn(3, generator=generator), torch.tensor(self.number / 200)
            self.number += 1
            yield x, x[:1] * angle.cos() + x[1:2] * angle.sin()

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


@run.train_step
def train_step(batch, model, log):
    x, y = batch
    error = F.l1_loss(model(x), y)
    log({"worst": error}, reduce="max")
    return {"loss": F.huber_loss(model(x), y), "error": error}


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.Adagrad(model.parameters(), lr=0.1)


def train():
    model = nn.Linear(3, 1)
    run(model, DataLoader(Drift(), batch_size=4), max_steps=STEPS, log_every="7 steps")
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    for x, y in itertools.islice(DataLoader(Drift(), batch_size=4), STEPS):
        optimizer.zero_grad()
        F.huber_loss(model(x), y).backward()
        optimizer.step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
