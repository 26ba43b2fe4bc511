"""Quantile regression: a loss that is a function of autograd's with a backward of its own, and a plateau."""

import torch
from torch import nn

from blowtorch import Run

SEED, EPOCHS = 21, 5
run = Run(random_seed=SEED)


class Pinball(torch.autograd.Function):
    @staticmethod
    def forward(context, predicted, target, levels):
        error = target - predicted
        context.save_for_backward(error, levels)
        return torch.maximum(levels * error, (levels - 1) * error).mean()

    @staticmethod
    def backward(context, gradient):
        error, levels = context.saved_tensors
        return gradient * torch.where(error > 0, -levels, 1 - levels) / error.numel(), None, None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 3))
        self.register_buffer("levels", torch.tensor([0.1, 0.5, 0.9]))


@run.train_step
@run.validate_step
def step(batch, model, log):
    x, y = batch
    predicted = model.layers(x)
    log({"crossed": (predicted.diff(dim=1) < 0).sum()}, reduce="sum")
    return Pinball.apply(predicted, y, model.levels)


@run.configure_optimizers
def configure_optimizers(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, nesterov=True)
    return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)


def make_batches():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 2, generator=generator)
    y = x.sum(dim=1, keepdim=True) + torch.randn(96, 1, generator=generator)
    return list(zip(x.split(8), y.split(8), strict=True))


def train():
    model = Net()
    run(model, make_batches(), make_batches()[:3], max_epochs=EPOCHS)
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = Net()
    optimizer, plateau = configure_optimizers(model)
    for _ in range(EPOCHS):
        for x, y in make_batches():
            optimizer.zero_grad()
            Pinball.apply(model.layers(x), y, model.levels).backward()
            optimizer.step()
        with torch.no_grad():
            losses = [Pinball.apply(model.layers(x), y, model.levels).item() for x, y in make_batches()[:3]]
        plateau.step(sum(losses) / len(losses))
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
