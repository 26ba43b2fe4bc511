"""A small net that L-BFGS fits, with the closure that torch asks for."""

import torch
import torch.nn.functional as F
from torch import nn

from blowtorch import Run

SEED, STEPS = 11, 25
run = Run(random_seed=SEED)


def make_model():
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))


@run.train_step
def train_step(batch, model, optimizers, backward):
    x, y = batch

    def closure():
        optimizers["optimizer"].zero_grad()
        loss = F.mse_loss(model(x), y)
        backward(loss)
        return loss

    return {"loss": optimizers["optimizer"].step(closure)}


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")


def make_batch():
    x = torch.linspace(-3, 3, 64)[:, None]
    return x, x.sin()


def train():
    model = make_model()
    run(model, [make_batch()], max_epochs=STEPS)
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = make_model()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")
    x, y = make_batch()

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    for _ in range(STEPS):
        optimizer.step(closure)
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
