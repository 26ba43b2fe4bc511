"""The bar, its numbers, and what is left on a terminal when it is gone."""

import contextlib
import fcntl
import io
import math
import os
import re
import struct
import subprocess
import sys
import termios
import time
import types
from typing import Any

import pytest

from blowtorch import OptionError
from blowtorch.builtin.progress_bar import ProgressBar

COLUMNS = 110
WIDE = 160  # no line of a run is broken


class Screen:
    """What a terminal shows after it was sent some text; it knows the few codes that a bar is drawn with."""

    def __init__(self, text, columns=WIDE):
        self.rows, self.row, self.column = [""], 0, 0
        for code, arguments, kind, character in re.findall(r"(\x1b\[([\d;]*)([A-Za-z]))|(.)", text, re.DOTALL):
            if code:
                self._obey(kind, int(arguments or 1))
            elif character == "\r":
                self.column = 0
            elif character == "\n":
                self._go_to(self.row + 1)
            else:
                if self.column == columns:
                    self._go_to(self.row + 1)
                    self.column = 0
                row = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = row[: self.column] + character + row[self.column + 1 :]
                self.column += 1
        self.lines = [row.rstrip() for row in self.rows]

    def _obey(self, kind, number):
        if kind == "A":
            self._go_to(max(0, self.row - number))
        elif kind == "D":
            self.column = max(0, self.column - number)
        else:
            assert kind == "m", f"the terminal was sent a code {kind!r}"

    def _go_to(self, row):
        self.row = row
        while len(self.rows) <= row:
            self.rows.append("")


