"""The lines that a run says, and where they are shown."""

import io
import json
import math
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from blowtorch import Checkpoint
from blowtorch.builtin.console import Console, format_number


@pytest.fixture
def state(tmp_path):
    """What a console reads of a run in its third epoch, and the lines that it says."""
    lines = []

    options = types.SimpleNamespace(checkpoint_metric="val/loss", loggers=(), resume="never", dry_run=False)
    folder = tmp_path / "train_logs" / "26-11-23_18-42-01_brave-otter-3"
    folder.mkdir(parents=True)
    write_info(folder, command=["python", "train.py"])
    return types.SimpleNamespace(
        info=types.SimpleNamespace(name="brave-otter-3"),
        options=options,
        folder=folder,
        model=nn.Linear(100, 10),
        device=torch.device("cpu"),
        is_resumed=False,
        step=120,
        epoch=3,
        is_epoch_done=False,
        seconds=0.0,
        max_epochs=10,
        total_steps=1200,
        metrics={},
        best=None,
        stop_reason=None,
        interruption=None,
        lines=lines,
        say=lines.append,
    )


def write_info(folder, **more):
    info = {"id": "1a2b3c4d", "name": "brave-otter-3", "number": 3, "status": "running"}
    (folder / "run.yaml").write_text(json.dumps({**info, **more}))


def last_line(state):
    return state.lines[-1]


# ---------------------------------------------------------------- lines


def test_the_first_line_says_what_is_trained_on_what_and_where(state):
    Console().run_start(state)
    assert state.lines == [
        "brave-otter-3 begins · 1,010 parameters on cpu · train_logs/26-11-23_18-42-01_brave-otter-3"
    ]


def test_a_resumed_run_says_where_it_goes_on(state):
    state.is_resumed = True
    Console().run_start(state)
    assert last_line(state).startswith("brave-otter-3 goes on · epoch  3/10 · step  120 · 1,010 parameters")


