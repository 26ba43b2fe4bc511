"""A denoising diffusion model in two dimensions; what it samples with is an average of its weights."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from blowtorch import Run

SEED, EPOCHS, TIMES = 12, 5, 20
run = Run(random_seed=SEED)


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.time = nn.Embedding(TIMES, 16)
        self.first, self.second = nn.Linear(2, 16), nn.Linear(16, 2)
        self.register_buffer("kept", torch.cumprod(1 - torch.linspace(1e-3, 0.2, TIMES), dim=0), persistent=False)

    def forward(self, x, time):
        return self.second(F.silu(self.first(x) + self.time(time)))


def loss_of(model, x):
    time, noise = torch.randint(TIMES, (len(x),)), torch.randn_like(x)
    kept = model.kept[time, None]
    return F.mse_loss(model(kept.sqrt() * x + (1 - kept).sqrt() * noise, time), noise)


@run.train_step
@run.validate_step
def step(batch, model):
    return loss_of(model, batch)


@run.validate_epoch(name="sample", every="7 steps")
def sample(model):
    x = torch.randn(32, 2)
    for time in reversed(range(TIMES)):
        kept, before = model.kept[time], model.kept[time - 1] if time else torch.ones(())
        share = kept / before
        x = (x - (1 - share) / (1 - kept).sqrt() * model(x, torch.full((32,), time))) / share.sqrt()
        x = x + (1 - share).sqrt() * torch.randn_like(x) * bool(time)
    return {"radius": x.norm(dim=1).mean()}


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def make_batches():
    angle = 6.28 * torch.rand(128, generator=torch.Generator().manual_seed(0))
    return list(torch.stack([angle.cos(), angle.sin()], dim=1).split(16))


def train():
    model = Denoiser()
    run(model, make_batches(), make_batches()[:2], max_epochs=EPOCHS, callbacks=[{"ema": {"decay": 0.9}}])
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = Denoiser()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(EPOCHS):
        for batch in make_batches():
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            average.update_parameters(model)
    return average.module


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
