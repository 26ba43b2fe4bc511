"""The check of a GPU does on a CPU all that a CPU can show, so that it is ready when a device is there."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import PARTS
from benchmarks.on_device import Setting, correctness, large, memory, waiting
from tests.core.stand_in import Gpus

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
BY_THEMSELVES = ["batches", "kills"]  # the others in the process of the tests, which has its imports already
FIGURES = {"waits", "ahead", "speed", "prefetch", "large", "search", "share"}  # of which a CPU shows little or nothing


def test_the_check_of_a_device_runs_by_itself_and_finds_nothing_wrong(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--short", "--into", str(tmp_path)]
    command += ["--only", *BY_THEMSELVES]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert list(parts) == BY_THEMSELVES
    for name, rows in parts.items():
        assert any(row["is_right"] for row in rows), name
    report = (tmp_path / "report.md").read_text()
    assert all(row["what"] in report for rows in parts.values() for row in rows)


@pytest.mark.parametrize("name", [name for name in PARTS if name not in BY_THEMSELVES])
def test_a_part_finds_nothing_wrong_on_a_cpu(name):
    module, function, _ = PARTS[name]
    part = getattr(importlib.import_module(f"benchmarks.on_device.{module}"), function)
    rows = list(part(Setting(torch.device("cpu"), is_short=True)))
    assert rows and [row for row in rows if row.is_right is False] == []
    assert name in FIGURES or any(row.is_right for row in rows)


def test_a_part_that_fails_costs_no_other_and_is_told_in_the_end(tmp_path):
    command = [sys.executable, str(SCRIPT), "--device", "nonsense", "--short", "--into", str(tmp_path)]
    command += ["--only", "evaluation", "batches"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    parts = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert [[row["is_right"] for row in rows] for rows in parts.values()] == [[False], [False]]
    assert "2 checks failed" in done.stdout


@pytest.mark.parametrize(
    "part",
    [
        correctness.compare_what_arrives,
        memory.check_copies,
        waiting.hold_up_the_device,
        large.time_a_large_checkpoint,
    ],
    ids=lambda part: part.__name__,
)
def test_what_only_a_device_of_cuda_is_asked_for_works_on_the_stand_in_for_two(part, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**40, 2**40))
    with Gpus(slow="computations"):
        rows = list(part(Setting(torch.device("cuda"), is_short=True)))
    assert rows
    assert [row for row in rows if row.is_right is False or "not on this device" in row.value] == []
