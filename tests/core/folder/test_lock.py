"""The lock of the process that owns a run folder."""

import errno
import fcntl
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from blowtorch import RunFolderError
from blowtorch.folder.folder import RunFolder
from blowtorch.folder.lock import is_owned

OWNER = """
import os, sys, time
from blowtorch.folder.folder import RunFolder
folder = RunFolder.reopen(sys.argv[1])
folder.lock.acquire()
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
            folder.lock.acquire()
        assert is_owned(folder.path)
    finally:
        kill(owner)
    assert not is_owned(folder.path)
    folder.lock.acquire()
    folder.lock.release()


def test_the_lock_of_a_killed_owner_is_free_though_its_child_lives(folder):
    """A loader's workers are forked, and live on for a while."""
    owner, (_, child) = start_owner(folder, "forks")
    try:
        time.sleep(0.1)  # the child has begun
        kill(owner)
        os.kill(child, 0)
        assert not is_owned(folder.path)
        folder.lock.acquire()
    finally:
        os.kill(child, signal.SIGKILL)
    folder.lock.release()


def test_a_forked_child_that_ends_leaves_the_lock_to_the_owner(folder):
    folder.lock.acquire()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert is_owned(folder.path)
    folder.lock.release()
    assert not is_owned(folder.path)


def test_a_program_that_the_owner_starts_does_not_hold_the_lock(folder):
    folder.lock.acquire()
    for _ in range(20):
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False):
            folder.lock.release()
            assert not is_owned(folder.path)
        folder.lock.acquire()
    folder.lock.release()


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
    fcntl.flock(looks, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda seconds: os.close(looks))
    folder.lock.acquire()
    folder.lock.release()


def test_to_look_takes_no_right_to_write(folder, monkeypatch):
    folder.lock.acquire()
    opened = []
    monkeypatch.setattr(os, "open", lambda path, flags, open=os.open: opened.append(flags) or open(path, flags))
    assert is_owned(folder.path)
    assert opened == [os.O_RDONLY]
    monkeypatch.undo()
    folder.lock.release()


def test_the_lock_tells_host_process_and_since_when(folder):
    folder.lock.acquire()
    owner = json.loads((folder.path / "owner.lock").read_text())
    assert (owner["host"], owner["process"]) == (socket.gethostname(), os.getpid())
    assert owner["since"].startswith("20")
    folder.lock.release()
    assert (folder.path / "owner.lock").read_text() == ""


WITHOUT_FLOCK = """
import sys, filelock
sys.modules["fcntl"] = None
from blowtorch import RunFolderError
from blowtorch.folder.folder import RunFolder
from blowtorch.folder.lock import is_owned
folder = RunFolder.create("train_logs", "test")
again = RunFolder.reopen(folder.path)
assert is_owned(folder.path)
try:
    again.lock.acquire()
except RunFolderError as error:
    print(error)
folder.lock.release()
assert not is_owned(folder.path)
again.lock.acquire()
assert RunFolder.create("train_logs", "test").number == 2
"""


def test_where_python_has_no_flock_filelock_locks_the_same_file():
    """So it is on Windows; here the library comes with torch."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_FLOCK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "test-1 is being trained by process" in done.stdout


def test_a_lock_given_back_can_be_taken_again(folder):
    for _ in range(3):
        folder.lock.acquire()
        folder.lock.release()
    folder.lock.release()
    assert not is_owned(folder.path)


def test_a_beat_touches_the_lock_now_and_then(folder, monkeypatch):
    lock = folder.path / "owner.lock"
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    os.utime(lock, (1, 1))
    folder.lock.beat()
    assert lock.stat().st_mtime == 1
    folder.lock.acquire()
    for seconds, is_touched in ((0, True), (1, False), (31, True)):
        os.utime(lock, (1, 1))
        clock[0] += seconds
        folder.lock.beat()
        assert (lock.stat().st_mtime > 1) is is_touched
    folder.lock.release()


def test_a_beat_that_cannot_be_written_ends_no_training(folder, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    folder.lock.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", refuse)
        patch.setattr(os, "truncate", refuse)
        folder.lock.beat()
        folder.lock.release()
    assert not is_owned(folder.path)


def test_a_lock_that_cannot_be_written_is_named(folder):
    (folder.path / "owner.lock").unlink()
    (folder.path / "owner.lock").mkdir()
    with pytest.raises(RunFolderError, match="its lock cannot be written: .*owner.lock"):
        folder.lock.acquire()


def test_a_new_run_has_an_owner_before_others_can_see_it(monkeypatch):
    seen, root = [], Path("train_logs")
    monkeypatch.setattr(
        os, "fsync", lambda _: seen.extend((is_owned(path), [*path.glob("run.yaml")]) for path in root.iterdir())
    )
    made = RunFolder.create(root, "test")
    assert seen[0] == (True, []) and all(has_owner for has_owner, _ in seen)
    assert json.loads((made.path / "owner.lock").read_text())["process"] == os.getpid()
    made.lock.release()


def test_a_new_run_that_cannot_be_written_leaves_no_folder(monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RunFolderError, match="No space left on device"):
        RunFolder.create("train_logs", "test")
    assert list(Path("train_logs").iterdir()) == []


def test_a_folder_that_nobody_uses_any_more_is_not_kept(folder):
    """What is registered to be done in forked children cannot be taken back."""
    again = RunFolder.reopen(folder.path)
    again.lock.acquire()
    again.lock.release()
    left = weakref.ref(again), weakref.ref(again.lock)
    del again
    gc.collect()
    assert [each() for each in left] == [None, None]


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def without_locks(request, monkeypatch):
    """A file system that has no locks."""

    def refuse(descriptor, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_the_age_of_the_lock_decides(folder):
    folder.lock.acquire()
    assert is_owned(folder.path)
    again = RunFolder.reopen(folder.path)
    with pytest.raises(RunFolderError, match=f"is being trained by process {os.getpid()} on host"):
        again.lock.acquire()
    long_ago = time.time() - 600
    os.utime(folder.path / "owner.lock", (long_ago, long_ago))
    assert not is_owned(folder.path)
    again.lock.acquire()
    again.lock.release()
    assert not is_owned(folder.path)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_folders_are_made_all_the_same():
    assert [RunFolder.create("train_logs", "test").number for _ in range(3)] == [1, 2, 3]