def test_a_folder_that_is_not_below_this_one_is_given_in_full(state, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Console().run_start(state)
    assert last_line(state).endswith(str(state.folder))


def test_frozen_parameters_are_told_apart(state):
    state.model.bias.requires_grad_(False)
    Console().run_start(state)
    assert "1,010 parameters (1,000 trained) on cpu" in last_line(state)


def test_parameters_of_lazy_layers_are_not_counted_yet(state):
    state.model = nn.Sequential(nn.Linear(100, 10), nn.LazyLinear(5))
    Console().run_start(state)
    assert "1,010 parameters" in last_line(state)


def test_a_validation_has_one_line(state):
    Console().validation_end(state, {"val/loss": 0.0412345, "val/accuracy": 0.987})
    assert state.lines == ["epoch  3/10 · step  120 · val/loss 0.04123 · val/accuracy 0.987"]


@pytest.mark.parametrize("name", ["val/a\nb", "val/\x1b[31mred", "val/\ud800", "val/a\0b", "val/a\u2028b"])
def test_a_name_that_is_no_line_does_not_break_that_of_the_console(state, name):
    Console().validation_end(state, {name: 1.0})
    (line,) = state.lines
    assert line.isprintable() and line.startswith("epoch  3/10 · step  120 · val/") and line.endswith(" 1")


def test_a_validation_that_measures_nothing_has_none(state):
    """It may be there to show something, such as samples."""
    Console().validation_end(state, {})
    assert state.lines == []


def test_at_the_end_of_an_epoch_its_own_line_comes_before_those_of_validations(state):
    console = Console()
    state.is_epoch_done = True
    console.validation_end(state, {"val/loss": 0.5})
    console.validation_end(state, {"ood/loss": 0.7})
    console.epoch_end(state, {"train_epoch/loss": 0.6})
    console.checkpoint_saved(state, Checkpoint(name="step-00000120", step=120, metric=0.5, path=Path("x")), True)
    told = [line.removeprefix("epoch  3/10 · step  120 · ").split(" · ")[0] for line in state.lines]
    assert told == [
        "train_epoch/loss 0.6",
        "val/loss 0.5",
        "ood/loss 0.7",
        "checkpoint of step 120 saved, the best so far by val/loss",
    ]
    console.epoch_end(state, {"train_epoch/loss": 0.5})
    assert len(state.lines) == 5


def test_a_validation_before_the_first_step_waits_for_nothing(state):
    state.step, state.epoch, state.is_epoch_done = 0, 0, True
    Console().validation_end(state, {"val/loss": 0.5})
    assert last_line(state).endswith("val/loss 0.5")


def test_a_validation_whose_epoch_fails_after_it_is_told_at_the_end(state):
    console = Console()
    state.is_epoch_done = True
    console.validation_end(state, {"val/loss": 0.5})
    console.run_end(state, "failed")
    assert state.lines[0].endswith("val/loss 0.5") and state.lines[1].startswith("brave-otter-3 failed")


def test_lines_stay_aligned_and_unknown_lengths_are_left_out(state):
    state.max_epochs = state.total_steps = None
    Console().validation_end(state, {"ood/loss": 1.0})
    assert last_line(state) == "epoch 3 · step 120 · ood/loss 1"


def test_an_epoch_has_one_line_with_its_means_the_rate_and_the_time(state):
    console = Console()
    state.seconds = 100.0
    console.epoch_start(state)
    state.seconds = 161.0
    state.metrics = {"train/loss": 0.5, "lr": 0.001, "lr_of_something": 5.0}
    console.epoch_end(state, {"train_epoch/loss": 0.6, "train_epoch/accuracy": 0.5})
    assert last_line(state) == (
        "epoch  3/10 · step  120 · train_epoch/loss 0.6 · train_epoch/accuracy 0.5 · lr 0.001 · 1 min 1 s"
    )


def test_a_few_of_many_learning_rates_are_enough(state):
    state.metrics = {f"lr/optimizer/{index}": 0.1 for index in range(50)}
    Console().epoch_end(state, {})
    assert last_line(state).count("lr/optimizer/") == 3


@pytest.mark.parametrize(("is_best", "end"), [(True, ", the best so far by val/loss"), (False, "")])
def test_a_checkpoint_has_one_line_that_says_whether_it_is_the_best(state, is_best, end):
    Console().checkpoint_saved(state, Checkpoint(name="step-00000120", step=120, metric=0.5, path=Path("x")), is_best)
    assert state.lines == [f"checkpoint of step 120 saved{end}"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1.0, "1"),
        (0.98765, "0.9877"),
        (123.456, "123.5"),
        (9999.4, "9999"),
        (9999.6, "10000"),
        (123456.7, "123457"),
        (1234567.0, "1.235e6"),
        (1e300, "1e300"),
        (0.00012346, "0.0001235"),
        (0.000012346, "1.235e-5"),
        (-5e-324, "-4.941e-324"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (50_000, "50000"),
    ],
)
def test_numbers_have_four_significant_digits_and_no_clutter(value, text):
    assert format_number(value) == text


# ---------------------------------------------------------------- the end


def test_a_finished_run_says_what_was_best_and_where_everything_lies(state):
    state.best = Checkpoint(
        name="step-00000080", step=80, metric=0.25, path=state.folder / "checkpoints" / "step-00000080"
    )
    state.seconds = 4000
    Console().run_end(state, "finished")
    assert state.lines == [
        "brave-otter-3 finished · epoch  3/10 · step  120 · 1 h 6 min",
        "  best      val/loss 0.25 · step 80 · train_logs/26-11-23_18-42-01_brave-otter-3/checkpoints/step-00000080",
        "  folder    train_logs/26-11-23_18-42-01_brave-otter-3",
    ]


def test_an_early_end_has_its_reason(state):
    state.stop_reason = "val/loss has not been better than 0.5 in 3 validations"
    Console().run_end(state, "finished")
    assert state.lines[0].startswith(
        "brave-otter-3 finished · val/loss has not been better than 0.5 in 3 validations ·"
    )


@pytest.mark.parametrize(
    ("command", "resume", "expected"),
    [
        (["python", "train.py"], "never", "python train.py with run.resume=auto"),
        (["python", "train.py", "with", "a=1 2"], "never", "python train.py with 'a=1 2' run.resume=auto"),
        (["python", "-m", "my.train", "with", "run.resume=auto"], "auto", "python -m my.train with run.resume=auto"),
        (
            ["python", "train.py"],
            "elsewhere/checkpoints/step-00000001",
            "python train.py with run.resume=train_logs/26-11-23_18-42-01_brave-otter-3",
        ),
    ],
)
@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_a_run_that_did_not_finish_says_what_continues_it(state, status, command, resume, expected):
    write_info(state.folder, command=command)
    state.options.resume = resume
    Console().run_end(state, status)
    assert last_line(state) == f"  continue  {expected}"


