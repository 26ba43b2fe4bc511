"""Streams that are no whole ones: whatever stands in the place of standard output and error, the run goes on."""

import io
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

from blowtorch import BlowtorchWarning


class Tee:
    """What a script writes to a log file with: it has two methods and no more."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


class Mute:
    """It has no `flush` either."""

    def write(self, text):
        pass


class Unencoded(Tee):
    encoding = None

    def isatty(self):
        return None


class Raising:
    def __init__(self, error, is_terminal=False):
        self.error = error
        self.is_terminal = is_terminal

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error

    def isatty(self):
        if self.is_terminal:
            return True
        raise self.error


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = {
    "none": lambda: None,
    "closed": closed,
    "tee": Tee,
    "tee without flush": Mute,
    "tee without encoding": Unencoded,
    "pipe without a reader": lambda: Raising(BrokenPipeError(32, "Broken pipe")),
    "terminal that is gone": lambda: Raising(OSError(5, "Input/output error"), is_terminal=True),
    "raising anything": lambda: Raising(ZeroDivisionError("on purpose")),
}


@pytest.mark.parametrize("callbacks", [[], ["progress_bar"]], ids=["console", "bar"])
@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_the_run_goes_on_and_its_log_has_every_line(make_run, net, loader, monkeypatch, make, callbacks):
    monkeypatch.setattr(sys, "stdout", make())
    monkeypatch.setattr(sys, "stderr", make())
    result = make_run()(net, loader, loader, max_epochs=2, callbacks=callbacks, save_path="runs")
    monkeypatch.undo()
    assert result.status == "finished"
    lines = (result.folder / "console.log").read_text().splitlines()
    assert [word for line in lines for word in line.split() if word in ("begins", "finished")] == ["begins", "finished"]
    assert sum("train_epoch/loss" in line for line in lines) == 2


def test_a_tee_is_given_the_lines(make_run, net, loader, monkeypatch):
    tee = Tee()
    monkeypatch.setattr(sys, "stdout", tee)
    make_run(validates=False)(net, loader, max_epochs=1)
    assert "begins" in tee.text and "finished" in tee.text


def test_a_stream_that_breaks_while_a_bar_is_there_costs_the_bar_alone(make_run, net, loader, monkeypatch):
    class Breaking(io.StringIO):
        is_broken = False

        def write(self, text):
            if self.is_broken:
                raise OSError(5, "Input/output error")
            return super().write(text)

        def isatty(self):
            return True

    stream, run = Breaking(), make_run()
    monkeypatch.setattr(sys, "stderr", stream)

    @run.on("train_step_end")
    def close_the_terminal(state):
        stream.is_broken = state.step >= 3

    assert run(net, loader, loader, max_epochs=2).status == "finished"
    assert "epoch 1/2" in stream.getvalue()


def test_a_warning_that_nobody_can_read_is_in_the_log(tmp_path):
    """In a process of its own, since pytest takes all warnings for itself."""
    script = """
        import sys, torch
        from blowtorch import Run
        from tests.core.builtin.test_other_streams import STREAMS
        before = sys.stderr
        for name, make in STREAMS.items():
            run = Run(random_seed=0, command_line=[])
            run.train_step(lambda batch, model: model(batch).mean())
            run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
            run.on("epoch_end")(lambda state: state.warn("mind the gap"))
            sys.stderr = make()
            result = run(torch.nn.Linear(1, 1), [torch.ones(1, 1)], progress=False)
            sys.stderr = before
            print(name, result.status, "warning: mind the gap" in (result.folder / "console.log").read_text())
    """
    command = [sys.executable, "-W", "always", "-c", textwrap.dedent(script)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.stdout.splitlines() == [f"{name} finished True" for name in STREAMS], done.stderr


def test_a_warning_that_is_made_an_error_is_one(make_run, net, loader):
    run = make_run(validates=False)
    run.on("epoch_end")(lambda state: state.warn("mind the gap"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BlowtorchWarning, match="mind the gap"):
            run(net, loader, max_epochs=1, progress=False)
