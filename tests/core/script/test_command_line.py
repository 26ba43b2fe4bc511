"""Which file is the script, and which words of a command line are its own, for whatever parser it has."""

import argparse
import cProfile
import subprocess
import sys
import unittest
from pathlib import Path

import pytest

from blowtorch import ConfigError, OptionError, Run
from blowtorch.script.command_line import find_script

WORDS = ["train.py", "digits", "more", "--lr", "0.2", "with", "run.max_steps=5"]


@pytest.fixture
def words(monkeypatch):
    monkeypatch.setattr(sys, "argv", list(WORDS))


def test_a_parser_is_given_what_stands_before_with_whether_the_run_is_made_before_or_after(words):
    before = Run.script_arguments
    run = Run(random_seed=0)
    assert before == run.script_arguments == ["digits", "more", "--lr", "0.2"]
    assert run["run.max_steps"] == 5
    assert sys.argv == WORDS  # loader workers and whatever starts the script again read it


def test_a_list_of_arguments_is_a_copy(words):
    Run.script_arguments.append("more")
    run = Run(random_seed=0)
    run.script_arguments.clear()
    assert Run.script_arguments == run.script_arguments == ["digits", "more", "--lr", "0.2"]


def test_a_run_with_a_command_line_of_its_own_has_the_arguments_of_that(words):
    assert Run(command_line=["other.py", "a", "with", "b.c=1"], config={"b": {"c": 0}}).script_arguments == ["a"]
    assert Run(command_line=[]).script_arguments == Run(command_line=["with"]).script_arguments == []


def test_argparse_takes_options_and_words(words):
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--lr", type=float)
    assert vars(parser.parse_args(Run.script_arguments)) == {"data": "digits", "rest": ["more"], "lr": 0.2}


def test_click_takes_options_and_words(words):
    click = pytest.importorskip("click")
    seen = []

    @click.command()
    @click.argument("data", nargs=-1)
    @click.option("--lr", type=float)
    def main(data, lr):
        seen.append((data, lr, Run(random_seed=0)["run.max_steps"]))

    main(Run.script_arguments, standalone_mode=False)
    assert seen == [(("digits", "more"), 0.2, 5)]


def test_typer_takes_options_and_words(words):
    typer = pytest.importorskip("typer")
    seen = []
    app = typer.Typer(add_completion=False)

    @app.command()
    def main(data: list[str], lr: float = 0.1):
        seen.append((data, lr, Run(random_seed=0)["run.max_steps"]))

    app(Run.script_arguments, standalone_mode=False)
    assert seen == [(["digits", "more"], 0.2, 5)]


def test_fire_takes_options_and_words(words):
    fire = pytest.importorskip("fire")

    def main(*data, lr=0.1):
        return [data, lr, Run(random_seed=0)["run.max_steps"]]

    assert fire.Fire(main, Run.script_arguments) == [("digits", "more"), 0.2, 5]


def test_absl_takes_options_and_words(words):
    flags = pytest.importorskip("absl.flags")
    values = flags.FlagValues()
    flags.DEFINE_float("lr", 0.1, "the learning rate", flag_values=values)
    assert values([sys.argv[0], *Run.script_arguments]) == ["train.py", "digits", "more"]
    assert values.lr == 0.2 and Run(random_seed=0)["run.max_steps"] == 5


@pytest.mark.parametrize("word", ["--lr=0.2", "--verbose", "-v"])
def test_an_argument_of_the_script_behind_with_is_an_error_that_says_where_it_belongs(word):
    with pytest.raises(ConfigError, match=rf"got '{word}'; the script's own arguments stand before `with`"):
        Run(config={"lr": 0.1}, command_line=["train.py", "with", "lr=0.1", word])


def test_a_key_that_begins_with_a_dash_can_be_overridden():
    assert Run(config={"-x": 1}, command_line=["train.py", "with", "-x=2"])["-x"] == 2


@pytest.mark.parametrize("place", ["lib/site-packages/pytest/__main__.py", "bin/pytest", "bin/pytest-3"])
def test_the_words_of_a_test_runner_are_neither_configuration_nor_arguments(monkeypatch, tmp_path, place):
    runner = tmp_path / place
    runner.parent.mkdir(parents=True)
    runner.write_text("")
    monkeypatch.setattr(sys, "argv", [str(runner), "-k", "with", "tests"])
    run = Run(random_seed=0)
    assert run.config == {} and run.script_arguments == Run.script_arguments == []


