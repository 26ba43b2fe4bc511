"""The backend that keeps checkpoints in the run folder, and what a kill leaves behind."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blowtorch import CheckpointError, RunInfo
from blowtorch.builtin.local import LocalBackend

NUM_FILES = 3


def info(folder):
    return RunInfo(id="1", name="run-1", folder=folder, own_folder=None, config={}, resumed=False)


@pytest.fixture
def backend(tmp_path):
    return open_backend(tmp_path)


def open_backend(folder):
    backend = LocalBackend()
    backend.checkpoint_open(info(folder))
    return backend


def fill(directory, content):
    directory.mkdir(parents=True)
    for index in range(NUM_FILES):
        (directory / f"{index}.pt").write_text(str(content))
    (directory / "manifest.json").write_text(json.dumps(content))
    return directory


def publish(backend, name, content="new"):
    backend.checkpoint_publish(name, fill(backend.folder / f".tmp-{name}", content))


def read(directory):
    """The content of a checkpoint, all of whose files must say the same."""
    content = json.loads((directory / "manifest.json").read_text())
    for index in range(NUM_FILES):
        assert (directory / f"{index}.pt").read_text() == str(content)
    return content


def fetch(backend, name):
    return backend.checkpoint_fetch(name, Path("unused"), None)


def test_what_was_published_is_fetched_from_its_own_place(backend, tmp_path):
    publish(backend, "step-00000001")
    directory = fetch(backend, "step-00000001")
    assert directory == tmp_path / "checkpoints" / "step-00000001"
    assert read(directory) == "new"


def test_publishing_moves_the_directory_and_leaves_nothing_beside(backend):
    publish(backend, "step-00000001")
    assert [path.name for path in backend.folder.iterdir()] == ["step-00000001"]


def test_a_name_that_exists_is_replaced(backend):
    publish(backend, "step-00000001", "old")
    publish(backend, "step-00000001", "new")
    assert read(fetch(backend, "step-00000001")) == "new"
    assert [path.name for path in backend.folder.iterdir()] == ["step-00000001"]


def test_a_replacement_that_fails_leaves_the_old_one(backend):
    publish(backend, "step-00000001", "old")
    with pytest.raises(FileNotFoundError, match="missing"):
        backend.checkpoint_publish("step-00000001", backend.folder / ".tmp-missing")
    assert read(fetch(backend, "step-00000001")) == "old"
    assert backend.checkpoint_list() == ["step-00000001"]


def test_a_directory_elsewhere_on_the_same_disk_is_moved(backend, tmp_path):
    directory = fill(tmp_path / "made" / "elsewhere", "new")
    backend.checkpoint_publish("step-00000001", directory)
    assert read(fetch(backend, "step-00000001")) == "new"
    assert not directory.exists()


@pytest.mark.skipif(
    not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == Path(__file__).stat().st_dev,
    reason="needs a second file system",
)
def test_a_directory_on_another_file_system_is_copied_first(backend, monkeypatch):
    """A copy can be cut short, so it must be made under a name that is never listed."""
    directory = fill(Path("/dev/shm") / f"blowtorch-test-{os.getpid()}", "new")
    copies = []
    monkeypatch.setattr(
        shutil,
        "copytree",
        lambda source, target, copytree=shutil.copytree: copies.append(target) or copytree(source, target),
    )
    try:
        backend.checkpoint_publish("step-00000001", directory)
    finally:
        shutil.rmtree(directory)
    assert read(fetch(backend, "step-00000001")) == "new"
    assert [(path.parent, path.name.startswith(".tmp-")) for path in copies] == [(backend.folder, True)]
    assert [path.name for path in backend.folder.iterdir()] == ["step-00000001"]


def test_the_list_is_in_ascending_order_of_steps_however_many_digits_they_have(backend):
    names = ["step-00000002", "step-99999999", "step-100000000"]
    for name in reversed(names):
        publish(backend, name)
    assert backend.checkpoint_list() == names


def test_only_steps_with_a_manifest_are_listed(backend):
    (backend.folder / "step-00000001").mkdir()
    (backend.folder / "latest").write_text("step-00000001")
    fill(backend.folder / "aside-step-00000002", "later")
    fill(backend.folder / ".tmp-step-00000003", "unfinished")
    assert backend.checkpoint_list() == []


def test_a_deleted_one_is_gone(backend):
    publish(backend, "step-00000001")
    backend.checkpoint_delete("step-00000001")
    assert backend.checkpoint_list() == []
    assert list(backend.folder.iterdir()) == []


def test_a_deletion_that_is_cut_short_leaves_nothing_that_is_listed(backend, tmp_path, monkeypatch):
    publish(backend, "step-00000001")

    def refuse(path):
        raise PermissionError("not today")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(PermissionError, match="not today"):
            backend.checkpoint_delete("step-00000001")
    assert backend.checkpoint_list() == []
    assert list(open_backend(tmp_path).folder.iterdir()) == []


def test_deleting_a_missing_one_is_no_error(backend):
    backend.checkpoint_delete("step-00000001")


def test_fetching_a_missing_one_is_an_error(backend):
    with pytest.raises(FileNotFoundError, match="no checkpoint 'step-00000001'"):
        fetch(backend, "step-00000001")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../step-1", "a/b", "/tmp/x", ".tmp-a", "step-1/", "a\0b", "a b", "-x"]
)
def test_a_name_that_is_no_simple_file_name_is_refused(backend, name):
    with pytest.raises(CheckpointError, match="expected a name"):
        fetch(backend, name)
    with pytest.raises(CheckpointError, match="expected a name"):
        backend.checkpoint_publish(name, backend.folder)
    with pytest.raises(CheckpointError, match="expected a name"):
        backend.checkpoint_delete(name)


def test_opening_clears_away_what_a_killed_process_left(backend, tmp_path):
    publish(backend, "step-00000001")
    for name in (".tmp-step-00000002-x", ".deleted-step-00000003-x", ".old-step-00000001"):
        fill(backend.folder / name, "left over")
    (backend.folder / ".tmp-latest").write_text("step-0")
    (backend.folder / "latest").write_text("step-00000001")
    again = open_backend(tmp_path)
    assert sorted(path.name for path in again.folder.iterdir()) == ["latest", "step-00000001"]
    assert read(fetch(again, "step-00000001")) == "new"


def test_opening_puts_back_what_was_about_to_be_replaced(backend, tmp_path):
    fill(backend.folder / ".old-step-00000001", "old")
    fill(backend.folder / ".tmp-step-00000001", "new")
    again = open_backend(tmp_path)
    assert [path.name for path in again.folder.iterdir()] == ["step-00000001"]
    assert read(fetch(again, "step-00000001")) == "old"


# ---------------------------------------------------------------- killed

PUBLISHER = """
import itertools, json, os, signal, sys
from pathlib import Path
from blowtorch import RunInfo
from blowtorch.builtin.local import LocalBackend