def test_a_run_that_failed_before_its_command_was_written_down_says_nothing_of_it(state):
    write_info(state.folder)
    Console().run_end(state, "failed")
    assert [line.split()[0] for line in state.lines] == ["brave-otter-3", "folder"]


def test_a_stopped_run_says_by_what(state):
    state.interruption = "SIGTERM"
    Console().run_end(state, "stopped")
    assert state.lines[0].startswith("brave-otter-3 stopped · SIGTERM · epoch  3/10 · step  120")


@pytest.mark.parametrize(
    ("run_name", "resume"), [(None, "train_logs/26-11-23_18-42-01_brave-otter-3"), ("brave-otter", "auto")]
)
def test_without_a_script_there_is_a_call_to_repeat(state, run_name, resume):
    write_info(state.folder, command=["python", "-m", "pytest"], script="")
    state.options.run_name = run_name
    Console().run_end(state, "stopped")
    assert last_line(state) == f'  continue  the same call with resume="{resume}"'


@pytest.mark.parametrize(
    "loggers", [["tensorboard"], [{"tensorboard": {}}], ["wandb", "blowtorch-tensorboard:tensorboard"]]
)
def test_tensorboard_is_offered_where_it_is_named(state, loggers):
    state.options.loggers = loggers
    Console().run_end(state, "finished")
    assert last_line(state) == "  look      tensorboard --logdir train_logs"


@pytest.mark.parametrize("loggers", [[], ["wandb"], [object()]])
def test_tensorboard_is_not_offered_where_it_is_not(state, loggers):
    state.options.loggers = loggers
    Console().run_end(state, "finished")
    assert "tensorboard" not in " ".join(state.lines)


# ---------------------------------------------------------------- the screen


def test_lines_are_shown_as_they_are_said(capsys):
    for line in ("brave-otter-3 begins", "val/loss 0.5"):
        Console().line_said(line)
    assert capsys.readouterr().out.splitlines() == ["brave-otter-3 begins", "val/loss 0.5"]


def test_without_progress_nothing_is_shown_and_everything_said(state, capsys):
    console = Console(progress=False)
    console.run_start(state)
    console.run_end(state, "finished")
    for line in state.lines:
        console.line_said(line)
    assert len(state.lines) == 3
    assert capsys.readouterr() == ("", "")


def test_a_stream_that_cannot_hold_a_character_does_not_end_the_run(state, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    Console().line_said("epoch 1 · größe 3")
    assert stream.buffer.getvalue() == b"epoch 1 - gr??e 3\n"


def test_a_pipe_without_a_reader_does_not_end_the_run(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    Console().line_said("epoch 1")


def test_where_there_is_no_terminal_lines_are_plain_and_there_is_no_bar(make_run, net, loader, capsys):
    result = make_run()(net, loader, loader, max_epochs=2, checkpoint_async=False)
    out, err = capsys.readouterr()
    assert err == ""
    assert not {"\r", "\x1b", "\b"} & set(out)
    logged = (result.folder / "console.log").read_text().splitlines()
    assert out.splitlines() == [line.split(" ", maxsplit=1)[1] for line in logged]
    begins = [line.split(" · ")[-1 if "checkpoint" in line else 2].split()[0] for line in out.splitlines()[1:7]]
    assert begins == ["train_epoch/loss", "val/loss", "checkpoint"] * 2


def test_a_secret_on_the_command_line_stays_out_of_the_log(make_run, net, loader, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "with", "tracker.api_key=hidden"])
    run = make_run("with", "tracker.api_key=hidden", config={"tracker": {"api_key": None}})

    @run.on("epoch_end")
    def fail():
        raise ZeroDivisionError("on purpose")

    with pytest.raises(ZeroDivisionError, match="on purpose"):
        run(net, loader, loader)
    [folder] = Path("train_logs").iterdir()
    assert "with 'tracker.api_key=***' run.resume=auto" in (folder / "console.log").read_text()
    kept = [path for path in folder.rglob("*") if path.is_file() and b"hidden" in path.read_bytes()]
    assert kept == []
