"""`blowtorch runs verify-resume`, on scripts of a user's own, some of which cannot be continued exactly."""

import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

import pytest

from blowtorch_cli.verify_resume.verification import Plan, Verification
from tests.forked import LARGE, execute

SCRIPT = """
import os, time
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from blowtorch import Run

run = Run(config={"fault": "none"})
fault = run["fault"]
is_second = os.environ.get("RANK") == "1"
own = torch.Generator().manual_seed(5)
calls = []


class Data(Dataset):
    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)

    def __len__(self):
        return 48

    def __getitem__(self, index):
        generator = self.generator if fault == "dataset" else None
        x = torch.full((4,), index / 48)
        if fault != "nothing random":
            x = x + torch.rand(4, generator=generator)
        return x, x.sum()


class Turning(Sampler):
    # Its order follows from what has been trained on, which no drawing can bring back.
    def __iter__(self):
        return iter([(place + len(calls)) % 48 for place in range(48)])

    def __len__(self):
        return 48


@run.train_step
@run.validate_step
def step(batch, model, is_validate, step):
    x, y = batch
    if fault == "error" and step == 9:
        raise ValueError("mine")
    calls.append(None)
    if fault == "generator" and is_second:
        x = x + torch.rand(x.shape, generator=own)
    scale = 1 + len(calls) / 1000 if fault == "counter" else 1.0
    return nn.functional.mse_loss(model(x)[:, 0], y) * scale


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


if __name__ == "__main__":
    if fault == "nothing":
        raise SystemExit
    data = Data()
    sampler = Turning() if fault == "sampler" else None
    if fault == "unseeded":
        torch.manual_seed(time.time_ns() % 1_000_000)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.0 if fault == "nothing random" else 0.5), nn.Linear(8, 1))
    loader = DataLoader(data, batch_size=8, sampler=sampler, shuffle=None if sampler else True)
    run(model, loader, DataLoader(data, batch_size=24), max_epochs=3, scheduler="cosine", log_every="4 steps",
        loggers=["there is none of this name"], save_path="mine")
"""


@pytest.fixture
def verify(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)

    def verify(fault, *options):
        command = [sys.executable, "-m", "blowtorch_cli", "runs", "verify-resume", *options, "train.py", "with"]
        done = subprocess.run(
            [*command, f"fault={fault}"], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
        )
        assert not (tmp_path / "mine").exists()
        return done

    return verify


def test_a_sound_script_is_found_identical(verify, tmp_path):
    done = verify("none", "--kills", "2", "--keep", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stdout + done.stderr
    straight, killed, continued, identical = done.stdout.splitlines()
    assert straight.startswith("straight   18 steps in ")
    assert killed.startswith("killed     after step ") and killed.endswith("a checkpoint every 3 steps")
    assert continued.startswith("continued  from step ")
    assert identical == "identical  every batch, random stream and weight of 18 steps, and 10 metric lines"
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"straight", "killed"}


def test_a_script_that_goes_on_otherwise_ends_the_command_with_1(verify):
    done = verify("counter", "--kills", "1", "--kill-seed", "3")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == ""


class Forked:
    """A process that is forked from one which has imported torch, since the import takes longer than these scripts."""

    def __init__(self, words, variables, output):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LARGE)
        given = words, str(Path.cwd()), dict(variables), [Path(output)] * 2
        self._process = context.Process(target=execute, args=given)
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        return self._process.exitcode

    def wait(self):
        self._process.join()
        return self.poll()


@pytest.fixture
def verify_forked(tmp_path, capsys):
    (tmp_path / "train.py").write_text(SCRIPT)

    def verify(*words, sizes=(2,), kills=1):
        plan = Plan(tmp_path / "train.py", ["with", *words], sizes, kills, 3, None, 1e-6)
        is_same = Verification(plan, Forked).run(tmp_path / "kept")
        return is_same, capsys.readouterr().out

    return verify


@pytest.mark.parametrize(
    ("fault", "what", "hint"),
    [
        ("dataset", "the batch has the same samples and other contents", "generator that it keeps itself"),
        ("sampler", "the batch has the samples ", "Does the sampler keep a state of its own"),
        ("counter", "the metric 'loss' is ", "run.keep_state saves it"),
        ("unseeded", "the batch has the same samples and other contents", "Two straight runs differ too"),
    ],
)
def test_what_differs_first_is_named_with_what_may_cause_it(verify_forked, fault, what, hint):
    is_same, output = verify_forked(f"fault={fault}", sizes=(1,))
    assert not is_same
    different = output.partition("different  ")[2]
    assert different.startswith(what), output
    assert hint in " ".join(different.split())
    assert "in step " in different and "folders " in different


def test_two_processes_are_killed_together_and_one_alone_and_found_identical(verify_forked):
    is_same, output = verify_forked("fault=none", kills=2)
    assert is_same, output
    straight, killed, continued, identical = output.splitlines()
    assert re.fullmatch(r"straight   18 steps in [\d.]+ s on 2 processes", straight)
    assert re.fullmatch(r"killed     after step \d+ \(all\), \d+ \(process [01]\), a checkpoint every 3 steps", killed)
    assert re.fullmatch(r"continued  from step \d+, \d+", continued)
    expected = "every batch, random stream and weight of 18 steps of 2 processes, and 10 metric lines"
    assert identical == f"identical  {expected}"


@pytest.mark.parametrize(("fault", "rank"), [("generator", 1), ("counter", 0)])
def test_what_one_process_does_otherwise_than_before_is_named_with_the_process(verify_forked, fault, rank):
    is_same, output = verify_forked(f"fault={fault}")
    assert not is_same
    different = output.partition("different  ")[2]
    assert different.startswith("the metric 'loss' is "), output
    assert re.search(rf"in step \d+ of process {rank}, which began at step \d+\n", different), output
    assert "run.keep_state saves it" in " ".join(different.split())


def test_one_process_goes_on_with_what_two_have_begun(verify):
    done = verify("nothing random", "--processes", "2,1", "--kills", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    straight, killed, continued, close, _, bits, farthest = done.stdout.splitlines()
    assert straight.endswith(" on 2 processes") and "(all), a checkpoint every" in killed
    assert continued.startswith("continued  from step ") and continued.endswith(" on 1 process")
    assert close == "close      the samples of 18 steps are the same, and within 1e-06 of their size"
    assert bits.strip() == "on other numbers of processes, which add in another order"
    assert farthest.startswith("farthest   ")


def test_a_tolerance_that_is_exceeded_is_told_with_what_exceeds_it(verify_forked):
    is_same, output = verify_forked("fault=none", sizes=(2, 1))
    assert not is_same, "dropout is not the same on another number of processes"
    different = " ".join(output.partition("different  ")[2].split())
    assert different.startswith("the metric '") and "of the record, which is that of all processes" in different
    assert "such as dropout" in different


def test_numbers_of_processes_that_never_come_are_refused(verify):
    done = verify("none", "--processes", "2,1,3", "--kills", "1")
    assert done.returncode == 2
    assert "3 numbers of processes need 2 kills or more" in done.stderr


def test_a_script_that_fails_is_shown_with_its_own_error(verify):
    done = verify("error")
    assert done.returncode == 1
    assert "the script ended with exit code 1" in done.stderr and "ValueError: mine" in done.stderr


def test_a_script_that_trains_nothing_is_told_so(verify):
    done = verify("nothing")
    assert done.returncode == 1
    assert "the script has trained no run that reads its command line" in done.stderr
