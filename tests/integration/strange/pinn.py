"""A physics-informed network for u'' = -u: points are drawn anew in each step, and the loss has second derivatives."""

import math

import torch
from torch import nn

from blowtorch import Run

SEED, STEPS = 20, 60
run = Run(random_seed=SEED)


def make_model():
    return nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).double()


def residual(model, x):
    x = x.clone().requires_grad_(True)
    u = model(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return bend + u


def loss_of(model):
    inside = residual(model, math.pi * torch.rand(32, 1, dtype=torch.float64)).square().mean()
    ends = torch.tensor([[0.0], [math.pi / 2]], dtype=torch.float64)
    return inside + (model(ends) - ends.sin()).square().mean()


@run.train_step
def train_step(model):
    return loss_of(model)


@run.validate_epoch(every="10 steps")
def validate_epoch(model):
    x = torch.linspace(0, math.pi, 50, dtype=torch.float64)[:, None]
    with torch.enable_grad():
        wrong = residual(model, x).detach().abs()
    return {"loss": (model(x) - x.sin()).abs().max(), "residual": wrong.max()}


@run.configure_optimizers
def configure_optimizers(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def train():
    model = make_model()
    run(model, [None] * 20, max_steps=STEPS, max_epochs=None, clip_grad_norm=5.0)
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = make_model()
    optimizer, schedule = configure_optimizers(model)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss_of(model).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        if step % 20 == 0:
            schedule.step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
