"""A Wasserstein GAN with gradient penalty: five steps of the critic for one of the generator."""

import torch
from torch import nn

from blowtorch import Run

SEED, EPOCHS, NUM_CRITIC = 2, 3, 5
run = Run(random_seed=SEED)


class Gan(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
        self.critic = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.LeakyReLU(0.2), nn.Linear(16, 1))


def penalty_of(critic, real, fake):
    share = torch.rand(len(real), 1)
    between = (share * real + (1 - share) * fake).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.norm(2, dim=1) - 1).square().mean()


def critic_loss(model, real):
    fake = model.generator(torch.randn(len(real), 4)).detach()
    distance = model.critic(real).mean() - model.critic(fake).mean()
    return distance, 10 * penalty_of(model.critic, real, fake) - distance


def generator_loss(model, size):
    return -model.critic(model.generator(torch.randn(size, 4))).mean()


@run.train_step
def train_step(batch, model, optimizers, backward, step):
    optimizers["critic"].zero_grad()
    distance, loss = critic_loss(model, batch)
    backward(loss)
    optimizers["critic"].step()
    metrics = {"distance": distance, "critic": loss}
    if step % NUM_CRITIC == 0:
        optimizers["generator"].zero_grad()
        metrics["generator"] = generator_loss(model, len(batch))
        backward(metrics["generator"])
        optimizers["generator"].step()
    return metrics


@run.validate_step
def validate_step(batch, model):
    with torch.enable_grad():  # the penalty needs a gradient in a validation too
        return {"loss": critic_loss(model, batch)[1]}


@run.configure_optimizers
def configure_optimizers(model):
    return {
        name: torch.optim.Adam(getattr(model, name).parameters(), lr=1e-3, betas=(0.0, 0.9))
        for name in ("critic", "generator")
    }


def make_batches():
    return list(torch.randn(120, 8, generator=torch.Generator().manual_seed(0)).add(2).split(8))


def train():
    model = Gan()
    run(model, make_batches(), make_batches()[:2], max_epochs=EPOCHS)
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = Gan()
    optimizers = configure_optimizers(model)
    step = 0
    for _ in range(EPOCHS):
        for batch in make_batches():
            step += 1
            optimizers["critic"].zero_grad()
            critic_loss(model, batch)[1].backward()
            optimizers["critic"].step()
            if step % NUM_CRITIC == 0:
                optimizers["generator"].zero_grad()
                generator_loss(model, len(batch)).backward()
                optimizers["generator"].step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
