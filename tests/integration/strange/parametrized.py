"""Parametrizations: spectral and weight norms, new and old, an orthogonal layer, and one of one's own."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from blowtorch import Run

SEED, EPOCHS = 22, 4
run = Run(random_seed=SEED)


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T


def make_model():
    middle = nn.Linear(8, 8)
    parametrize.register_parametrization(middle, "weight", Symmetric())
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(4, 8)),
        nn.ReLU(),
        parametrizations.weight_norm(nn.Linear(8, 8)),
        parametrizations.orthogonal(nn.Linear(8, 8)),
        middle,
        nn.ReLU(),
        nn.utils.spectral_norm(nn.Linear(8, 8)),
        nn.ReLU(),
        nn.Linear(8, 1),
    )


@run.train_step
@run.validate_step
def step(batch, model):
    with parametrize.cached():
        return F.mse_loss(model(batch), batch.prod(dim=1, keepdim=True))


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def make_batches():
    return list(torch.randn(96, 4, generator=torch.Generator().manual_seed(0)).split(8))


def train():
    model = make_model()
    run(model, make_batches(), make_batches()[:2], max_epochs=EPOCHS)
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(EPOCHS):
        for batch in make_batches():
            optimizer.zero_grad()
            with parametrize.cached():
                loss = F.mse_loss(model(batch), batch.prod(dim=1, keepdim=True))
            loss.backward()
            optimizer.step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
