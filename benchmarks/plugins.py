"""What installed packages cost: the listing of many, and the discovery and creation of those that a run names.

    python benchmarks/plugins.py [--packages 300] [--rounds 20]

Everything is measured side by side in one call, and printed as medians: milliseconds of a process that lists the
packages and of one that does nothing, and of the first look at what is installed in a process that has torch already.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CREATION = """
import time, torch
from blowtorch.plugins import Plugins
begin = time.perf_counter()
plugins = Plugins()
plugins.create("logger", "fake1"), plugins.create("checkpoint-backend", "local"), plugins.create("scheduler", "cosine")
print(1000 * (time.perf_counter() - begin))
"""
LOGGER = """
from blowtorch import hookimpl

class Fake:
    @hookimpl
    def log_metrics(self, metrics, step):
        pass
"""


def write_packages(site: Path, count: int) -> None:
    """Metadata of packages with a logger each; the module of the first four of five can be imported."""
    for number in range(count):
        info = site / f"fake_{number}-1.0.dist-info"
        info.mkdir()
        requirement = "Requires-Dist: blowtorch-core>=0.1,<0.2\n"
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fake-{number}\nVersion: 1.0\n{requirement}")
        (info / "entry_points.txt").write_text(f"[blowtorch.loggers]\nfake{number} = fake_{number}:Fake\n")
        (site / f"fake_{number}.py").write_text("raise SystemExit(1)" if number % 5 == 0 else LOGGER)


def measure(command: list[str], site: Path | None) -> tuple[float, str]:
    """Milliseconds of a process from start to end, and what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(site or "")
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)
    return 1000 * (time.perf_counter() - begin), done.stdout


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--packages", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    listing = ["-c", "from blowtorch_cli.entry import main; main()", "plugins", "list"]
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        write_packages(site, options.packages)
        times: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for name, command, path in (
                ("python that does nothing", ["-c", "pass"], None),
                ("plugins list, nothing added", listing, None),
                (f"plugins list, {options.packages} packages added", listing, site),
            ):
                times.setdefault(name, []).append(measure(command, path)[0])
            for name, path in (("nothing", None), (f"{options.packages} packages", site)):
                code = CREATION if path else CREATION.replace('"logger", "fake1"', '"logger", "tensorboard"')
                printed = float(measure(["-c", code], path)[1])
                times.setdefault(f"discovery and creation of three, {name} added", []).append(printed)
    empty = statistics.median(times["python that does nothing"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:<55} {median:7.1f} ms  {median / empty:5.2f} of an empty process")


if __name__ == "__main__":
    main()
