"""What is trained: four small models of different kinds, by a loop written by hand and by blowtorch."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.on_device import aside
from blowtorch import Run

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Workload:
    """A model, its data, and what is done with them.

    Attributes:
        name: what it is called.
        make_model: makes the model, the same each time.
        batches: on the host.
        step: the loss of a batch; of one that drives itself, see `drive`.
        make_optimizers: by name.
        drive: a whole step with optimizers, given a function that goes backward; None where the loop does that.
    """

    name: str
    make_model: Callable[[], nn.Module]
    batches: Sequence[Any]
    step: Callable[[Any, nn.Module], Tensor]
    make_optimizers: Callable[[nn.Module], dict[str, torch.optim.Optimizer]]
    drive: Callable[[Any, nn.Module, Mapping[str, torch.optim.Optimizer], Callable[[Tensor], Any]], Any] | None = None


class Decoder(nn.Module):
    """A small language model of bytes, as transformers are."""

    def __init__(self, width: int = 64, depth: int = 2, context: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, width), nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, context, 256) of the bytes that follow."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        hidden = self.tokens(tokens) + self.places(torch.arange(length, device=tokens.device))
        logits: Tensor = self.head(self.blocks(hidden, mask=mask, is_causal=True))
        return logits


class Networks(nn.Module):
    """Two networks that train against each other."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())
        self.discriminator = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))


class Wide(nn.Module):
    """Weights of so many bytes, all of which change in each step, and of which little is computed."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__()
        self.tables = nn.ParameterList(torch.zeros(num_bytes // 32, dtype=torch.float32) for _ in range(8))

    def forward(self, batch: Tensor) -> Tensor:
        """A number that moves each weight."""
        total: Tensor = sum(table.sum() for table in self.tables) * batch.mean()
        return total


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return what makes the same model each time."""

    def make_seeded() -> nn.Module:
        torch.manual_seed(0)
        return make()

    return make_seeded


def make_digits() -> nn.Module:
    """A convolutional net for images of 8 × 8 pixels."""
    features = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*features, nn.Dropout(0.1), nn.Linear(256, 10))


def make_tuned() -> nn.Module:
    """A frozen base under a head that is trained."""
    base = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU())
    return nn.Sequential(base.requires_grad_(False), nn.Linear(256, 10))


def classify(batch: Any, model: nn.Module) -> Tensor:
    """The loss of images and labels, flat where the model wants that."""
    images, labels = batch
    return F.cross_entropy(model(images if isinstance(model_of(model)[0], nn.Conv2d) else images.flatten(1)), labels)


def model_of(model: nn.Module) -> Any:
    """The module that `torch.compile` has wrapped, or the module itself."""
    return getattr(model, "_orig_mod", model)


def predict_bytes(batch: Any, model: nn.Module) -> Tensor:
    """The loss of the next byte."""
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def play(
    batch: Any, model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer], backward: Callable[[Tensor], Any]
) -> dict[str, Tensor]:
    """One step of each of two networks; noise comes from the stream of the device."""
    real = batch[0].flatten(1)
    nets = model_of(model)
    fake = nets.generator(torch.randn(len(real), 16, device=real.device))
    optimizers["discriminator"].zero_grad()
    told = torch.cat([nets.discriminator(real), nets.discriminator(fake.detach())])
    truth = torch.cat([torch.ones(len(real), 1), torch.zeros(len(real), 1)]).to(real.device, non_blocking=True)
    discriminator_loss = F.binary_cross_entropy_with_logits(told, truth)
    backward(discriminator_loss)
    optimizers["discriminator"].step()
    optimizers["generator"].zero_grad()
    generator_loss = F.softplus(-nets.discriminator(fake)).mean()
    backward(generator_loss)
    optimizers["generator"].step()
    return {"discriminator": discriminator_loss, "generator": generator_loss}


def one_optimizer(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    """AdamW over what is trained."""
    return {"optimizer": torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)}


def two_optimizers(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    """One for each of two networks."""
    nets = model_of(model)
    return {
        name: torch.optim.Adam(getattr(nets, name).parameters(), lr=1e-3) for name in ("generator", "discriminator")
    }


def make_workloads(num_batches: int) -> list[Workload]:
    """The four of them, with so many batches each."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(num_batches, 32, 1, 8, 8, generator=generator)
    labels = (images[:, :, 0, :, :4].mean((2, 3)) * 20).long() % 10
    pairs = list(zip(images, labels, strict=True))
    text = Path(copy.__file__).read_bytes() * 8
    starts = torch.randint(len(text) - 65, (num_batches, 16), generator=generator)
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    windows = [torch.stack([data[start : start + 65] for start in row]) for row in starts]
    return [
        Workload("digits", seeded(make_digits), pairs, classify, one_optimizer),
        Workload("gpt", seeded(Decoder), windows, predict_bytes, one_optimizer),
        Workload("gan", seeded(Networks), pairs, classify, two_optimizers, drive=play),
        Workload("fine-tuning", seeded(make_tuned), pairs, classify, one_optimizer),
    ]


def train_by_hand(workload: Workload, device: torch.device, precision: str, compiled: dict[str, Any] | None) -> Weights:
    """Train once over the batches as a careful loop by hand would; return the weights on the host."""
    torch.compiler.reset()  # or what was compiled for another one is thrown away only after some recompilations
    model = workload.make_model().to(device)
    model.train()
    optimizers = workload.make_optimizers(model)
    called = model if compiled is None else torch.compile(model, **compiled)
    scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None
    autocast = torch.autocast(device.type, dtype=DTYPES.get(precision), enabled=precision != "fp32")
    if workload.drive is not None:  # weights change within the region, and the copies in it would be out of date
        for optimizer in optimizers.values():
            optimizer.register_step_post_hook(lambda *_: torch.clear_autocast_cache())
    torch.manual_seed(7)
    for batch in workload.batches:
        moved = [part.to(device) for part in batch] if isinstance(batch, tuple) else batch.to(device)
        if workload.drive is not None:
            with autocast:
                workload.drive(moved, called, optimizers, lambda loss: loss.backward())
            continue
        (optimizer,) = optimizers.values()
        optimizer.zero_grad()
        with autocast:
            loss = workload.step(moved, called)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return to_host(model)


def train_with_blowtorch(
    workload: Workload, device: torch.device, precision: str, compiled: dict[str, Any] | None, **options: Any
) -> Weights:
    """The same by blowtorch."""
    torch.compiler.reset()
    run = Run(random_seed=0, command_line=[])
    model = workload.make_model().to(device)
    if workload.drive is None:
        run.train_step(workload.step)
    else:
        run.train_step(workload.drive)
    run.configure_optimizers(workload.make_optimizers)
    run.on("run_start")(lambda: torch.manual_seed(7) and None)
    compile = False if compiled is None else compiled or True  # a mapping without an item is no option
    with aside() as folder:
        settings = {"save_path": folder, "progress": False, "checkpoint_every": None, "device": str(device), **options}
        run(model, list(workload.batches), precision=precision, compile=compile, **settings)
    return to_host(model)


def to_host(model: nn.Module) -> Weights:
    """The weights on the host, by name."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def largest_difference(mine: Weights, others: Weights) -> float:
    """The largest difference between two sets of weights; infinite where one of them is not finite."""
    distances = [(value.double() - others[name].double()).abs().max() for name, value in mine.items()]
    return float(torch.stack(distances).nan_to_num(nan=math.inf).max())
