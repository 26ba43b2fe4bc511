"""Files that are replaced whole and durably."""

import os
import stat
from pathlib import Path

import pytest

from blowtorch.folder.files import replace_files


def test_several_files_are_durable_before_they_are_seen_and_their_names_afterwards(tmp_path, monkeypatch):
    done = []

    def sync(descriptor):
        done.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def rename(source, target, replace=os.replace):
        done.append(Path(target).name)
        replace(source, target)

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    replace_files(tmp_path, {"a": "new", "b": "größe"})
    assert done == ["file", "file", "a", "b", "directory"]
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {"a": "new", "b": "größe"}


def test_a_full_disk_leaves_all_files_as_they_were(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        replace_files(tmp_path, {"a": "new", "b": "new"})
    assert (tmp_path / "a").read_text() == "old" and not (tmp_path / "b").exists()
