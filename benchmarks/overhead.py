"""Time that a framework adds to one training step, beside the same loop written by hand.

    python benchmarks/overhead.py [--rounds 25] [--steps 1000] [--every 50] [--only tiny-mlp]

Every contestant trains the same model on the same list of batches, one thread, in one process. All call one train step;
the time of a step is that between two calls of it. They take turns, in an order drawn anew for each round, so that a
machine whose speed drifts treats all alike. The first steps of each round are left out, and so is the first round.

How to read it, in microseconds a step:

* `p10` and `median` are of the single steps of a round, each the median over the rounds. The 10th percentile is what a
  step costs undisturbed; it scatters least. On a busy machine that needs short steps: read `tiny-mlp` alone there.
* `added` is what comes on top of the loop by hand, and `of Ignite` the share of that in what Ignite adds.
* `by hand again` is the same loop once more: what it adds is how far the figures scatter.
* `Python` and `C` are the calls in the most frequent kind of step, counted in a round of its own. They never scatter.
* `depth` is how many frames below the script the train step runs; 1 is a direct call.

What each does with the loss: the loops by hand do nothing. blowtorch sums it at each step, and every `--every` steps
writes the mean to the record of the run. Ignite reads and averages it at each step, whatever `--every` is, and writes
it nowhere; `Ignite to file` writes the average as a line of JSON every `--every` steps. Accelerate reads it every
`--every` steps. Lightning logs it at each step, and writes it to a CSV file every `--every` steps.
"""

import argparse
import contextlib
import gc
import importlib.util
import io
import itertools
import json
import logging
import random
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import nn

Batch = tuple[torch.Tensor, torch.Tensor]
Step = Callable[[Batch, nn.Module], torch.Tensor]
Job = tuple[nn.Module, list[Batch]]
Contestant = Callable[[Step, nn.Module, list[Batch], int], None]
Rounds = dict[str, list[list[float]]]  # of each contestant, round by round, the microseconds of its steps, sorted

WARM_STEPS = 20  # of each round


class Stopwatch:
    """Times single steps: it is told of the beginning of each by the step that all contestants share."""

    def __init__(self, num_steps: int) -> None:
        self.ticks = [0] * num_steps
        self.count = 0

    def tick(self) -> None:
        self.ticks[self.count] = time.perf_counter_ns()
        self.count += 1

    def microseconds(self) -> list[float]:
        """The time of each step but the first few, in ascending order."""
        ticks = self.ticks[WARM_STEPS : self.count]
        return sorted((end - begin) / 1000 for begin, end in itertools.pairwise(ticks))


class CallCounter:
    """Counts the calls that this thread makes, and the frames from the script down to the train step."""

    def __init__(self) -> None:
        self.num_python = self.num_c = self.depth = 0
        self.ticks: list[tuple[int, int]] = []  # calls of Python functions and of C functions before each step

    def tick(self) -> None:
        self.ticks.append((self.num_python, self.num_c))
        if len(self.ticks) == 1:
            codes = [
                frame.f_code for frame, _ in traceback.walk_stack(sys._getframe(1))
            ]  # the train step's is the first
            self.depth = codes.index(take_turn.__code__) - 1  # without the contestant, which stands for the script

    def count(self, frame: FrameType, event: str, argument: Any) -> None:
        self.num_python += event == "call"
        self.num_c += event == "c_call"

    def calls_of_a_step(self) -> tuple[int, int]:
        """Calls of Python and of C functions in the most frequent kind of step, on which nothing else happens."""
        pairs = itertools.pairwise(self.ticks[WARM_STEPS:])
        return statistics.mode((after[0] - before[0], after[1] - before[1]) for before, after in pairs)


def tiny_mlp(num_steps: int) -> Job:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    return model, [(torch.randn(32, 32), torch.randn(32, 1)) for _ in range(num_steps)]


