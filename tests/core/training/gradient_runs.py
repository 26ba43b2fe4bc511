"""Small runs over batches of any size, whose gradients are looked at."""

import torch
from torch import nn

from blowtorch import Run

QUIET = {"progress": False}


def batches(*sizes):
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(size, 4, generator=generator), torch.randn(size, 1, generator=generator)) for size in sizes]


def weights(model):
    return [value.clone() for value in model.state_dict().values()]


def are_equal(first, second):
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def start(configure=sgd):
    run = Run(random_seed=123, command_line=["train.py"])
    run.configure_optimizers(configure)

    @run.train_step
    def step(batch, model):
        return {"loss": nn.functional.mse_loss(model(batch[0]), batch[1])}

    return run


def copied(net):
    twin = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 1))
    twin.load_state_dict(net.state_dict())
    return twin
