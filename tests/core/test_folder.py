"""The folder of a run: names, the lock of its owner, and what stands in it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from blowtorch import RunFolderError
from blowtorch.config.config import load_config
from blowtorch.config.yaml12 import parse_yaml
from blowtorch.folder import folder as module
from blowtorch.folder import lock as lock_module
from blowtorch.folder.folder import RunFolder, safe_name
from blowtorch.folder.lock import is_owned
from blowtorch.folder.secrets import mask_command_line, mask_secrets


def make_config(values):
    return load_config(values, [], [], lambda source: {})


@pytest.fixture
def folder():
    return RunFolder.create("train_logs", "test")


# ---------------------------------------------------------------- making one

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
    assert found == ["checkpoints", "loggers", "media", "run.yaml", "source"]


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
    assert folder.logger_folder("my logger") == folder.path / "loggers" / "my-logger"
    assert folder.logger_folder("my logger").is_dir()


# ---------------------------------------------------------------- the owner

OWNER = """
import os, sys, time
from blowtorch.folder.folder import RunFolder
folder = RunFolder.reopen(sys.argv[1])
folder.acquire()
child = os.fork() if "forks" in sys.argv else 0
if child or "forks" not in sys.argv:
    print(os.getpid(), child, flush=True)
time.sleep(60)
"""


def start_owner(folder, *arguments):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder.path), *arguments], stdout=subprocess.PIPE, text=True
    )
    return owner, [int(number) for number in owner.stdout.readline().split()]


def kill(owner):
    owner.kill()
    owner.wait()
    owner.stdout.close()


def test_a_second_process_is_refused_naming_process_and_host(folder):
    owner, (process, _) = start_owner(folder)
    try:
        expected = f"is being trained by process {process} on host {re.escape(socket.gethostname())} since 20"
        with pytest.raises(RunFolderError, match=f"{expected}.*; stop that process first"):
            folder.acquire()
        assert is_owned(folder.path)
    finally:
        kill(owner)
    assert not is_owned(folder.path)
    folder.acquire()
    folder.release()


def test_the_lock_of_a_killed_owner_is_free_though_its_child_lives(folder):
    """A loader's workers are forked, and live on for a while."""
    owner, (_, child) = start_owner(folder, "forks")
    try:
        time.sleep(0.1)  # the child has begun
        kill(owner)
        os.kill(child, 0)
        assert not is_owned(folder.path)
        folder.acquire()
    finally:
        os.kill(child, signal.SIGKILL)
    folder.release()


def test_a_forked_child_that_ends_leaves_the_lock_to_the_owner(folder):
    folder.acquire()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert is_owned(folder.path)
    folder.release()
    assert not is_owned(folder.path)


def test_a_program_that_the_owner_starts_does_not_hold_the_lock(folder):
    folder.acquire()
    for _ in range(20):
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False):
            folder.release()
            assert not is_owned(folder.path)
        folder.acquire()
    folder.release()


def test_many_who_look_never_hinder_an_owner_nor_take_one_another_for_one(folder):
    code = "import sys, pathlib; from blowtorch.folder.lock import is_owned; path = pathlib.Path(sys.argv[1])\n"
    code += "print('ready', flush=True)\nwhile not (path / 'end').exists(): assert not is_owned(path)"
    (folder.path / "owner.lock").touch()
    lookers = [
        subprocess.Popen([sys.executable, "-c", code, str(folder.path)], stdout=subprocess.PIPE) for _ in range(3)
    ]
    for looker in lookers:
        looker.stdout.readline()
    time.sleep(0.3)
    (folder.path / "end").touch()
    for looker in lookers:
        looker.communicate()
    assert [looker.returncode for looker in lookers] == [0, 0, 0]


def test_an_owner_waits_for_somebody_who_only_looks(folder, monkeypatch):
    (folder.path / "owner.lock").touch()
    looks = os.open(folder.path / "owner.lock", os.O_RDONLY)
    lock_module.fcntl.flock(looks, lock_module.fcntl.LOCK_SH)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: os.close(looks))
    folder.acquire()
    folder.release()


