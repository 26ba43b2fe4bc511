"""BYOL: a momentum encoder that no optimizer knows, brought up to date after each step by a callback."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from blowtorch import Run

SEED, EPOCHS, MOMENTUM = 24, 3, 0.9
run = Run(random_seed=SEED)


class Byol(nn.Module):
    def __init__(self):
        super().__init__()
        self.online = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
        self.predictor = nn.Linear(8, 8)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    @torch.no_grad()
    def follow(self):
        for own, other in zip(self.target.parameters(), self.online.parameters(), strict=True):
            own.lerp_(other, 1 - MOMENTUM)


def loss_of(model, batch):
    first, second = (batch + 0.1 * torch.randn_like(batch) for _ in range(2))
    similarities = [
        F.cosine_similarity(model.predictor(model.online(one)), model.target(other).detach()).mean()
        for one, other in ((first, second), (second, first))
    ]
    return 2 - torch.stack(similarities).sum()


@run.train_step
def train_step(batch, model):
    return loss_of(model, batch)


@run.on("train_step_end")
def follow(model):
    model.follow()


@run.configure_optimizers
def configure_optimizers(model):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=0.01)


def make_batches():
    return list(torch.randn(96, 8, generator=torch.Generator().manual_seed(0)).split(8))


def train():
    model = Byol()
    run(model, make_batches(), max_epochs=EPOCHS, checkpoint_frozen=False)
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = Byol()
    optimizer = configure_optimizers(model)
    for _ in range(EPOCHS):
        for batch in make_batches():
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            model.follow()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
