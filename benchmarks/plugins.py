"""What installed packages cost: the listing of many, and the discovery and creation of those that a run names.

    python benchmarks/plugins.py [--rounds 20]

Everything is measured side by side in one call, and printed as medians with the fastest beside them, in milliseconds:
of whole processes, which do nothing, import blowtorch or list what is installed; and of the first look at what is
installed, with the creation of three extensions, in a process that has torch already.
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
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site or ""), os.environ.get("PYTHONPATH"))))
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)
    return 1000 * (time.perf_counter() - begin), done.stdout


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    listing = ["-c", "from blowtorch_cli.entry import main; main()", "plugins", "list"]
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        many, more = Path(folder, "200"), Path(folder, "300")
        for site in (many, more):
            site.mkdir()
            write_packages(site, int(site.name))
        processes: list[tuple[str, list[str], Path | None]] = [
            ("a process that does nothing", ["-c", "pass"], None),
            ("import blowtorch", ["-c", "import blowtorch"], None),
            ("plugins list, nothing added", listing, None),
            ("plugins list among 200 packages", listing, many),
        ]
        for _ in range(options.rounds):
            for name, command, path in processes:
                times.setdefault(name, []).append(measure(command, path)[0])
            for name, path in (("nothing added", None), ("among 300 packages", more)):
                code = CREATION if path else CREATION.replace('"logger", "fake1"', '"logger", "tensorboard"')
                printed = float(measure(["-c", code], path)[1])
                times.setdefault(f"finding and making three extensions, {name}", []).append(printed)
    for name, values in times.items():
        print(f"{name:<58} {statistics.median(values):7.1f} ms, {min(values):7.1f} ms at best")


if __name__ == "__main__":
    main()
