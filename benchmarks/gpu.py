"""Everything that a GPU can show, checked and measured in a few minutes.

    python benchmarks/gpu.py [--device cuda] [--short] [--only correctness speed] [--into gpu-report]

Nothing need be installed but what the core depends on; the checkout that this file stands in is what is checked. Each
part runs in a process of its own, so that one that fails, or leaves the device unusable, costs no other. After each
row `report.json` and `report.md` are written, so what was found is there whatever comes. It ends with 1 where a check
fails. `--device cpu` does everything but the figures, with `--short` in the time that a test may take.

What is measured is said in the parts themselves, in `on_device/`. Speeds are medians over rounds in which the
contestants take turns in one process.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "blowtorch-core"
PARTS = {  # by name: the module, its function, and the most seconds that it may take
    "correctness": ("correctness", "compare_with_loops_by_hand", 150),
    "batches": ("correctness", "compare_what_arrives", 40),
    "evaluation": ("correctness", "measure_and_predict", 30),
    "checkpoints": ("memory", "check_copies", 40),
    "waits": ("waiting", "count_waits", 40),
    "ahead": ("waiting", "hold_up_the_device", 30),
    "speed": ("speed", "tokens_per_second", 100),
    "prefetch": ("speed", "gain_of_fetching_ahead", 40),
    "large": ("memory", "time_a_large_checkpoint", 90),
    "search": ("memory", "search_batch_size", 40),
    "share": ("waiting", "share_of_waiting", 40),
    "kills": ("correctness", "kill_and_continue", 150),
}
MOST_SECONDS = 470.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--short", action="store_true", help="do as little as shows that everything works")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--into", type=Path, default=Path("gpu-report"), help="folder of the report")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--killed-part", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with found_as_if_installed():
        if options.part or options.killed_part:
            run_part(options)
            return 0
        return run_all(options)


@contextlib.contextmanager
def found_as_if_installed() -> Iterator[None]:
    """Have the core of this checkout imported, and its entry points found, though nothing is installed."""
    project = tomllib.loads((CORE / "pyproject.toml").read_text())["project"]
    with tempfile.TemporaryDirectory() as folder:
        info = Path(folder) / f"blowtorch_core-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: blowtorch-core\nVersion: {project['version']}\n")
        lines = []
        for group, entries in project["entry-points"].items():
            lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        sys.path[:0] = [str(ROOT), str(CORE / "src"), folder]
        yield


def run_part(options: argparse.Namespace) -> None:
    """Run one part in this process, and print its rows as lines of JSON."""
    import importlib

    import torch

    from benchmarks.on_device import Setting

    setting = Setting(torch.device(options.device), options.short)
    if options.killed_part:
        from benchmarks.on_device.correctness import train_to_be_killed

        train_to_be_killed(setting, options.killed_part)
        return
    module, function, _ = PARTS[options.part]
    for row in getattr(importlib.import_module(f"benchmarks.on_device.{module}"), function)(setting):
        print(json.dumps(dataclasses.asdict(row)), flush=True)


def run_all(options: argparse.Namespace) -> int:
    """Run the parts one after the other, and report; return 1 where a check fails."""
    options.into.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"device": describe_device(options.device), "parts": {}}
    begin = time.perf_counter()
    for name in options.only:
        seconds = min(PARTS[name][2], MOST_SECONDS - (time.perf_counter() - begin)) * (1 if not options.short else 2)
        for rows in rows_of(name, options, seconds):
            report["parts"][name] = rows
            report["seconds"] = round(time.perf_counter() - begin, 1)
            write(report, options.into)
        print(table_of(name, report["parts"][name]), flush=True)
    failed = [row for rows in report["parts"].values() for row in rows if row["is_right"] is False]
    print(f"{len(failed)} checks failed; {options.into / 'report.md'}, {report['seconds']} s")
    return 1 if failed else 0


def rows_of(name: str, options: argparse.Namespace, seconds: float) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of a part whenever there is one more."""
    command = [sys.executable, __file__, "--part", name, "--device", options.device]
    command += ["--short"] if options.short else []
    rows: list[dict[str, Any]] = []
    end = time.monotonic() + seconds
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=said, stderr=errors, env=environment())
        has_ended = False
        while not has_ended:
            time.sleep(0.1)
            has_ended = process.poll() is not None
            said.seek(0)
            *lines, _ = said.read().split("\n")  # the last one is not whole yet
            rows = [json.loads(line) for line in lines if line.startswith("{")]
            yield rows
            if time.monotonic() > end:
                process.kill()
        if process.returncode:
            errors.seek(0)
            reason = f"killed after {seconds:.0f} s" if process.returncode == -9 else errors.read()[-1500:]
            rows.append({"what": f"part {name}", "value": reason, "wanted": "to end well", "is_right": False})
            yield rows


def environment() -> dict[str, str]:
    """The environment of a part: what it prints is read line by line."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}


def describe_device(device: str) -> dict[str, str]:
    """What the figures were taken on."""
    import torch

    known = {"device": device, "torch": torch.__version__, "python": platform.python_version()}
    if device.startswith("cuda") and torch.cuda.is_available():
        known |= {"name": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    return known


def table_of(name: str, rows: list[dict[str, Any]]) -> str:
    """The rows of a part as a table in Markdown."""
    signs = {True: "yes", False: "**NO**", None: ""}
    lines = [f"## {name}", "", "| what | found | wanted | |", "|---|---|---|---|"]
    for row in rows:
        value = row["value"].replace("\n", " ").replace("|", "/")
        lines.append(f"| {row['what']} | {value} | {row['wanted']} | {signs[row['is_right']]} |")
    return "\n".join(lines) + "\n"


def write(report: dict[str, Any], folder: Path) -> None:
    """Write the report, for programs and for people."""
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    head = ", ".join(f"{name} {value}" for name, value in report["device"].items())
    tables = [table_of(name, rows) for name, rows in report["parts"].items()]
    (folder / "report.md").write_text(
        "\n".join([f"# What the device shows\n\n{head}; {report['seconds']} s\n", *tables])
    )


if __name__ == "__main__":
    sys.exit(main())
