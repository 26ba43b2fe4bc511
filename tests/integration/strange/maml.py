"""Model-agnostic meta learning on sines: an inner loop of torch.func for each task, an outer step over all of them."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

from blowtorch import Run

SEED, STEPS, RATE = 14, 40, 0.05
run = Run(random_seed=SEED)


def make_model():
    return nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))


def make_tasks():
    """Ten points of each of eight sines: half of them to adapt to, half to judge by."""
    height, phase = 0.5 + torch.rand(8, 1, 1), 3 * torch.rand(8, 1, 1)
    x = 10 * torch.rand(8, 20, 1) - 5
    return (x, height * (x + phase).sin())


def loss_of(model, x, y):
    parameters = dict(model.named_parameters())

    def mistake(weights, x, y):
        return F.mse_loss(functional_call(model, weights, (x,)), y)

    def adapted(x, y):
        weights = parameters
        for _ in range(2):
            gradients = grad(mistake)(weights, x[:10], y[:10])
            weights = {name: weights[name] - RATE * gradients[name] for name in weights}
        return mistake(weights, x[10:], y[10:])

    return vmap(adapted)(x, y).mean()


@run.train_step
def train_step(batch, model):
    return loss_of(model, *make_tasks())


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def train():
    model = make_model()
    run(model, range(STEPS))
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, *make_tasks()).backward()
        optimizer.step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
