"""Everything that a GPU can show, checked and measured in eight minutes at most.

    python benchmarks/gpu.py [--device cuda] [--short] [--only correctness speed] [--into gpu-report]

Nothing need be installed but what the core depends on; the checkout that this file stands in is what is checked. Each
part runs in a process of its own, so that one that fails, or leaves the device unusable, costs no other; within a part
the same holds for each row. Whenever there is one row more, `report.json` and `report.md` are written, so what was
found is there whatever comes. It ends with 1 where a check fails. `--device cpu` does everything but the figures, with
`--short` in the time that a test may take.

What is measured is said in the parts themselves, in `on_device/`. Speeds are medians over rounds in which the
contestants take turns in one process.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import signal
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
PARTS = {  # by name: the module, its function, and the most seconds that it may take; what matters most comes first
    "correctness": ("correctness", "compare_with_loops_by_hand", 90),
    "batches": ("correctness", "compare_what_arrives", 40),
    "evaluation": ("correctness", "measure_and_predict", 30),
    "checkpoints": ("memory", "check_copies", 50),
    "waits": ("waiting", "count_waits", 70),
    "ahead": ("waiting", "hold_up_the_device", 40),
    "kills": ("kills", "kill_and_continue", 100),
    "speed": ("speed", "tokens_per_second", 100),
    "prefetch": ("prefetch", "gain_of_fetching_ahead", 40),
    "search": ("memory", "search_batch_size", 40),
    "share": ("waiting", "share_of_waiting", 60),
    "large": ("large", "time_a_large_checkpoint", 100),
    "compiled": ("correctness", "compare_compiled", 150),
}
MOST_SECONDS = 470.0
LEAST_SECONDS = 10.0  # in which a part can do anything


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--short", action="store_true", help="do as little as shows that everything works")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--into", type=Path, default=Path("gpu-report"), help="folder of the report")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with found_as_if_installed():
        if options.part:
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
    """Run one part in this process, and write its rows as lines of JSON."""
    import importlib

    import torch

    from benchmarks.on_device import Setting

    module, function, _ = PARTS[options.part]
    part = getattr(importlib.import_module(f"benchmarks.on_device.{module}"), function)
    with options.rows.open("a") as rows:
        for row in part(Setting(torch.device(options.device), options.short)):
            rows.write(json.dumps(dataclasses.asdict(row)) + "\n")
            rows.flush()


def run_all(options: argparse.Namespace) -> int:
    """Run the parts one after the other, and report; return 1 where a check fails."""
    options.into.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    report: dict[str, Any] = {"device": describe_device(options.device), "parts": {}, "seconds": 0.0, "took": {}}
    print(report["device"], flush=True)
    for name in options.only:
        started = time.monotonic()
        most, left = PARTS[name][2] * (2 if options.short else 1), MOST_SECONDS - (started - begin)
        if left < LEAST_SECONDS and not options.short:
            report["parts"][name] = [{"what": f"part {name}", "value": "no time left", "wanted": "", "is_right": None}]
        else:
            for rows in rows_of(name, options, most if options.short else min(most, left)):
                report["parts"][name] = rows
                report["seconds"] = round(time.monotonic() - begin, 1)
                report["took"][name] = round(time.monotonic() - started, 1)
                write(report, options.into)
        write(report, options.into)
        print(table_of(name, report), flush=True)
    failed = [row for rows in report["parts"].values() for row in rows if row["is_right"] is False]
    print(f"{len(failed)} checks failed; {options.into / 'report.md'}, {report['seconds']} s")
    return 1 if failed else 0


def rows_of(name: str, options: argparse.Namespace, seconds: float) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of a part whenever there are more; the last says how it ended, where that was not well."""
    with tempfile.TemporaryDirectory() as folder:
        path, said = Path(folder) / "rows", Path(folder) / "said"
        path.touch()
        command = [sys.executable, __file__, "--part", name, "--device", options.device, "--rows", str(path)]
        command += ["--short"] if options.short else []
        with said.open("w") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
            )
        end, is_late, rows = time.monotonic() + seconds, False, []
        while process.poll() is None:
            time.sleep(0.2)
            if time.monotonic() > end and not is_late:
                is_late = True
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started, which may hold the device
            if len(written := read_rows(path)) > len(rows):
                rows = written
                yield rows
        rows = read_rows(path)
        if is_late or process.returncode:
            reason = f"killed after {seconds:.0f} s. " if is_late else f"ended with {process.returncode}. "
            reason += said.read_text(errors="replace")[-1500:]
            rows.append({"what": f"part {name}", "value": reason, "wanted": "to end well", "is_right": False})
        yield rows


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows that a part has written so far, without one that is not whole yet."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def environment() -> dict[str, str]:
    """The environment of a part: cuBLAS is asked for one result per sum, and what is said comes at once."""
    fixed = {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return {**os.environ, **fixed}


def describe_device(device: str) -> dict[str, str]:
    """What the figures were taken on, as far as this machine tells."""
    import torch

    known = {"device": device, "torch": torch.__version__, "python": platform.python_version()}
    known["cores"] = str(os.cpu_count())
    for package in ("triton", "accelerate", "lightning"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[package] = importlib.metadata.version(package)
    if device.startswith("cuda"):
        try:
            properties = torch.cuda.get_device_properties(device)
            known |= {"name": properties.name, "memory": f"{properties.total_memory / 2**30:.0f} GiB"}
            known |= {"capability": f"{properties.major}.{properties.minor}", "cuda": str(torch.version.cuda)}
            known |= {"cudnn": str(torch.backends.cudnn.version()), "devices": str(torch.cuda.device_count())}
        except (RuntimeError, AssertionError) as error:
            known["problem"] = str(error).partition("\n")[0]
    return known


def table_of(name: str, report: dict[str, Any]) -> str:
    """The rows of a part as a table in Markdown."""
    signs = {True: "yes", False: "**NO**", None: ""}
    lines = [f"## {name}", "", f"{report['took'].get(name, 0.0)} s", ""]
    lines += ["| what | found | wanted | |", "|---|---|---|---|"]
    for row in report["parts"][name]:
        value = row["value"].replace("\n", " ").replace("|", "/")
        lines.append(f"| {row['what']} | {value} | {row['wanted']} | {signs[row['is_right']]} |")
    return "\n".join(lines) + "\n"


def write(report: dict[str, Any], folder: Path) -> None:
    """Write the report, for programs and for people."""
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    head = ", ".join(f"{name} {value}" for name, value in report["device"].items())
    tables = [table_of(name, report) for name in report["parts"]]
    (folder / "report.md").write_text(
        "\n".join([f"# What the device shows\n\n{head}; {report['seconds']} s\n", *tables])
    )


if __name__ == "__main__":
    sys.exit(main())