def test_to_look_takes_no_right_to_write(folder, monkeypatch):
    folder.acquire()
    opened = []
    monkeypatch.setattr(module.os, "open", lambda path, flags, open=os.open: opened.append(flags) or open(path, flags))
    assert is_owned(folder.path)
    assert opened == [os.O_RDONLY]
    monkeypatch.undo()
    folder.release()


def test_the_lock_tells_host_process_and_since_when(folder):
    folder.acquire()
    owner = json.loads((folder.path / "owner.lock").read_text())
    assert (owner["host"], owner["process"]) == (socket.gethostname(), os.getpid())
    assert owner["since"].startswith("20")
    folder.release()
    assert (folder.path / "owner.lock").read_text() == ""


def test_a_lock_given_back_can_be_taken_again(folder):
    for _ in range(3):
        folder.acquire()
        folder.release()
    folder.release()
    assert not is_owned(folder.path)


def test_a_beat_touches_the_lock_now_and_then(folder, monkeypatch):
    lock = folder.path / "owner.lock"
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    folder.beat()
    assert not lock.exists()
    folder.acquire()
    for seconds, is_touched in ((0, True), (1, False), (31, True)):
        os.utime(lock, (1, 1))
        clock[0] += seconds
        folder.beat()
        assert (lock.stat().st_mtime > 1) is is_touched
    folder.release()


@pytest.fixture(params=["no module", "no support"])
def without_locks(request, monkeypatch):
    """A system, or a file system, that has no locks."""
    if request.param == "no module":
        monkeypatch.setattr(module, "fcntl", None)
        monkeypatch.setattr(lock_module, "fcntl", None)
    else:

        def refuse(descriptor, operation):
            raise OSError("Function not implemented")

        monkeypatch.setattr(module.fcntl, "flock", refuse)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_the_age_of_the_lock_decides(folder):
    folder.acquire()
    assert is_owned(folder.path)
    again = RunFolder.reopen(folder.path)
    with pytest.raises(RunFolderError, match=f"is being trained by process {os.getpid()} on host"):
        again.acquire()
    long_ago = time.time() - 600
    os.utime(folder.path / "owner.lock", (long_ago, long_ago))
    assert not is_owned(folder.path)
    again.acquire()
    again.release()
    assert not is_owned(folder.path)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_folders_are_made_all_the_same():
    assert [RunFolder.create("train_logs", "test").number for _ in range(3)] == [1, 2, 3]


# ---------------------------------------------------------------- run.yaml


def begin(folder, *command_line, **values):
    folder.begin_session(command_line=["train.py", *command_line], seed=1, **values)


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
        folder.update_info(status="x" * 10000)
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
    folder.update_info(a=0, b=0)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(folder.path / "run.yaml")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    reader.stdout.readline()
    for number in range(100):
        folder.update_info(a="x" * number * 50, b="x" * number * 50)
    (folder.path / "end").touch()
    _, complaint = reader.communicate(timeout=30)
    assert reader.returncode == 0, complaint.decode()


@pytest.mark.parametrize("content", ["[1, 2]", "text", "a: [", "a: 1\na: 2", b"\xff\xfe"])
def test_a_damaged_one_is_named(folder, content):
    path = folder.path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunFolderError, match=r"run\.yaml (is damaged|cannot be read)"):
        folder.read_info()


# ---------------------------------------------------------------- secrets

SECRETS = ["api_key", "apikey", "wandb_api_key", "API_KEY", "hub-api-key", "token", "hf_token", "password", "PASSWD"]


@pytest.mark.parametrize("key", SECRETS)
def test_values_of_secrets_are_masked_wherever_they_stand(key):
    value = {"tracker": [{key: "hidden", "url": "x"}], key: ["hidden"]}
    masked = mask_secrets(value)
    assert masked == {"tracker": [{key: "***", "url": "x"}], key: "***"}
    assert value["tracker"][0][key] == "hidden"


