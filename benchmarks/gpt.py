"""Tokens per second of the example GPT, trained by blowtorch and by a loop written by hand.

    python benchmarks/gpt.py [--rounds 9] [--steps 20] [--threads 1] [--device cpu]

Both train the model of `examples/gpt` on the same batches of a `DataLoader`, and do the same to it: bf16, two batches
a step, norms of gradients clipped, AdamW with two groups, a cosine after a warm-up, and the loss read every 10 steps.
They take turns in one process, round by round, so that a machine whose speed drifts treats both alike; what is printed
are medians over the rounds, and the median of the ratios of the rounds. The first round warms up and does not count; it
makes sure that the weights come out alike, on a CPU bit for bit. Checkpoints and validations are left out of both.
"""

import argparse
import contextlib
import importlib.util
import io
import itertools
import math
import statistics
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from blowtorch import Run

EXAMPLE = Path(__file__).parents[1] / "examples" / "gpt" / "train.py"
WARM_STEPS = 3
WARMUP, FLOOR, EVERY = 5, 0.05, 10  # steps, fraction of the rate, steps


def load_example() -> types.ModuleType:
    """The script as a module; its `Run` is to read the settings beside it, and not our command line."""
    specification = importlib.util.spec_from_file_location("gpt_example", EXAMPLE)
    assert specification is not None and specification.loader is not None  # noqa: PT018 - no test
    module = importlib.util.module_from_spec(specification)
    arguments, sys.argv = sys.argv, [str(EXAMPLE)]
    specification.loader.exec_module(module)
    sys.argv = arguments
    return module


example = load_example()
options = example.run["run"]


class Stopwatch:
    """Seconds from the end of warm-up to the end of the last step, taken where the optimizer has stepped."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.count = 0
        self.times: list[float] = []
        self._marks = (WARM_STEPS, steps)
        self._device = device

    def watch(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        optimizer.register_step_post_hook(self._tick)
        return optimizer

    def _tick(self, *_: object) -> None:
        self.count += 1
        if self.count in self._marks:
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    def seconds_per_step(self) -> float:
        return (self.times[1] - self.times[0]) / (self._marks[1] - self._marks[0])


def by_hand(model: nn.Module, loader: DataLoader, steps: int, device: torch.device) -> float:
    watch = Stopwatch(steps, device)
    model.to(device).train()
    optimizer = watch.watch(example.configure_optimizers(model))

    def factor(step: int) -> float:
        if step < WARMUP:
            return 0.01 + 0.99 * step / WARMUP
        return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP))) / 2

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]  # in the optimizer's order
    batches = iter(loader)
    for number in range(steps):
        optimizer.zero_grad()
        for batch in itertools.islice(batches, options["accumulate"]):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss = example.step(batch.to(device, non_blocking=True), model) / options["accumulate"]
            loss.backward()
        nn.utils.clip_grad_norm_(weights, options["clip_grad_norm"])
        optimizer.step()
        scheduler.step()
        if number % EVERY == 0:
            loss.item()
    return watch.seconds_per_step()


def with_blowtorch(model: nn.Module, loader: DataLoader, steps: int, device: torch.device) -> float:
    watch = Stopwatch(steps, device)
    run = Run(random_seed=0, command_line=[])
    run.train_step(example.step)

    @run.configure_optimizers
    def configure_optimizers(model):
        return watch.watch(example.configure_optimizers(model))

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run(
            model,
            loader,
            max_steps=steps,
            precision="bf16",
            accumulate=options["accumulate"],
            clip_grad_norm=options["clip_grad_norm"],
            scheduler={"cosine": {"warmup": f"{WARMUP} steps", "floor": FLOOR}},
            log_every=f"{EVERY} steps",
            checkpoint_every=None,
            device=str(device),
            save_path=folder,
            progress=False,
        )
    return watch.seconds_per_step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    device, batch_size = torch.device(arguments.device), example.run["data.batch_size"]
    pieces = example.read_pieces(example.source_files(), example.run["model.context"])
    loader = DataLoader(pieces, batch_size)

    seconds: dict[str, list[float]] = {"by hand": [], "blowtorch": []}
    contestants = {"by hand": by_hand, "blowtorch": with_blowtorch}
    for number in range(arguments.rounds + 1):
        models = {}
        for name in list(contestants)[:: -1 if number % 2 else 1]:  # who begins changes
            torch.manual_seed(0)
            models[name] = example.GPT(**example.run["model"])
            taken = contestants[name](models[name], loader, arguments.steps, device)
            if number > 0:
                seconds[name].append(taken)
        if number == 0:
            most = 0 if device.type == "cpu" else 1e-2  # kernels of accelerators may differ from one call to the next
            mine, hand = (models[name].state_dict() for name in ("blowtorch", "by hand"))
            torch.testing.assert_close(mine, hand, rtol=0, atol=most)

    tokens = batch_size * example.run["model.context"] * options["accumulate"]
    ratios = [hand / mine for mine, hand in zip(seconds["blowtorch"], seconds["by hand"], strict=True)]
    print(f"{tokens} tokens a step, {arguments.rounds} rounds of {arguments.steps} steps, on {device}")
    for name, all_taken in seconds.items():
        print(f"{name:10} {tokens / statistics.median(all_taken):10.0f} tokens/s")
    low, _, high = statistics.quantiles(ratios, n=4)
    print(f"ratio      {statistics.median(ratios):10.4f}   half of the rounds from {low:.4f} to {high:.4f}")


if __name__ == "__main__":
    main()