SPAWNED = """
import argparse, sys
import torch
from torch.utils.data import DataLoader, Dataset
from blowtorch import Run

parser = argparse.ArgumentParser()
parser.add_argument("--offset", type=float, default=0.0)
args = parser.parse_args(Run.script_arguments)
run = Run(random_seed=0, config={"scale": 1.0})

class Samples(Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, index):
        return torch.tensor([args.offset, run["scale"]])  # in a process that has imported the script again

@run.train_step
def step(batch, model):
    print(batch.tolist())
    return model(batch).square().mean()

run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
if __name__ == "__main__":
    loader = DataLoader(Samples(), batch_size=2, num_workers=1, multiprocessing_context="spawn")
    run(torch.nn.Linear(2, 1), loader, progress=False)
"""


def test_workers_that_import_the_script_again_have_the_same_arguments_and_overrides():
    Path("train.py").write_text(SPAWNED)
    command = [sys.executable, "train.py", "--offset", "3", "with", "scale=5.0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "[[3.0, 5.0], [3.0, 5.0]]" in done.stdout.splitlines()


def write(place):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("")
    return place


@pytest.fixture
def started(monkeypatch):
    """Let the process look as if it had been started with a file as its main module, which may be None."""

    def start(main, *command_line):
        monkeypatch.setattr(sys, "argv", list(command_line))
        if main is None:
            monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
        else:
            monkeypatch.setattr(sys.modules["__main__"], "__file__", str(main), raising=False)

    return start


def test_a_script_is_the_file_that_was_started_wherever_it_has_gone_since(started, tmp_path, monkeypatch):
    script = write(tmp_path / "train.py")
    started(script, "train.py", "with", "a=1")
    write(tmp_path / "run" / "source" / "train.py")
    monkeypatch.chdir(tmp_path / "run" / "source")
    assert find_script(sys.argv) == str(script)


def test_a_script_under_a_profiler_or_debugger_is_the_script(started, tmp_path):
    script = write(tmp_path / "train.py")
    started(cProfile.__file__, "train.py")
    assert find_script(sys.argv) == str(script)


def test_a_script_that_was_packed_is_the_archive(started, tmp_path):
    archive = write(tmp_path / "app.pyz")
    started(archive / "__main__.py", "app.pyz")
    assert find_script(sys.argv) == str(archive)


def test_a_script_in_a_folder_that_is_reached_by_a_link_is_the_same_one(started, tmp_path):
    script = write(tmp_path / "project" / "train.py")
    (tmp_path / "link").symlink_to("project")
    started(tmp_path / "link" / "train.py", "link/train.py")
    assert find_script(sys.argv) == str(script)


def test_two_links_to_one_file_are_two_scripts(started, tmp_path):
    write(tmp_path / "train.py")
    for name in ("small.py", "large.py"):
        (tmp_path / name).symlink_to("train.py")
        started(tmp_path / name, name)
        assert find_script(sys.argv) == str(tmp_path / name)


@pytest.mark.parametrize(
    ("main", "word"),
    [
        (None, "lib/site-packages/ipykernel_launcher.py"),
        (None, "pydevconsole.py"),
        (None, "-c"),
        (None, "-"),
        (None, ""),
        (None, "bin/ipython"),
        ("lib/site-packages/pytest/__main__.py", "lib/site-packages/pytest/__main__.py"),
        ("bin/py.test", "bin/py.test"),
        ("lib/site-packages/submitit/core/_submit.py", "lib/site-packages/submitit/core/_submit.py"),
    ],
)
def test_there_is_no_script_where_something_else_runs_the_code(started, tmp_path, main, word):
    for name in (main, word):
        if (name and "/" in name) or name == "pydevconsole.py":
            write(tmp_path / name)
    started(main, word)
    assert find_script(sys.argv) == ""
    with pytest.raises(OptionError, match="resume='auto' needs the option run_name here"):
        Run(config={"run": {"resume": "auto"}})


def test_the_test_runner_of_python_itself_is_no_script(started):
    started(unittest.__file__.replace("__init__", "__main__"), "python -m unittest")
    assert find_script(sys.argv) == ""


def test_a_package_that_was_installed_may_be_the_script(started, tmp_path):
    script = write(tmp_path / "lib" / "site-packages" / "package" / "train.py")
    started(script, str(script))
    assert find_script(sys.argv) == str(script)


def test_a_command_line_of_ones_own_names_the_script_in_a_notebook_too(started, tmp_path):
    script = write(tmp_path / "train.py")
    started(None, "lib/site-packages/ipykernel_launcher.py")
    assert find_script(["train.py"]) == str(script)
    assert find_script([]) == find_script(["notebook"]) == ""
