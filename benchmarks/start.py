"""What a run costs besides its steps: its beginning and its end, and to find the run that is continued.

    python benchmarks/start.py [--runs 1000] [--rounds 30]

Milliseconds of `run(...)` before its first step and after its last checkpoint, so that neither of them counts, with
what it asks of the system: files opened, programs started, and waits for the disk, which are most of it on a slow one.
Then how much longer that takes with `resume="auto"` among many runs, in turns with `resume="never"`. The first round
warms up and does not count; the 10th percentile scatters less than the median on a busy machine.
"""

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blowtorch import Run, hookimpl

_COUNTED = {"open": "files opened", "subprocess.Popen": "programs started"}


class Watch:
    """A callback that takes the time at the beginning and the end of a training."""

    @hookimpl
    def run_start(self) -> None:
        self.began = time.perf_counter()

    @hookimpl
    def run_end(self) -> None:
        self.ended = time.perf_counter()


class Requests:
    """Counts what is asked of the system from now on."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.waited = 0.0
        sys.addaudithook(self._hear)
        self._sync, os.fsync = os.fsync, self._wait  # type: ignore[assignment]

    def _hear(self, event: str, _: Any) -> None:
        if event in _COUNTED:
            self.counts[_COUNTED[event]] += 1

    def _wait(self, descriptor: int) -> None:
        began = time.perf_counter()
        self._sync(descriptor)
        self.counts["waits for the disk"] += 1
        self.waited += time.perf_counter() - began


def make_run() -> Run:
    run = Run(random_seed=0, command_line=[])

    @run.train_step
    def step(batch: torch.Tensor, model: nn.Module) -> torch.Tensor:
        return model(batch).mean()

    @run.configure_optimizers
    def configure_optimizers(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1)

    return run


def around(run: Run, **options: Any) -> tuple[float, Path]:
    """Milliseconds that a run of one step takes before it is trained and afterwards, and its folder."""
    watch = Watch()
    began = time.perf_counter()
    result = run(nn.Linear(2, 1), [torch.ones(4, 2)], callbacks=[watch], progress=False, **options)
    ended = time.perf_counter()
    return 1000 * (watch.began - began + ended - watch.ended), result.folder


def copy_run(folder: Path, count: int) -> None:
    """Put so many runs beside one, which differ from it in their names."""
    text = (folder / "run.yaml").read_text()
    for number in range(2, count + 1):
        copy = folder.with_name(re.sub(r"\d+$", str(number), folder.name))
        copy.mkdir()
        name = re.sub(r"(?m)^(name: .*-|number: )\d+$", rf"\g<1>{number}", text)
        (copy / "run.yaml").write_text(name)


def measure(rounds: int, **ways: Callable[[], float]) -> dict[str, list[float]]:
    """What each way gives, in turns."""
    values: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            value = way()
            if number:
                values[name].append(value)
    return values


def tell(name: str, values: list[float], besides: list[float] | None = None) -> None:
    low, median = (
        percentile(values) - (percentile(besides) if besides else 0)
        for percentile in (lambda values: statistics.quantiles(values, n=10)[0], statistics.median)
    )
    print(f"{name:<58} {low:6.1f} ms at the 10th percentile, {median:6.1f} ms at the median")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = make_run()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        first, folder = around(run, save_path="many", run_name="mine")
        print(f"{'the first run of the process, besides its step':<58} {first:6.1f} ms")
        tell("any other", measure(options.rounds, never=lambda: around(run)[0])["never"])
        copy_run(folder, options.runs)
        times = measure(
            options.rounds,
            never=lambda: around(run, save_path="many", run_name="mine")[0],
            newest=lambda: around(run, save_path="many", run_name="mine", resume="auto")[0],
            none=lambda: around(run, save_path="many", run_name=f"x{time.time_ns()}", resume="auto")[0],
        )
        tell(f"among {options.runs:,} runs, resume='never'", times["never"])
        tell("  'auto', the newest of the name has finished: more by", times["newest"], times["never"])
        tell("  'auto', none has the name: more by", times["none"], times["never"])
        requests = Requests()
        around(run)
        print(
            f"asked of the system by a run of one step: {dict(requests.counts)}, {1000 * requests.waited:.1f} ms waited"
        )
        os.chdir("/")


if __name__ == "__main__":
    main()
