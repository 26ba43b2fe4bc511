"""A variational autoencoder whose Kullback-Leibler term is annealed, after the one of torch's examples."""

import torch
import torch.nn.functional as F
from torch import nn

from blowtorch import Run

SEED, EPOCHS, ANNEALED = 1, 4, 20
run = Run(random_seed=SEED)


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(32, 4), nn.Linear(32, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x):
        hidden = self.encoder(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return self.decoder(z), mean, log_variance


def losses(model, x, step):
    reconstruction, mean, log_variance = model(x)
    distance = F.binary_cross_entropy_with_logits(reconstruction, x, reduction="sum") / len(x)
    divergence = -0.5 * torch.sum(1 + log_variance - mean.square() - log_variance.exp()) / len(x)
    return distance + min(1.0, step / ANNEALED) * divergence, distance, divergence


@run.train_step
def train_step(batch, model, step):
    loss, distance, divergence = losses(model, batch, step)
    return {"loss": loss, "distance": distance, "divergence": divergence, "beta": min(1.0, step / ANNEALED)}


@run.validate_step
def validate_step(batch, model):
    return {"loss": losses(model, batch, ANNEALED)[0]}


@run.validate_epoch(name="sample", every="5 steps")
def sample(model):
    run.log_image("samples", model.decoder(torch.randn(8, 4)).sigmoid())


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def make_batches():
    return list(torch.rand(96, 16, generator=torch.Generator().manual_seed(0)).round().split(8))


def train():
    model = Vae()
    run(model, make_batches(), make_batches()[:2], max_epochs=EPOCHS)
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = Vae()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step = 0
    for _ in range(EPOCHS):
        for batch in make_batches():
            step += 1
            optimizer.zero_grad()
            losses(model, batch, step)[0].backward()
            optimizer.step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