def small_cnn(num_steps: int) -> Job:
    torch.manual_seed(0)
    features = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))
    return model, [(torch.randn(32, 3, 32, 32), torch.randn(32, 1)) for _ in range(num_steps // 10)]  # which are longer


def make_step(tick: Callable[[], None]) -> Step:
    """The train step of all contestants: one function, called as directly as each of them can."""

    def step(batch: Batch, model: nn.Module) -> torch.Tensor:
        tick()
        inputs, targets = batch
        return nn.functional.mse_loss(model(inputs), targets)

    return step


def by_hand(step: Step, model: nn.Module, batches: list[Batch], every: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for batch in batches:
        optimizer.zero_grad()
        loss = step(batch, model)
        loss.backward()
        optimizer.step()


def with_blowtorch(step: Step, model: nn.Module, batches: list[Batch], every: int) -> None:
    from blowtorch import Run

    run = Run(random_seed=0, command_line=[])
    run.train_step(step)

    @run.configure_optimizers
    def configure_optimizers(model):
        return torch.optim.SGD(model.parameters(), lr=1e-3)

    with tempfile.TemporaryDirectory() as folder:
        run(model, batches, save_path=folder, progress=False, log_every=f"{every} steps", checkpoint_every=None)


class OneLoader(list[Batch]):
    """The batches as one loader; Lightning takes a plain list for several."""


def with_lightning(step: Step, model: nn.Module, batches: list[Batch], every: int) -> None:
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

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

    silence = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    with tempfile.TemporaryDirectory() as folder:
        logger = lightning.pytorch.loggers.CSVLogger(folder)
        lightning.Trainer(
            max_epochs=1, accelerator="cpu", log_every_n_steps=every, default_root_dir=folder, logger=logger, **silence
        ).fit(Module(), OneLoader(batches))


def make_ignite_trainer(step: Step, model: nn.Module) -> Any:
    from ignite.engine import Engine
    from ignite.metrics import RunningAverage

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def update(engine, batch):
        optimizer.zero_grad()
        loss = step(batch, model)
        loss.backward()
        optimizer.step()
        return loss.item()

    trainer = Engine(update)
    RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
    return trainer


def with_ignite(step: Step, model: nn.Module, batches: list[Batch], every: int) -> None:
    make_ignite_trainer(step, model).run(batches, max_epochs=1)


def with_ignite_to_file(step: Step, model: nn.Module, batches: list[Batch], every: int) -> None:
    from ignite.engine import Events

    trainer = make_ignite_trainer(step, model)
    with tempfile.TemporaryFile("w") as file:

        @trainer.on(Events.ITERATION_COMPLETED(every=every))
        def write(engine):
            file.write(json.dumps({"step": engine.state.iteration, **engine.state.metrics}) + "\n")

        trainer.run(batches, max_epochs=1)


def with_accelerate(step: Step, model: nn.Module, batches: list[Batch], every: int) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-3))
    for number, batch in enumerate(batches):
        optimizer.zero_grad()
        loss = step(batch, model)
        accelerator.backward(loss)
        optimizer.step()
        if number % every == 0:
            loss.item()


CONTESTANTS: dict[str, tuple[Contestant, str]] = {  # and the package that each needs
    "by hand": (by_hand, "torch"),
    "by hand again": (by_hand, "torch"),
    "blowtorch": (with_blowtorch, "blowtorch"),
    "Ignite": (with_ignite, "ignite"),
    "Ignite to file": (with_ignite_to_file, "ignite"),
    "Accelerate": (with_accelerate, "accelerate"),
    "Lightning": (with_lightning, "lightning"),
}
MODELS: dict[str, Callable[[int], Job]] = {"tiny-mlp": tiny_mlp, "small-cnn": small_cnn}


def take_turn(contestant: Contestant, tick: Callable[[], None], job: Job, every: int) -> None:
    """Have a contestant train, in silence; the garbage of those before it is not its own."""
    gc.collect()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        contestant(make_step(tick), *job, every)


def time_steps(contestants: dict[str, Contestant], make: Callable[[int], Job], options: argparse.Namespace) -> Rounds:
    rounds: Rounds = {name: [] for name in contestants}
    for number in range(options.rounds + 1):
        order = list(contestants)
        random.Random(number).shuffle(order)  # since each finds the caches that another left
        for name in order:
            stopwatch = Stopwatch(options.steps)
            take_turn(contestants[name], stopwatch.tick, make(options.steps), options.every)
            if number > 0:
                rounds[name].append(stopwatch.microseconds())
    return rounds


def count_calls(contestant: Contestant, job: Job, every: int) -> CallCounter:
    counter = CallCounter()
    sys.setprofile(counter.count)
    take_turn(contestant, counter.tick, job, every)
    sys.setprofile(None)
    return counter


def print_table(rounds: Rounds, counters: dict[str, CallCounter]) -> None:
    columns = f"{'added':>7} {'of Ignite':>9}"
    print(f"{'':14} {'p10':>8} {columns} {'median':>8} {columns} {'Python':>7} {'C':>6} {'depth':>6}")
    lines = {name: f"{name:14}" for name in rounds}
    for share in (0.1, 0.5):
        figures = {name: [times[int(share * len(times))] for times in rounds[name]] for name in rounds}
        added = {
            name: statistics.median(mine - hand for mine, hand in zip(figures[name], figures["by hand"], strict=True))
            for name in rounds
        }
        for name in rounds:
            of_ignite = f"{added[name] / added['Ignite']:.3f}" if "Ignite" in added else "-"
            lines[name] += f" {statistics.median(figures[name]):8.1f} {added[name]:+7.1f} {of_ignite:>9}"
    for name, counter in counters.items():
        num_python, num_c = counter.calls_of_a_step()
        print(f"{lines[name]} {num_python:7} {num_c:6} {counter.depth:6}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--steps", type=int, default=1000, help="of a round, at least 300; a tenth for small-cnn")
    parser.add_argument("--every", type=int, default=50, help="record the metrics every so many steps")
    parser.add_argument("--only", choices=MODELS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    contestants = {name: call for name, (call, package) in CONTESTANTS.items() if importlib.util.find_spec(package)}
    for title, make in MODELS.items():
        if options.only in (None, title):
            print(f"\n{title}, recorded every {options.every} steps, {options.rounds} rounds of {options.steps} steps")
            rounds = time_steps(contestants, make, options)
            counters = {name: count_calls(contestants[name], make(options.steps), options.every) for name in rounds}
            print_table(rounds, counters)


if __name__ == "__main__":
    main()