def write(path, text):
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())

backend = LocalBackend()
info = {"id": "1", "name": "run-1", "own_folder": None, "config": {}, "resumed": False}
backend.checkpoint_open(RunInfo(folder=Path(sys.argv[1]), **info))
deadly = int(sys.argv[2])  # die just before so many renames; never, if 0

def rename(self, target, rename=Path.rename):
    global deadly
    deadly -= 1
    if deadly == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

Path.rename = rename
for content in itertools.count():
    name = f"step-{content % 3:08d}"
    directory = backend.folder / f".tmp-{name}-{content}"
    directory.mkdir()
    for index in range(3):
        write(directory / f"{index}.pt", str(content))
    write(directory / "manifest.json", str(content))
    backend.checkpoint_publish(name, directory)
    print(content, flush=True)
    if content % 7 == 6:
        backend.checkpoint_delete("step-00000009")
        extra = backend.folder / ".tmp-extra"
        extra.mkdir()
        for index in range(3):
            write(extra / f"{index}.pt", "9")
        write(extra / "manifest.json", "9")
        backend.checkpoint_publish("step-00000009", extra)
"""


def start_publisher(folder, deadly=0):
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(folder), str(deadly)], stdout=subprocess.PIPE, text=True
    )


def check_folder(folder, published):
    """Everything listed is complete, and no name that was ever published is lost or older than it was."""
    backend = open_backend(folder)
    newest = {f"step-{content % 3:08d}": content for content in published}
    listed = backend.checkpoint_list()
    assert set(newest) <= set(listed)
    for name in listed:
        content = read(fetch(backend, name))
        assert content >= newest.get(name, 0)
    assert all(path.name.startswith("step-") for path in backend.folder.iterdir())


@pytest.mark.parametrize("deadly", range(1, 12))
def test_a_kill_just_before_any_rename_leaves_complete_checkpoints(tmp_path, deadly):
    """The fourth to sixth rename are those of the first replacement."""
    publisher = start_publisher(tmp_path, deadly)
    output, _ = publisher.communicate(timeout=60)
    assert publisher.returncode == -signal.SIGKILL
    check_folder(tmp_path, [int(line) for line in output.split()])


def test_a_publisher_killed_at_random_times_never_leaves_half_a_checkpoint(tmp_path):
    chance = random.Random(0)
    for _ in range(12):
        publisher = start_publisher(tmp_path)
        published = [int(publisher.stdout.readline())]
        time.sleep(chance.uniform(0, 0.1))
        publisher.send_signal(signal.SIGKILL)
        published += [int(line) for line in publisher.stdout.read().split("\n")[:-1]]
        publisher.wait()
        publisher.stdout.close()
        check_folder(tmp_path, published[-3:])