class Terminal:
    """A terminal of so many columns, which a test writes its standard error to."""

    def __init__(self, columns):
        self.master, slave = os.openpty()
        os.set_blocking(self.master, False)
        self.stream = os.fdopen(slave, "w")
        self.text = ""
        self.resize(columns)

    def resize(self, columns):
        fcntl.ioctl(self.stream, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def lines(self):
        with contextlib.suppress(BlockingIOError):
            while True:
                self.text += os.read(self.master, 65536).decode()
        return Screen(self.text).lines

    def close(self):
        self.stream.close()
        os.close(self.master)


@pytest.fixture
def terminal():
    terminal = Terminal(COLUMNS)
    yield terminal
    terminal.close()


@pytest.fixture
def begin(terminal, monkeypatch):
    """Begins the bar of an epoch on the terminal, which standard output goes to as well."""
    bars = []

    def begin(state, **options):
        monkeypatch.setattr(sys, "stdout", terminal.stream)
        monkeypatch.setattr(sys, "stderr", terminal.stream)
        bar = ProgressBar(**options)
        bar.epoch_start(state)
        bars.append(bar)
        return bar

    yield begin
    for bar in bars:
        bar.run_end()


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands unless it is moved."""
    clock = types.SimpleNamespace(now=1.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def state():
    return types.SimpleNamespace(
        step=0, epoch=1, batch=0, steps_per_epoch=8, total_steps=16, max_epochs=2, metrics={"train/loss": 0.4123}
    )


def train(bar, state, clock, steps, seconds=0.0):
    for _ in range(steps):
        state.step, state.batch, clock.now = state.step + 1, state.batch + 1, clock.now + seconds
        bar.train_step_end(state)


def test_a_bar_shows_epoch_steps_and_metrics(begin, terminal, state, clock):
    bar = begin(state)
    assert terminal.lines()[0].startswith("epoch 1/2:   0%|")
    train(bar, state, clock, 4, seconds=1.0)
    [line] = terminal.lines()
    assert line.startswith("epoch 1/2:  50%|") and "| 4/8 [" in line and line.endswith(", train/loss 0.4123]")


@pytest.mark.parametrize("end", ["epoch_end", "run_end"])
def test_nothing_is_left_of_it(begin, terminal, state, clock, end):
    bar = begin(state)
    train(bar, state, clock, 3, seconds=1.0)
    getattr(bar, end)()
    assert terminal.lines() == [""]


def test_it_is_drawn_now_and_then_and_at_the_last_step(begin, terminal, state, clock):
    state.steps_per_epoch = state.total_steps = 1000
    bar = begin(state)
    terminal.lines()
    drawn = terminal.text.count("\r")
    train(bar, state, clock, 999, seconds=0.001)
    terminal.lines()
    assert terminal.text.count("\r") == drawn + 5
    train(bar, state, clock, 1)
    assert "100%|" in terminal.lines()[0] and "| 1000/1000 [" in terminal.lines()[0]


def test_after_a_restart_it_goes_on_where_the_epoch_stood(begin, terminal, state, clock):
    state.epoch, state.step, state.batch = 2, 14, 6
    bar = begin(state)
    assert "epoch 2/2:  75%|" in terminal.lines()[0] and "| 6/8 [" in terminal.lines()[0]
    train(bar, state, clock, 2)
    assert "| 8/8 [" in terminal.lines()[0]


def test_it_ends_where_the_run_does(begin, terminal, state, clock):
    """With max_steps, that may be in the middle of an epoch."""
    state.epoch, state.step, state.total_steps, state.max_epochs = 2, 8, 11, None
    bar = begin(state)
    train(bar, state, clock, 3)
    assert terminal.lines()[0].startswith("epoch 2: 100%|") and "| 3/3 [" in terminal.lines()[0]


def test_an_unknown_length_has_no_percentage(begin, terminal, state, clock):
    state.steps_per_epoch = state.total_steps = None
    bar = begin(state)
    train(bar, state, clock, 5, seconds=1.0)
    [line] = terminal.lines()
    assert line.startswith("epoch 1/2: 5 steps [") and "%" not in line and "?" not in line
    assert line.endswith("train/loss 0.4123]")


@pytest.fixture
def drawn_metrics(terminal, begin, state, clock):
    """What stands behind the rate."""

    def draw(metrics, **options):
        state.metrics = metrics
        bar = begin(state, **options)
        train(bar, state, clock, 1)
        line = terminal.lines()[0]
        bar.run_end()
        return line.rpartition(" steps/s")[2]

    return draw


def test_metrics_of_training_come_first_and_rates_not_at_all(drawn_metrics):
    metrics = {"lr": 0.1, "val/loss": 0.7, "train_epoch/loss": 0.6, "train/loss": 0.5, "train/acc": math.nan}
    assert drawn_metrics(metrics) == ", train/loss 0.5, train/acc nan, val/loss 0.7]"


def test_so_many_metrics_are_shown_as_were_asked_for(drawn_metrics):
    assert drawn_metrics({"train/a": 1.0, "train/b": 2.0, "train/c": 3.0}, num_metrics=1) == ", train/a 1]"


def test_no_metrics_are_shown_where_none_were_asked_for(drawn_metrics):
    assert drawn_metrics({"train/a": 1.0}, num_metrics=0) == "]"


def test_where_the_terminal_is_narrow_fewer_metrics_are_shown(drawn_metrics, terminal):
    terminal.resize(82)
    assert drawn_metrics({"train/loss": 0.4123, "train/accuracy": 0.9}) == ", train/loss 0.4123]"


def test_a_negative_number_of_metrics_is_refused():
    with pytest.raises(OptionError, match="option num_metrics: expected a number from 0, got -1"):
        ProgressBar(num_metrics=-1)


# ---------------------------------------------------------------- what others write


def test_what_is_printed_takes_the_place_of_the_bar_which_comes_back_below(begin, terminal, state, clock):
    bar = begin(state)
    train(bar, state, clock, 3, seconds=1.0)
    print("printed")
    assert terminal.lines() == ["printed", ""]
    print("complained", file=sys.stderr)
    assert terminal.lines() == ["printed", "complained", ""]
    train(bar, state, clock, 1, seconds=1.0)
    *above, line = terminal.lines()
    assert above == ["printed", "complained"] and line.startswith("epoch 1/2:  50%|")


def test_the_bar_waits_for_the_end_of_a_line(begin, terminal, state, clock):
    bar = begin(state)
    print("one, ", end="", flush=True)
    train(bar, state, clock, 1, seconds=1.0)
    print("two, ", end="", flush=True)
    train(bar, state, clock, 1, seconds=1.0)
    print("three")
    assert terminal.lines() == ["one, two, three", ""]
    train(bar, state, clock, 1, seconds=1.0)
    assert "| 3/8 [" in terminal.lines()[1]


def test_the_streams_are_as_before_when_the_bar_is_gone(begin, terminal, state):
    bar = begin(state)
    assert sys.stdout is not terminal.stream and sys.stdout.fileno() == terminal.stream.fileno()
    bar.epoch_end()
    assert sys.stdout is sys.stderr is terminal.stream


def test_beside_a_bar_standard_output_is_a_whole_stream(begin, terminal, state):
    bar, stream = begin(state), terminal.stream
    watched: Any = sys.stdout
    assert issubclass(type(watched), io.TextIOBase) and watched is not stream
    assert (watched.encoding, watched.errors, watched.newlines) == (stream.encoding, stream.errors, stream.newlines)
    assert watched.isatty() and watched.writable() and not watched.closed
    assert (watched.readable(), watched.seekable()) == (stream.readable(), stream.seekable())
    assert watched.buffer is stream.buffer and watched.line_buffering == stream.line_buffering
    for read in (watched.read, watched.readline, watched.readlines, watched.__next__):
        with pytest.raises(io.UnsupportedOperation, match="not readable"):
            read()
    watched.writelines(["one\n", "two\n"])
    assert terminal.lines() == ["one", "two", ""]
    bar.epoch_end()
    del watched
    print("three")
    assert terminal.lines() == ["one", "two", "three", ""]


def test_a_stream_that_somebody_else_has_put_in_place_stays(begin, state, monkeypatch):
    bar = begin(state)
    own = io.StringIO()
    monkeypatch.setattr(sys, "stdout", own)
    bar.epoch_end()
    assert sys.stdout is own


def test_what_goes_into_a_file_leaves_the_bar_alone(begin, terminal, state, monkeypatch):
    bar = begin(state)
    bar.epoch_end()
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    bar.epoch_start(state)
    print("printed")
    assert sys.stdout is file and terminal.lines()[0].startswith("epoch 1/2:   0%|")


# ---------------------------------------------------------------- a real terminal

SCRIPT = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that a Ctrl-C typed there arrives here

import time
import torch
from torch import nn
from blowtorch import Run

torch.set_num_threads(1)
run = Run(random_seed=1, config={"talks": False})

@run.train_step
@run.validate_step
def step(batch, model):
    time.sleep(0.01)
    if run["talks"]:
        print("a batch of", len(batch))
    return (model(batch) ** 2).mean()

@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)

batches = [torch.randn(2, 4) for _ in range(30)]
run(nn.Linear(4, 1), batches, batches[:5], max_epochs=2, validate_every="20 steps", log_every="5 steps")
"""


def run_in_terminal(folder, *arguments, stop_after=None):
    """Everything that a script sends to a terminal; Ctrl-C is typed when `stop_after` was shown."""
    (folder / "train.py").write_text(SCRIPT)
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, WIDE, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=folder,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    shown = ""
    while True:
        try:
            shown += os.read(master, 65536).decode()
        except OSError:  # the terminal has no writer any more
            break
        if stop_after is not None and stop_after in shown:
            os.write(master, b"\x03")
            stop_after = None
    os.close(master)
    assert process.wait() == 0, shown
    return shown


def said(folder):
    [log] = folder.glob("train_logs/*/console.log")
    return [line.split(" ", maxsplit=1)[1] for line in log.read_text().splitlines()]


def test_a_terminal_ends_up_with_the_lines_alone(tmp_path):
    shown = run_in_terminal(tmp_path)
    assert shown.count("%|") > 5 and ", train/loss " in shown
    assert Screen(shown, WIDE).lines == [*said(tmp_path), ""]


def test_what_a_script_prints_is_left_beside_them(tmp_path):
    shown = run_in_terminal(tmp_path, "with", "talks=true")
    lines = Screen(shown, WIDE).lines
    assert shown.count("%|") > 2
    assert [line for line in lines if line != "a batch of 2"] == [*said(tmp_path), ""]
    assert lines.count("a batch of 2") == 75


def test_a_run_stopped_from_the_keyboard_leaves_no_half_bar(tmp_path):
    shown = run_in_terminal(tmp_path, stop_after="train/loss")
    assert "^C" in shown
    assert Screen(shown, WIDE).lines == [*said(tmp_path), ""]
    assert any("stopped" in line for line in said(tmp_path))
