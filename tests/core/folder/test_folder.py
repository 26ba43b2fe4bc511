"""The folder of a run: its name, its number, and how its files are replaced."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from blowtorch import RunFolderError
from blowtorch.folder.folder import RunFolder, safe_name
from tests.core.folder.folders import begin

RACER = """
import sys
from blowtorch.folder.folder import RunFolder
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    folder = RunFolder.create("train_logs", sys.argv[1] or None)
    print(folder.number, folder.name, folder.id, folder.path.name)
"""


def race(processes, folders, name):
    """What so many processes made at once; they start together."""
    command = [sys.executable, "-c", RACER, name, str(folders)]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    made = [line.split() for racer in racers for line in racer.communicate(timeout=60)[0].splitlines()]
    assert all(racer.returncode == 0 for racer in racers)
    return made


@pytest.mark.parametrize("name", ["same", ""])
def test_processes_that_race_get_numbers_of_their_own_and_leave_nothing_else(name):
    made = race(processes=8, folders=12, name=name)
    assert sorted(int(number) for number, _, _, _ in made) == list(range(1, 97))
    assert len({identity for _, _, identity, _ in made}) == 96
    assert sorted(path.name for path in Path("train_logs").iterdir()) == sorted(path for _, _, _, path in made)


def test_its_name_has_time_name_and_number(folder):
    assert re.fullmatch(r"\d\d-\d\d-\d\d_\d\d-\d\d-\d\d_test-1", folder.path.name)
    assert (folder.name, folder.number) == ("test-1", 1)
    assert folder.path.parent == Path("train_logs").absolute()


def test_a_name_is_drawn_where_none_is_given_and_not_from_the_stream_of_the_training():
    names = {RunFolder.create("train_logs", None).name for _ in range(10)}
    assert len({name.rpartition("-")[0] for name in names}) > 5
    assert all(re.fullmatch(r"[a-z]+-[a-z]+-\d+", name) for name in names)


def test_numbers_go_on_from_the_highest_whatever_else_lies_there():
    Path("train_logs/26-01-01_00-00-00_old-41").mkdir(parents=True)
    Path("train_logs/notes-99").mkdir()
    Path("train_logs/plot.png").touch()
    assert RunFolder.create("train_logs", "new").number == 42


def test_every_folder_exists_from_the_beginning(folder):
    found = sorted(path.name for path in folder.path.iterdir())
    assert found == ["checkpoints", "loggers", "media", "owner.lock", "run.yaml", "source"]


def test_a_folder_that_cannot_be_filled_is_not_left_behind(monkeypatch):
    def refuse(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(RunFolderError, match="No space left on device; choose another"):
        RunFolder.create("train_logs", "full")
    assert list(Path("train_logs").iterdir()) == []


def test_a_run_name_becomes_a_file_name():
    assert RunFolder.create("train_logs", "../my run: ä/1").name == "my-run-ä-1-1"


@pytest.mark.parametrize("name", ["", "///", ".."])
def test_a_run_name_without_letters_is_refused(name):
    with pytest.raises(RunFolderError, match="expected a run_name with letters or digits, got "):
        RunFolder.create("train_logs", name)
    assert not Path("train_logs").exists()


@pytest.mark.parametrize("name", ["a/b", "..", " x ", "a\0b", "ünï", "-x-", "C:\\x"])
def test_a_safe_name_is_the_name_of_one_file(name):
    safe = safe_name(name)
    assert "/" not in safe and "\\" not in safe and "\0" not in safe and not safe.startswith((".", "-", " "))
    assert safe_name(safe) == safe


@pytest.mark.parametrize("save_path", ["file", "file/below"])
def test_a_save_path_that_is_a_file_or_below_one_is_refused(save_path):
    Path("file").write_text("")
    with pytest.raises(RunFolderError, match=f"save_path '{save_path}' cannot be written: .*; choose another"):
        RunFolder.create(save_path, "test")


def test_a_save_path_is_made_with_its_parents():
    assert RunFolder.create("a/b/c", "test").path.parent == Path("a/b/c").absolute()


def test_reopening_keeps_what_it_is(folder):
    again = RunFolder.reopen(folder.path)
    assert (again.path, again.id, again.name, again.number) == (folder.path, folder.id, folder.name, folder.number)
    assert len(folder.id) == 16


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="'.*' is no run folder: it holds no run.yaml"):
        RunFolder.reopen(tmp_path)


def test_a_run_may_be_moved_and_renamed(folder):
    moved = folder.path.rename(folder.path.with_name("precious"))
    again = RunFolder.reopen(moved)
    assert (again.name, again.id) == ("precious", folder.id)


def test_a_logger_has_a_folder_of_its_own(folder):
    assert folder.own_folder("logger", "my logger") == folder.path / "loggers" / "my-logger"
    assert folder.own_folder("logger", "my logger").is_dir()


def test_a_new_run_is_running_with_a_name_and_a_number(folder):
    info = folder.read_info()
    assert {key: info[key] for key in ("name", "number", "status")} == {
        "name": "test-1",
        "number": 1,
        "status": "running",
    }
    assert re.fullmatch(r"[0-9a-f]{16}", info["id"])


def test_each_session_stands_in_it_and_the_last_one_decides(folder):
    begin(folder, git_commit="abc")
    folder.end_session("stopped")
    begin(folder, "with", "run.resume=auto", git_commit="def")
    info = folder.read_info()
    assert (info["status"], info["git_commit"], info["host"]) == ("running", "def", socket.gethostname())
    assert info["ended"] is None
    folder.end_session("finished")
    info = folder.read_info()
    assert info["status"] == "finished"
    assert [session["status"] for session in info["sessions"]] == ["stopped", "finished"]
    assert [session["process"] for session in info["sessions"]] == [os.getpid()] * 2
    assert info["sessions"][1]["command_line"] == ["train.py", "with", "run.resume=auto"]
    assert all(session["ended"] >= session["started"] for session in info["sessions"])


def test_it_is_replaced_whole(folder):
    """Whoever opened the old content before still reads all of it, and never a mixture."""
    (path,) = folder.path.glob("run.yaml")
    before = path.read_text()
    with path.open() as file:
        folder.end_session("x" * 10000)
        assert file.read() == before
    assert folder.read_info()["status"] == "x" * 10000
    assert list(folder.path.glob(".run.yaml*")) == []


READER = """
import sys
from pathlib import Path
from blowtorch.folder.folder import read_yaml
path = Path(sys.argv[1])
print("ready", flush=True)
while not path.with_name("end").exists():
    info = read_yaml(path)
    assert info["a"] == info["b"], info
"""


def test_who_reads_while_it_is_written_sees_the_old_or_the_new(folder):
    begin(folder, a=0, b=0)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(folder.path / "run.yaml")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    reader.stdout.readline()
    for number in range(50):
        begin(folder, a="x" * number * 100, b="x" * number * 100)
    (folder.path / "end").touch()
    _, complaint = reader.communicate(timeout=30)
    assert reader.returncode == 0, complaint.decode()


@pytest.mark.parametrize("content", ["[1, 2]", "text", "a: [", "a: 1\na: 2", b"\xff\xfe"])
def test_a_damaged_one_is_named(folder, content):
    path = folder.path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunFolderError, match=r"run\.yaml (is damaged|cannot be read)"):
        folder.read_info()
