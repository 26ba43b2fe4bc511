"""A random search: a run for each trial with a configuration of its own, the first part of which is always short."""

import random

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from blowtorch import Run

SEED, TRIALS = 28, 3


def draw_trials():
    dice = random.Random(SEED)
    return [{"width": dice.choice([4, 8, 16]), "rate": 10 ** dice.uniform(-3, -1)} for _ in range(TRIALS)]


def make_data():
    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x.prod(dim=1) > 0).long())


def make_net(width):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


def try_out(number, trial):
    run = Run(config=trial, random_seed=SEED + number)

    @run.train_step
    @run.validate_step
    def step(batch, model):
        x, y = batch
        return F.cross_entropy(model(x), y)

    @run.configure_optimizers
    def configure_optimizers(model):
        return torch.optim.SGD(model.parameters(), lr=run["rate"], momentum=0.9)

    model, loader = make_net(run["width"]), DataLoader(make_data(), 8)
    result = run(model, loader, DataLoader(make_data(), 32), max_epochs=2, run_name=f"trial-{number}")
    return model, result.metrics["val/loss"]


def train():
    tried = [try_out(number, trial) for number, trial in enumerate(draw_trials())]
    return nn.ModuleList(model for model, _ in sorted(tried, key=lambda pair: pair[1]))


def by_hand():
    tried = []
    for number, trial in enumerate(draw_trials()):
        torch.manual_seed(SEED + number)
        model = make_net(trial["width"])
        optimizer = torch.optim.SGD(model.parameters(), lr=trial["rate"], momentum=0.9)
        for _ in range(2):
            for x, y in DataLoader(make_data(), 8, generator=torch.Generator()):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        with torch.no_grad():
            tried.append((model, sum(F.cross_entropy(model(x), y) for x, y in DataLoader(make_data(), 32))))
    return nn.ModuleList(model for model, _ in sorted(tried, key=lambda pair: pair[1]))


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
