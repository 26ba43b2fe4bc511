"""An epoch of your own: train on everything once, and on what was hardest once more.

Which samples are hard is known only when all of them have been seen, so this is no step but a whole epoch.

python train.py
python train.py with replay=0 run.max_epochs=5         # the same without the second pass
python train.py with run.resume=auto                   # goes on after the last whole epoch of a stopped run
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from blowtorch import Run

run = Run(config={"width": 64, "rate": 0.05, "batch_size": 32, "replay": 0.2}, random_seed=123)


def update(model, optimizer, backward, images, labels):
    """One step of the optimizer; returns the loss of each sample, of shape (batch,)."""
    losses = F.cross_entropy(model(images), labels, reduction="none")
    optimizer.zero_grad()
    backward(losses.mean())  # and not .backward(), so that the option precision may be anything
    optimizer.step()
    return losses.detach()


@run.train_epoch
def train_epoch(data_loader, model, optimizers, backward, log):
    """Everything between the beginning and the end of an epoch; `data_loader` can be iterated once.

    Each batch taken from it counts as a step. The replayed ones do not, since they are not from there. A run of such
    epochs is saved and stopped between two of them, so whatever is kept in here for a while needs no checkpoint.
    """
    optimizer = optimizers["optimizer"]
    seen = []
    for images, labels in data_loader:  # on the device, in the order of the seed and the epoch
        losses = update(model, optimizer, backward, images, labels)
        log({"loss": losses.mean()})  # averaged over the epoch, weighted by the size of the batch
        seen.append((losses, images, labels))
    losses, images, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))

    num_updates = round(run["replay"] * len(seen))  # of the batches, which all of several processes have alike
    if num_updates == 0:
        return None
    hardest = losses.topk(int(run["replay"] * len(losses))).indices
    hardest = hardest[torch.randperm(len(hardest), device=hardest.device)]  # topk sorts, and the last ones would stay
    again = [
        update(model, optimizer, backward, images[chosen], labels[chosen])
        for chosen in hardest.tensor_split(num_updates)
    ]
    return {"hardest_loss": losses[hardest].mean(), "replayed_loss": torch.cat(again).mean()}


@run.validate_step
def validate_step(batch, model):
    images, labels = batch
    logits = model(images)
    return {"loss": F.cross_entropy(logits, labels), "accuracy": (logits.argmax(dim=1) == labels).float().mean()}


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.SGD(model.parameters(), lr=run["rate"], momentum=0.9)


if __name__ == "__main__":
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    dataset = TensorDataset(images, torch.tensor(digits.target))
    train, validate = random_split(dataset, [0.75, 0.25], generator=torch.Generator().manual_seed(run.seed))
    model = nn.Sequential(nn.Linear(64, run["width"]), nn.ReLU(), nn.Linear(run["width"], 10))
    train_loader = DataLoader(train, run["batch_size"], shuffle=True)
    run(model, train_loader, DataLoader(validate, 256), run_name="own_epoch", max_epochs=10, validate_at_start=True)