def test_what_is_no_secret_stays():
    value = {"num_tokens": 5, "tokenizer": "t", "key": 1, "api_key": None, "passwords_file": "x"}
    assert mask_secrets(value) == value


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["with", "tracker.api_key=hidden"], ["with", "tracker.api_key=***"]),
        (["--api-key=hidden", "a"], ["--api-key=***", "a"]),
        (["--token", "hidden", "b"], ["--token", "***", "b"]),
        (["--use-token", "--lr", "3"], ["--use-token", "--lr", "3"]),
        (["with", "t={acme: {api_key: hidden, n: 1}}"], ["with", "t={acme: {api_key: '***', n: 1}}"]),
        (["with", "t=[{password: 'hid den'}]"], ["with", "t=[{password: '***'}]"]),
        (["with", "a.num_tokens=5", "b=a=b", "c={d: 1e-3}", "e=[", "f="], None),
        (["token", "with", "model.width=3"], None),
    ],
)
def test_secrets_on_the_command_line_are_masked_and_nothing_else(given, kept):
    assert mask_command_line(given) == (given if kept is None else kept)


def test_no_file_of_a_run_holds_a_secret(folder, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "--password", "hidden"])
    folder.write_config(make_config({"tracker": {"api_key": "hidden"}, "list": [{"token": "hidden"}]}))
    begin(folder, "with", "tracker.api_key=hidden")
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert len(files) == 3 and not any("hidden" in path.read_text() for path in files)
    assert folder.read_info()["command"] == ["python", "train.py", "--password", "***"]


# ---------------------------------------------------------------- the configuration

VALUES = {
    "rate": 1e-5,
    "big": 1e30,
    "text": ["1e-3", "no", "12:30", "0o17", "0x1f", "1_000", "true", "null", "", "~", "1.", ".5", "2024-01-01", "<<"],
    "numbers": [0, -1, 2.5, float("inf"), float("-inf"), True, None],
    "ünï": "größe\nzwei: # x",
    "empty": [{}, []],
}


def test_the_configuration_is_read_back_as_it_was_by_any_reader(folder):
    """A string such as 1e-3 is a number in YAML 1.2 unless it is quoted, and 12:30 is one in YAML 1.1."""
    folder.write_config(make_config(VALUES))
    text = (folder.path / "config.yaml").read_text()
    assert parse_yaml(text, "config.yaml") == VALUES == yaml.safe_load(text)


def test_origins_stand_beside_the_configuration(folder):
    folder.write_config(make_config({"model": {"width": 3}}))
    assert yaml.safe_load((folder.path / "origins.yaml").read_text()) == {"model.width": "script"}


def test_what_is_neither_a_number_nor_a_string_is_described(folder):
    folder.write_config(make_config({"path": Path("a/b")}))
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == {"path": "a/b"}
    assert folder.write_config(make_config({"path": Path("a/b")})) == {}


def test_differences_to_the_last_time_are_told_by_their_keys(folder):
    first = {"model": {"width": 3, "depth": 2}, "list": [1, 2], "gone": 1, "section": {"a": 1}, "rate": 1e-5}
    assert folder.write_config(make_config(first)) == {}
    assert folder.write_config(make_config(first)) == {}
    second = {"model": {"width": 4, "depth": 2}, "list": [1, 3], "new": "x", "section": 5, "rate": 1e-5}
    assert folder.write_config(make_config(second)) == {
        "model.width": (3, 4),
        "list": ([1, 2], [1, 3]),
        "gone": (1, None),
        "section": ({"a": 1}, 5),
        "new": (None, "x"),
    }
    third = {"model": {"width": 4, "depth": 2}, "list": [1, 3], "new": "x", "section": 5, "other": {"a": {"b": 1}}}
    assert folder.write_config(make_config(third)) == {"rate": (1e-5, None), "other.a.b": (None, 1)}


def test_to_ask_for_a_run_to_be_continued_is_no_difference(folder):
    folder.write_config(make_config({"a": 1}))
    assert folder.write_config(make_config({"a": 1, "run": {"resume": "auto", "max_epochs": 3}})) == {
        "run.max_epochs": (None, 3)
    }


def test_a_secret_that_changed_is_no_difference_that_is_shown(folder):
    folder.write_config(make_config({"token": "one"}))
    assert folder.write_config(make_config({"token": "two"})) == {}
