"""The lock of the process that owns a run folder."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from blowtorch import RunFolderError
from blowtorch.folder import folder as module
from blowtorch.folder import lock as lock_module
from blowtorch.folder.folder import RunFolder
from blowtorch.folder.lock import is_owned

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
