"""SimCLR: two views of each sample, NT-Xent, LARS-like groups without decay, a warm-up and a cosine."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from blowtorch import Run, Schedule

SEED, EPOCHS, WARM_UP = 6, 4, 5
run = Run(random_seed=SEED)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        self.projector = nn.Sequential(nn.Linear(8 * 36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, x):
        return F.normalize(self.projector(self.backbone(x)), dim=1)


def augment(images):
    """A random crop, flip and brightness for all of them."""
    top, left = (int(torch.randint(3, ())) for _ in range(2))
    cropped = images[:, :, top : top + 6, left : left + 6]
    flipped = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, cropped.flip(3), cropped)
    return flipped * (0.8 + 0.4 * torch.rand(len(images), 1, 1, 1))


def loss_of(model, images):
    views = torch.cat([augment(images), augment(images)])
    codes = model(views)
    similarity = (codes @ codes.T / 0.5).masked_fill(torch.eye(len(codes), dtype=torch.bool), -math.inf)
    partners = torch.arange(len(codes)).roll(len(images))
    return F.cross_entropy(similarity, partners)


@run.train_step
def train_step(batch, model):
    return loss_of(model, batch)


@run.configure_optimizers
def configure_optimizers(model):
    plain = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=WARM_UP)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * 10 - WARM_UP)
    together = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [WARM_UP])
    return optimizer, Schedule(together, every="1 step")


def make_batches():
    return list(torch.rand(160, 1, 8, 8, generator=torch.Generator().manual_seed(0)).split(16))


def train():
    model = Encoder()
    run(model, make_batches(), max_epochs=EPOCHS)
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = Encoder()
    optimizer, schedule = configure_optimizers(model)
    for _ in range(EPOCHS):
        for batch in make_batches():
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            schedule.scheduler.step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
