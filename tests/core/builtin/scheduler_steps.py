"""An optimizer whose scheduler is stepped through a run, and the rates that it uses."""

import torch
from torch.optim import SGD

TOTAL = 100


def make_optimizer(rates=(0.1,), make=SGD, **options):
    return make([{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates], **options)


def train_one_step(optimizer):
    optimizer.zero_grad()
    sum((parameter**2).sum() for group in optimizer.param_groups for parameter in group["params"]).backward()
    optimizer.step()


def rates_used(optimizer, scheduler, steps=TOTAL):
    """The rates of each of the steps; the scheduler is stepped after all of them, the last one too."""
    used = []
    for _ in range(steps):
        used.append([float(group["lr"]) for group in optimizer.param_groups])
        train_one_step(optimizer)
        scheduler.step()
    return used


def first_rates(optimizer, scheduler, steps=TOTAL):
    return [rates[0] for rates in rates_used(optimizer, scheduler, steps)]
