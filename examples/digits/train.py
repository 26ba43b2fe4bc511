"""Train a small convolutional net on scikit-learn's handwritten digits.

python train.py
python train.py with run.max_epochs=3 model.dropout=0.5
python train.py with run.resume=auto        # goes on where a stopped run stood
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from blowtorch import Run

HERE = Path(__file__).parent

run = Run(config_files=[HERE / "digits.yaml"], random_seed=123)


class DigitNet(nn.Module):
    """Two convolutions and a linear layer, for images of 8 × 8 pixels and ten classes."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, kernel_size=3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, kernel_size=3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * width * 2 * 2, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (batch, 10) for images of shape (batch, 1, 8, 8)."""
        return self.layers(images)


def make_loaders() -> tuple[DataLoader, DataLoader]:
    """The digits, split into a part for training and one for validation."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, validate = train_test_split(
        range(len(labels)), test_size=run["data.validate_fraction"], stratify=digits.target, random_state=run.seed
    )
    batch_size = run["data.batch_size"]
    return (
        DataLoader(TensorDataset(images[train], labels[train]), batch_size=batch_size, shuffle=True),
        DataLoader(TensorDataset(images[validate], labels[validate]), batch_size=256),
    )


@run.train_step
@run.validate_step
def step(batch, model):
    """One batch: what is returned is recorded, and `loss` is minimised."""
    images, labels = batch
    logits = model(images)
    accuracy = (logits.argmax(dim=1) == labels).float().mean()
    return {"loss": F.cross_entropy(logits, labels), "accuracy": accuracy}


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.AdamW(model.parameters(), lr=run["optimizer.rate"], weight_decay=run["optimizer.weight_decay"])


if __name__ == "__main__":
    train_loader, validate_loader = make_loaders()
    run(DigitNet(**run["model"]), train_loader, validate_loader)
