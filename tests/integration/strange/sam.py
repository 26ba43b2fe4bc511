"""Sharpness-aware minimisation: each step goes uphill first, and takes the gradient from there."""

import torch
import torch.nn.functional as F
from torch import nn

from blowtorch import Run

SEED, EPOCHS = 26, 3
run = Run(random_seed=SEED)


class Sam(torch.optim.Optimizer):
    """Wraps another optimizer, after the one that most scripts copy."""

    def __init__(self, parameters, base, rho=0.05, **options):
        super().__init__(parameters, {"rho": rho, **options})
        self.base = base(self.param_groups, **options)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def climb(self):
        norm = torch.stack([own.grad.norm() for group in self.param_groups for own in group["params"]]).norm()
        for group in self.param_groups:
            for own in group["params"]:
                self.state[own]["before"] = own.detach().clone()
                own.add_(own.grad, alpha=float(group["rho"] / (norm + 1e-12)))
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None
        with torch.enable_grad():
            loss = closure()
        self.climb()
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            for own in group["params"]:
                own.copy_(self.state[own]["before"])
        self.base.step()
        return loss

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.base.param_groups = self.param_groups


def make_model():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


def a_step(model, optimizer, backward, batch):
    x, y = batch

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
        backward(loss)
        return loss

    return optimizer.step(closure)


@run.train_step
def train_step(batch, model, optimizers, backward):
    return {"loss": a_step(model, optimizers["optimizer"], backward, batch)}


@run.configure_optimizers
def configure_optimizers(model):
    return Sam(model.parameters(), torch.optim.SGD, lr=0.1)


def make_batches():
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    return list(zip(x.split(8), x[:, :3].argmax(dim=1).split(8), strict=True))


def train():
    model = make_model()
    run(model, make_batches(), max_epochs=EPOCHS)
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = make_model()
    optimizer = Sam(model.parameters(), torch.optim.SGD, lr=0.1)
    for _ in range(EPOCHS):
        for batch in make_batches():
            a_step(model, optimizer, torch.Tensor.backward, batch)
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
