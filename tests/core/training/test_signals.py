"""Signals from outside: they end a run truly or not at all, also when they come to its whole group of processes."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from blowtorch import find_runs, open_run
from tests import forked
from tests.core.small_runs import QUIET
from tests.forked import Forked

SCRIPT = """
import sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from blowtorch import Run

run = Run(random_seed=1)
kind = sys.argv[1]

class Slow(Dataset):
    def __len__(self):
        return 4000
    def __getitem__(self, index):
        time.sleep(0.02)
        return torch.ones(4)

class SlowStream(IterableDataset):
    def __iter__(self):
        for _ in range(4000):
            time.sleep(0.02)
            yield torch.ones(4)

class WithState(SlowStream):
    def state_dict(self):
        return {}
    def load_state_dict(self, state):
        pass

class LoaderWithState(DataLoader):
    def state_dict(self):
        return {}
    def load_state_dict(self, state):
        pass

@run.train_step
def step(batch, model, step):
    if step == 2:
        print("READY", flush=True)
    return model(batch).square().mean()

@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)

if __name__ == "__main__":
    dataset = {"map": Slow, "stream": SlowStream, "state": WithState}[kind]()
    make = LoaderWithState if kind == "state" else DataLoader
    loader = make(dataset, 4, num_workers=2, multiprocessing_context=sys.argv[2])
    result = run(nn.Linear(4, 1), loader, max_epochs=1, progress=False)
    print("RESULT", result.status, flush=True)
"""


@pytest.mark.parametrize(
    ("number", "kind", "context"),
    [
        (signal.SIGTERM, "map", "fork"),
        (signal.SIGINT, "map", "fork"),
        (signal.SIGHUP, "map", "fork"),
        (signal.SIGTERM, "stream", "fork"),
        (signal.SIGTERM, "state", "fork"),
        (signal.SIGTERM, "map", "spawn"),
    ],
)
def test_a_signal_to_the_whole_group_stops_the_run_with_a_checkpoint(tmp_path, number, kind, context):
    Path("train.py").write_text(SCRIPT)
    process = Forked("train.py", kind, context)
    process.wait_for("READY")
    os.killpg(process.pid, number)
    output, problem = process.communicate(timeout=60)
    assert process.returncode == 0, output + problem
    assert "RESULT stopped" in output
    (view,) = find_runs()
    assert view.status == "stopped" and len(view.checkpoints) == 1


def test_a_signal_while_metrics_are_recorded_stops_the_run_after_that_very_step(make_run, net, loader, monkeypatch):
    """The record is written in the middle of an epoch, where nothing else is due."""
    encode = json.JSONEncoder.encode

    def interrupted(self, event):
        if done and done[-1] in range(2, 8) and not heard:
            heard.append(done[-1])
            os.kill(os.getpid(), signal.SIGTERM)
        return encode(self, event)

    run, done, heard = make_run(validates=False), [], []

    @run.on("train_step_end")
    def wait(step):
        done.append(step)
        if step == 3:
            time.sleep(0.3)  # so that what is recorded next is written at once

    monkeypatch.setattr(json.JSONEncoder, "encode", interrupted)
    result = run(net, loader, log_every="1 steps", **QUIET)
    assert result.status == "stopped" and heard == [result.step]


def test_a_terminal_that_is_closed_stops_the_run_unless_it_is_to_go_on(make_run, net, loader):
    run, before = make_run(validates=False), signal.getsignal(signal.SIGHUP)
    run.on("train_step_end")(lambda state: state.step == 5 and os.kill(os.getpid(), signal.SIGHUP))
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        result = run(net, loader, max_epochs=3, **QUIET)
        assert (result.status, result.step) == ("stopped", 5)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert run(net, loader, max_epochs=3, **QUIET).status == "finished"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_is_one_whatever_came_between(make_run, net, loader):
    run = make_run(validates=False)

    @run.on("train_step_end")
    def interrupt():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        run(net, loader, **QUIET)
    assert [view.status for view in find_runs()] == ["stopped"]


def test_a_child_that_the_script_has_forked_is_ended_by_a_signal(make_run, net, loader):
    """It is not the run, so nothing would ever look at a flag there."""
    run, ended = make_run(validates=False), []

    @run.on("train_step_end")
    def fork(state):
        if state.step == 2:
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(writer, b"x")
                time.sleep(60)
                os._exit(0)
            os.read(reader, 1)
            os.kill(child, signal.SIGTERM)
            ended.append(os.waitpid(child, 0)[1])

    assert run(net, loader, max_epochs=1, **QUIET).status == "finished"
    assert os.WTERMSIG(ended[0]) == signal.SIGTERM


def test_durations_are_true_while_the_clock_is_frozen(make_run, net, loader, monkeypatch):
    run, seconds = make_run(validates=False), []
    run.on("train_step_end")(lambda state: seconds.append(state.seconds))
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: 1e9)
    result = run(net, loader, max_epochs=1, **QUIET)
    monkeypatch.undo()
    assert result.status == "finished"
    assert seconds == sorted(seconds) and 0 < seconds[0] < seconds[-1] < 600


def test_a_module_that_raises_when_it_is_looked_at_costs_no_run(make_run, loader, monkeypatch):
    import types

    from torch import nn

    class Lazy(types.ModuleType):
        def __getattribute__(self, name):
            raise ImportError("it is not installed")

    class Shy(nn.Linear):
        def extra_repr(self):
            raise ZeroDivisionError("on purpose")

    Path("train.py").write_text("")
    monkeypatch.setattr(sys, "argv", [str(Path("train.py").absolute())])
    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    result = make_run(validates=False)(Shy(4, 1), loader, max_epochs=1, **QUIET)
    assert result.status == "finished" and open_run(result.folder).status == "finished"
    assert (result.folder / "model.txt").read_text().startswith("Shy")


def test_a_worker_whose_main_process_is_gone_is_ended_by_a_signal(tmp_path):
    script = """
        import os, signal, sys, time
        from blowtorch.data.workers import leave_signals_to_main_process
        if os.fork() == 0:
            leave_signals_to_main_process()
            os.kill(os.getpid(), signal.SIGTERM)
            print("goes on", os.getpid(), flush=True)
            time.sleep(60)
        time.sleep(1)
        os._exit(0)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline().split()[-1])
        process.wait(20)
        os.kill(worker, signal.SIGTERM)
        assert process.stdout.read() == ""  # which ends with the last process that could write


