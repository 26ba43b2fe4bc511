"""Time that a framework adds to one training step, beside the same loop written by hand.

    python benchmarks/overhead.py [--rounds 9] [--only tiny-mlp]

Every contestant trains the same model on the same list of batches, one thread, in one process, and takes turns with
the others round by round, so that a machine whose speed drifts treats all alike. What is printed are medians over the
rounds: microseconds a step, what is added to the loop by hand, and the ratio to it. The first round warms up and does
not count. `--every 1` records the metrics at every step.
"""

import argparse
import contextlib
import importlib.util
import io
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Batch = tuple[torch.Tensor, torch.Tensor]
Contestant = Callable[[nn.Module, list[Batch], int], float]  # returns the seconds of all steps but the first few

WARM_STEPS = 20


class Stopwatch:
    """Seconds from the end of warm-up to the last step, taken inside the step that all contestants share."""

    def __init__(self) -> None:
        self.count = 0
        self.started = 0.0
        self.ended = 0.0

    def tick(self) -> None:
        self.count += 1
        now = time.perf_counter()
        if self.count == WARM_STEPS:
            self.started = now
        self.ended = now

    def seconds_per_step(self) -> float:
        return (self.ended - self.started) / (self.count - WARM_STEPS)


def tiny_mlp() -> tuple[nn.Module, list[Batch]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    return model, [(torch.randn(32, 32), torch.randn(32, 1)) for _ in range(1000)]


def small_cnn() -> tuple[nn.Module, list[Batch]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 1),
    )
    return model, [(torch.randn(32, 3, 32, 32), torch.randn(32, 1)) for _ in range(60)]


def make_step(watch: Stopwatch) -> Callable[[Batch, nn.Module], torch.Tensor]:
    """The train step of all contestants: one function, called as directly as each of them can."""

    def step(batch: Batch, model: nn.Module) -> torch.Tensor:
        watch.tick()
        inputs, targets = batch
        return F.mse_loss(model(inputs), targets)

    return step


def by_hand(model: nn.Module, batches: list[Batch], every: int) -> float:
    watch = Stopwatch()
    step = make_step(watch)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for batch in batches:
        optimizer.zero_grad()
        loss = step(batch, model)
        loss.backward()
        optimizer.step()
    return watch.seconds_per_step()


def with_blowtorch(model: nn.Module, batches: list[Batch], every: int) -> float:
    from blowtorch import Run

    watch = Stopwatch()
    run = Run(random_seed=0, command_line=[])
    run.train_step(make_step(watch))

    @run.configure_optimizers
    def configure_optimizers(model):
        return torch.optim.SGD(model.parameters(), lr=1e-3)

    with tempfile.TemporaryDirectory() as folder:
        run(model, batches, save_path=folder, progress=False, log_every=f"{every} steps", checkpoint_every=None)
    return watch.seconds_per_step()


class OneLoader:
    """The batches as one loader; Lightning takes a list for several."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def with_lightning(model: nn.Module, batches: list[Batch], every: int) -> float:
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    watch = Stopwatch()
    step = make_step(watch)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch, batch_index):
            loss = step(batch, self.net)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    with tempfile.TemporaryDirectory() as folder:
        lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            log_every_n_steps=every,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
            logger=lightning.pytorch.loggers.CSVLogger(folder),
        ).fit(Module(), OneLoader(batches))
    return watch.seconds_per_step()


def with_ignite(model: nn.Module, batches: list[Batch], every: int) -> float:
    from ignite.engine import Engine
    from ignite.metrics import RunningAverage

    watch = Stopwatch()
    step = make_step(watch)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def update(engine, batch):
        optimizer.zero_grad()
        loss = step(batch, model)
        loss.backward()
        optimizer.step()
        return loss.item()

    trainer = Engine(update)
    RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
    trainer.run(batches, max_epochs=1)
    return watch.seconds_per_step()


def with_accelerate(model: nn.Module, batches: list[Batch], every: int) -> float:
    from accelerate import Accelerator

    watch = Stopwatch()
    step = make_step(watch)
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-3))
    for number, batch in enumerate(batches):
        optimizer.zero_grad()
        loss = step(batch, model)
        accelerator.backward(loss)
        optimizer.step()
        if number % every == 0:
            loss.item()
    return watch.seconds_per_step()


CONTESTANTS: dict[str, tuple[Contestant, str | None]] = {
    "by hand": (by_hand, None),
    "blowtorch": (with_blowtorch, "blowtorch"),
    "Ignite": (with_ignite, "ignite"),
    "Accelerate": (with_accelerate, "accelerate"),
    "Lightning": (with_lightning, "lightning"),
}
MODELS = {"tiny-mlp": tiny_mlp, "small-cnn": small_cnn}


def measure(make: Callable[[], tuple[nn.Module, list[Batch]]], rounds: int, every: int) -> dict[str, list[float]]:
    """Seconds a step of each installed contestant, round by round."""
    installed = {
        name: contestant
        for name, (contestant, module) in CONTESTANTS.items()
        if module is None or importlib.util.find_spec(module) is not None
    }
    seconds: dict[str, list[float]] = {name: [] for name in installed}
    names = list(installed)
    for number in range(rounds + 1):
        turn = number % len(names)  # who begins changes, since it finds the caches that another left
        for name in names[turn:] + names[:turn]:
            contestant = installed[name]
            model, batches = make()
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                taken = contestant(model, batches, every)
            if number > 0:
                seconds[name].append(taken)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--every", type=int, default=50, help="record the metrics every so many steps")
    parser.add_argument("--only", choices=MODELS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for title, make in MODELS.items():
        if arguments.only not in (None, title):
            continue
        seconds = measure(make, arguments.rounds, arguments.every)
        print(f"\n{title}, recorded every {arguments.every} steps, {arguments.rounds} rounds")
        hand = seconds["by hand"]
        for name, taken in seconds.items():
            added = statistics.median(1e6 * (mine - other) for mine, other in zip(taken, hand, strict=True))
            ratio = statistics.median(mine / other for mine, other in zip(taken, hand, strict=True))
            print(f"{name:12} {1e6 * statistics.median(taken):10.1f} {added:10.1f} {ratio:7.3f}")


if __name__ == "__main__":
    main()
