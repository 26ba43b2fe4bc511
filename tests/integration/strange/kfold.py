"""Cross validation: a run for each fold, in one script, and all of their models in the end."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from blowtorch import Run

SEED, FOLDS, EPOCHS = 15, 3, 2
run = Run(random_seed=SEED)


def make_model(fold):
    torch.manual_seed(fold)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


@run.train_step
@run.validate_step
def step(batch, model):
    x, y = batch
    return F.cross_entropy(model(x), y)


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def make_data():
    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x.sum(dim=1) > 0).long())


def split(fold):
    places = torch.arange(96)
    return Subset(make_data(), places[places % FOLDS != fold]), Subset(make_data(), places[places % FOLDS == fold])


def train():
    models, losses = nn.ModuleList(), []
    for fold in range(FOLDS):
        model = make_model(fold)
        training, validation = split(fold)
        loaders = DataLoader(training, 8), DataLoader(validation, 32)
        result = run(model, *loaders, max_epochs=EPOCHS, run_name=f"fold-{fold}")
        losses.append(result.metrics["val/loss"])
        models.append(model)
    print(f"mean loss of {FOLDS} folds: {sum(losses) / FOLDS:.3f}")
    return models


def by_hand():
    models = nn.ModuleList()
    for fold in range(FOLDS):
        model = make_model(fold)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(EPOCHS):
            for x, y in DataLoader(split(fold)[0], 8):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        models.append(model)
    return models


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