AMID_FILES = """
import signal, sys
import torch
from blowtorch import Run

run = Run(random_seed=1)
wanted, name = int(sys.argv[1]), sys.argv[2]
written = []

def look(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("run.yaml"):
        written.append(event)
        if len(written) == wanted:
            signal.raise_signal(getattr(signal, name))

sys.addaudithook(look)
run.train_step(lambda batch, model: model(batch).square().mean())
run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
result = run(torch.nn.Linear(4, 1), list(torch.ones(3, 2, 4)), resume="auto", progress=False)
print("RESULT", result.status, result.step, flush=True)
"""


@pytest.mark.parametrize(
    ("wanted", "ends", "name"),
    [
        pytest.param(1, ["stopped 0", "finished 3"], "SIGTERM", id="the folder is claimed"),
        pytest.param(2, ["stopped 0", "finished 3"], "SIGINT", id="the run begins"),
        pytest.param(3, ["finished 3", "finished 3"], "SIGTERM", id="the end is noted"),
    ],
)
def test_a_signal_while_it_is_written_what_becomes_of_a_run_leaves_nothing_untrue(tmp_path, wanted, ends, name):
    Path("train.py").write_text(AMID_FILES)
    for number, end in zip((wanted, 0), ends, strict=True):
        done = forked.run("train.py", number, name, timeout=60)
        assert (done.returncode, done.stdout) == (0, f"RESULT {end}\n"), done.stderr
        assert find_runs()[0].status == end.split()[0]
