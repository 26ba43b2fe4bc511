"""Fine-tuning: a net that knows the digits 0 to 4 learns 5 to 9, with its backbone frozen or moving slowly.

python train.py                                                     # train on the digits 0 to 4
python train.py with fine_tune.yaml run.initialize_from=train_logs/<that run>               # only a new head
python train.py with fine_tune.yaml run.initialize_from=train_logs/<that run> optimizer.backbone=0.1

The second command begins a new run with the weights of the best checkpoint of the first; `run.resume=auto` behind
any of these goes on with the run of that name instead, if it was stopped.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from blowtorch import Run

run = Run(
    config={
        "first_digit": 0,  # the classes are this digit and the four after it
        "reset_head": False,
        "optimizer": {
            "rate": 4e-3,
            "backbone": 1,  # the backbone's learning rate, as a multiple of the head's; 0 freezes it
        },
        "run": {"run_name": "pretrain", "max_epochs": 8},
    },
    random_seed=123,
)


class Net(nn.Module):
    """Convolutions that turn an image of 8 × 8 pixels into features, and a layer that turns these into five logits.

    Weights can be handed on only to a model of the same names and shapes, so the head has five classes for either
    half of the digits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(64 * 2 * 2, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (batch, 5) for images of shape (batch, 1, 8, 8)."""
        return self.head(self.backbone(images))


@run.init
def prepare(model):
    """Called when the weights of `initialize_from` are in the model, and before the optimizer is made."""
    if run["reset_head"]:
        model.head.reset_parameters()
    if run["optimizer.backbone"] == 0:
        model.backbone.requires_grad_(False)
        # Without gradients, a BatchNorm in training mode would still move its running statistics. The mode chosen here
        # holds: a validation puts every module back into the mode in which it was.
        model.backbone.eval()


@run.configure_optimizers
def configure_optimizers(model):
    """One group of parameters for the head, and one for the backbone unless it is frozen; both rates are recorded."""
    rate, multiple = run["optimizer.rate"], run["optimizer.backbone"]
    groups = [{"params": model.head.parameters(), "lr": rate}]
    if multiple > 0:
        groups.append({"params": model.backbone.parameters(), "lr": rate * multiple})
    return torch.optim.AdamW(groups)


@run.train_step
@run.validate_step
def step(batch, model):
    images, labels = batch
    logits = model(images)
    return {"loss": F.cross_entropy(logits, labels), "accuracy": (logits.argmax(dim=1) == labels).float().mean()}


if __name__ == "__main__":
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target) - run["first_digit"]
    chosen = (labels >= 0) & (labels < 5)
    dataset = TensorDataset(images[chosen], labels[chosen])
    # A generator of its own, so that the split is that of the seed, whatever else was drawn before.
    train, validate = random_split(dataset, [0.75, 0.25], generator=torch.Generator().manual_seed(run.seed))
    run(Net(), DataLoader(train, 32, shuffle=True), DataLoader(validate, 256))
