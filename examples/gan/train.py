"""Two networks that train against each other: a small GAN on scikit-learn's handwritten digits.

python train.py                             # the samples of each validation lie in the run's folder media/samples
python train.py with run.max_epochs=10 optimizer.discriminator=2e-4
python train.py with run.resume=auto        # goes on where a stopped run stood, bit for bit
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from blowtorch import Run

ROWS, COLUMNS = 6, 12  # of the grid of samples

run = Run(
    config={"noise": 16, "width": 32, "batch_size": 64, "optimizer": {"generator": 2e-3, "discriminator": 5e-4}},
    random_seed=123,
)


class Gan(nn.Module):
    """A generator of images of 8 × 8 pixels, and a discriminator that tells them from real ones."""

    def __init__(self, noise: int, width: int) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(noise, 2 * width * 2 * 2),
            nn.Unflatten(1, (2 * width, 2, 2)),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, kernel_size=4, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, kernel_size=4, stride=2, padding=1),
            nn.Sigmoid(),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, width, kernel_size=4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, kernel_size=4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(2 * width * 2 * 2, 1),
        )
        # A buffer moves with the model and is in every checkpoint, so all grids show the same points of the noise.
        self.register_buffer("fixed_noise", torch.randn(ROWS * COLUMNS, noise))


def judge(logits, is_real):
    """How far the discriminator's opinion is from the truth, or from what the generator would have it believe."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(is_real)))


@run.train_step
def train_step(batch, model, optimizers, backward):
    """Asking for `optimizers` means: this step does everything itself. One call is one step, however many it makes."""
    (real,) = batch
    fake = model.generator(torch.randn(len(real), run["noise"], device=real.device))

    optimizers["discriminator"].zero_grad()  # also of what the generator's loss of the step before left there
    discriminator_loss = judge(model.discriminator(real), True) + judge(model.discriminator(fake.detach()), False)
    backward(discriminator_loss)  # and not .backward(), so that the option precision may be anything
    optimizers["discriminator"].step()

    optimizers["generator"].zero_grad()
    generator_loss = judge(model.discriminator(fake), True)
    backward(generator_loss)
    optimizers["generator"].step()
    return {"discriminator": discriminator_loss, "generator": generator_loss}


@run.validate_epoch
def validate(data_loader, model):
    """Show samples, and measure how far each is from its nearest digit, and each digit from its nearest sample.

    Here, and in the checkpoints' `model.pt`, the model has the average of the weights along the way. The nearest digit
    can be any of them, so each of several processes needs all, which is what `split` says below.
    """
    samples = model.generator(model.fixed_noise)
    tiles = F.pad(samples, (1, 1, 1, 1), value=0.3).view(ROWS, COLUMNS, 10, 10)  # each in a grey frame
    grid = tiles.transpose(1, 2).reshape(ROWS * 10, COLUMNS * 10)
    run.log_image("samples", torch.kron(grid, torch.ones(5, 5, device=grid.device)))  # five times as large
    digits = torch.cat([real for (real,) in data_loader])
    distances = torch.cdist(samples.flatten(1), digits.flatten(1))
    unlike, missing = distances.amin(dim=1).mean(), distances.amin(dim=0).mean()  # `missing` grows when modes collapse
    return {"unlike": unlike, "missing": missing, "distance": unlike + missing}


@run.configure_optimizers
def configure_optimizers(model):
    """Each network has an optimizer of its own; the names are those that the step is given."""
    return {
        name: torch.optim.Adam(getattr(model, name).parameters(), lr=rate, betas=(0.5, 0.99))
        for name, rate in run["optimizer"].items()
    }


if __name__ == "__main__":
    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16
    train_loader = DataLoader(TensorDataset(images[:1500]), run["batch_size"], shuffle=True, drop_last=True)
    validate_loader = DataLoader(TensorDataset(images[1500:]), 256)
    gan = Gan(run["noise"], run["width"])
    run(
        gan,
        train_loader,
        validate_loader,
        run_name="gan",
        max_epochs=60,
        validate_every="5 epochs",
        checkpoint_every="5 epochs",
        checkpoint_metric="val/distance",
        split={"val": "never"},
        # Two networks that chase each other go round in circles; the middle of these is better than any point on them.
        callbacks=[{"ema": {"decay": 0.99}}],
    )
