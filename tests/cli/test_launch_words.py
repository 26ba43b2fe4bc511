"""The command line of `blowtorch launch`: whose words are whose, what is refused, and the line for Slurm."""

import os
import subprocess
import sys

import pytest


def srun_line(finish, *arguments):
    code, output, error = finish("--print", "srun", *arguments)
    assert code == 0, error
    return output


def test_options_stand_before_the_script_or_right_after_it(write, finish):
    write("")
    lines = {
        srun_line(finish, *words.split())
        for words in (
            "--processes 4 -q train.py with a=1",
            "train.py --processes 4 --quiet with a=1",
            "--processes=4 train.py -q -- with a=1",
        )
    }
    assert len(lines) == 1
    assert srun_line(finish, "train.py", "--lr", "1", "-q").endswith(" train.py -- --lr 1 -q\n")
    assert srun_line(finish, "train.py", "--", "--processes", "9").endswith(" train.py -- --processes 9\n")


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        ("trian.py", 1, "there is no script 'trian.py'. Did you mean 'train.py'?"),
        ("folder.train", 1, "To run a module, write -m folder.train."),
        ("-m nowhere.train", 1, "no module is called 'nowhere.train'"),
        ("work.ipynb", 1, "work.ipynb is a notebook"),
        ("train.py --proceses 4", 2, "--proceses is no option of launch. Did you mean --processes?"),
        ("--nproc-per-node 4 train.py", 2, "--nproc-per-node is torchrun's; here it is --processes"),
        ("train.py with a=1 --processes 4", 2, "--processes stands behind words of the script's own"),
        ("train.py --nodes 2", 2, "--nodes 2 needs --rendezvous HOST:PORT"),
        ("train.py --nodes 3:2", 2, "expected a number of machines"),
        ("train.py --processes some", 2, "expected a number of processes"),
    ],
)
def test_what_cannot_be_launched_is_refused_with_what_was_meant(write, finish, words, code, reason):
    write("")
    done = finish(*words.split())
    assert done[0] == code and done[1] == ""
    assert reason in done[2]


def test_the_line_for_slurm_starts_a_launcher_on_each_machine(write, finish, tmp_path):
    line = srun_line(finish, write("", "my train.py"), "--processes", "8", "--nodes", "2:4", "with", "a=x y")
    for name, code in {"srun": 'for word; do echo "$word"; done', "scontrol": "echo node7; echo node8"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_CPUS_ON_NODE": "16"}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    words = subprocess.run(
        ["sh", "-c", line], env=os.environ | variables | {"PATH": path}, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    start = words.index("blowtorch")
    assert words[:start] == ["--nodes=4", "--ntasks-per-node=1", "--cpus-per-task=16"]
    options = ["--processes", "8", "--nodes", "2:4", "--rendezvous", "node7:20123"]
    assert words[start:] == ["blowtorch", "launch", *options, str(tmp_path / "my train.py"), "--", "with", "a=x y"]


def test_the_help_of_the_command_imports_no_torch():
    code = "import sys, blowtorch_cli.launch.command; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
