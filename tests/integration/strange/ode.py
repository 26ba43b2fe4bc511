"""A neural differential equation whose steps are computed again in the backward, dropout and all."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from blowtorch import Run

SEED, EPOCHS, STEPS = 17, 3, 6
run = Run(random_seed=SEED)


class Ode(nn.Module):
    def __init__(self):
        super().__init__()
        self.field = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 4))
        self.head = nn.Linear(4, 2)

    def advance(self, x, time):
        """One step of the midpoint method."""
        middle = x + self.field(torch.cat([x, time.expand(len(x), 1)], dim=1)) / (2 * STEPS)
        return x + self.field(torch.cat([middle, (time + 0.5 / STEPS).expand(len(x), 1)], dim=1)) / STEPS

    def forward(self, x):
        for number in range(STEPS):
            is_reentrant = number % 2 == 1  # both kinds that torch has
            x = checkpoint(self.advance, x, torch.tensor([number / STEPS]), use_reentrant=is_reentrant)
        return self.head(x)


@run.train_step
@run.validate_step
def step(batch, model):
    x, y = batch
    return F.cross_entropy(model(x), y)


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.NAdam(model.parameters(), lr=0.01)


def make_batches():
    x = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
    return list(zip(x.split(8), (x.norm(dim=1) > 1.9).long().split(8), strict=True))


def train():
    model = Ode()
    run(model, make_batches(), make_batches()[:2], max_epochs=EPOCHS)
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = Ode()
    optimizer = torch.optim.NAdam(model.parameters(), lr=0.01)
    for _ in range(EPOCHS):
        for x, y in make_batches():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
