"""A mixture of experts: the best two of four for each token, and auxiliary losses that keep all of them busy."""

import torch
import torch.nn.functional as F
from torch import nn

from blowtorch import Run

SEED, EPOCHS = 16, 3
run = Run(random_seed=SEED)


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 4, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(4))

    def forward(self, x):
        logits = self.gate(x)
        noisy = logits + 0.1 * torch.randn_like(logits) if self.training else logits
        weights, chosen = noisy.softmax(dim=1).topk(2, dim=1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, places = (chosen == number).nonzero(as_tuple=True)
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]) * weights[rows, places, None])
        busy = F.one_hot(chosen, 4).float().mean(dim=(0, 1))
        balance = 4 * (busy * logits.softmax(dim=1).mean(dim=0)).sum()
        return out, {"balance": balance, "z": logits.logsumexp(dim=1).square().mean()}


def losses(model, batch):
    x, y = batch
    out, auxiliary = model(x)
    error = F.mse_loss(out, y)
    return {"loss": error + 0.01 * auxiliary["balance"] + 0.001 * auxiliary["z"], "error": error, **auxiliary}


@run.train_step
@run.validate_step
def step(batch, model):
    return losses(model, batch)


@run.configure_optimizers
def configure_optimizers(model):
    return {
        "experts": torch.optim.AdamW(model.experts.parameters(), lr=0.01),
        "gate": torch.optim.SGD(model.gate.parameters(), lr=0.05, momentum=0.9),
    }


def make_batches():
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    return list(zip(x.split(8), x.abs().split(8), strict=True))


def train():
    model = Mixture()
    run(model, make_batches(), make_batches()[:2], max_epochs=EPOCHS)
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = Mixture()
    optimizers = configure_optimizers(model).values()
    for _ in range(EPOCHS):
        for batch in make_batches():
            for optimizer in optimizers:
                optimizer.zero_grad()
            losses(model, batch)["loss"].backward()
            for optimizer in optimizers:
                optimizer.step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
