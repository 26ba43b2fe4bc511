"""Two tasks with data of their own: the shorter loader begins again, and the losses have weights that are learnt."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from blowtorch import Run

SEED, EPOCHS = 18, 3
run = Run(random_seed=SEED)


class Combined:
    """Yields a dict of a batch of each loader until the longest has ended, as Lightning's CombinedLoader does."""

    def __init__(self, loaders):
        self.loaders = loaders

    def __len__(self):
        return max(len(loader) for loader in self.loaders.values())

    def __iter__(self):
        iterators = {name: iter(loader) for name, loader in self.loaders.items()}
        for _ in range(len(self)):
            batch = {}
            for name, loader in self.loaders.items():
                try:
                    batch[name] = next(iterators[name])
                except StopIteration:
                    iterators[name] = iter(loader)
                    batch[name] = next(iterators[name])
            yield batch


class Tasks(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.1))
        self.heads = nn.ModuleDict({"value": nn.Linear(16, 1), "label": nn.Linear(16, 3)})
        self.log_variances = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in self.heads})


def losses(model, batch):
    x, value = batch["value"]
    parts = {"value": F.mse_loss(model.heads["value"](model.trunk(x)), value)}
    x, label = batch["label"]
    parts["label"] = F.cross_entropy(model.heads["label"](model.trunk(x)), label)
    weighted = [(-model.log_variances[name]).exp() * part + model.log_variances[name] for name, part in parts.items()]
    return {"loss": torch.stack(weighted).sum(), **parts}


@run.train_step
def train_step(batch, model):
    return losses(model, batch) | {"batch_size": len(batch["value"][1])}


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.RAdam(model.parameters(), lr=0.01)


def make_loader():
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    value, label = TensorDataset(x, x.sum(dim=1, keepdim=True)), TensorDataset(x[:44], x[:44, :3].argmax(dim=1))
    apart = torch.Generator()  # from which the loaders draw the seeds of workers that they do not have
    return Combined(
        {"value": DataLoader(value, 8, generator=apart), "label": DataLoader(label, 8, drop_last=True, generator=apart)}
    )


def train():
    model = Tasks()
    run(model, make_loader(), max_epochs=EPOCHS, scheduler="cosine")
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = Tasks()
    optimizer = torch.optim.RAdam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(make_loader()))
    for _ in range(EPOCHS):
        for batch in make_loader():
            optimizer.zero_grad()
            losses(model, batch)["loss"].backward()
            optimizer.step()
            schedule.step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
