"""A Wasserstein GAN with clipped weights whose epoch takes five batches for the critic, then one for the generator."""

import torch
from torch import nn

from blowtorch import Run

SEED, EPOCHS, NUM_CRITIC = 3, 4, 5
run = Run(random_seed=SEED)


def make_model():
    return nn.ModuleDict(
        {
            "generator": nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8)),
            "critic": nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(16, 1)),
        }
    )


def an_epoch(batches, model, optimizers, backward, log):
    for number, real in enumerate(batches, 1):
        noise = torch.randn(len(real), 4)
        if number % (NUM_CRITIC + 1):
            optimizers["critic"].zero_grad()
            loss = model["critic"](model["generator"](noise).detach()).mean() - model["critic"](real).mean()
            backward(loss)
            optimizers["critic"].step()
            for parameter in model["critic"].parameters():
                parameter.data.clamp_(-0.05, 0.05)
            log({"critic": loss})
        else:
            optimizers["generator"].zero_grad()
            loss = -model["critic"](model["generator"](noise)).mean()
            backward(loss)
            optimizers["generator"].step()
            log({"generator": loss})


@run.train_epoch
def train_epoch(data_loader, model, optimizers, backward, log):
    an_epoch(data_loader, model, optimizers, backward, log)


@run.configure_optimizers
def configure_optimizers(model):
    return {name: torch.optim.RMSprop(part.parameters(), lr=1e-3) for name, part in model.items()}


def make_batches():
    return list(torch.randn(104, 8, generator=torch.Generator().manual_seed(0)).split(8))


def train():
    model = make_model()
    run(model, make_batches(), max_epochs=EPOCHS)
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = make_model()
    optimizers = configure_optimizers(model)
    for _ in range(EPOCHS):
        an_epoch(make_batches(), model, optimizers, torch.Tensor.backward, lambda metrics: None)
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
