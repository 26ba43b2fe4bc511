"""What a manifest says of a checkpoint, and what it finds when the files are no longer those."""

import hashlib
import json
import math

import pytest
import xxhash

from blowtorch import CheckpointError
from blowtorch.folder.manifest import checkpoint_name, read_manifest, verify, write_manifest


@pytest.fixture
def directory(tmp_path):
    """A checkpoint of two files; the larger has more than one block."""
    (tmp_path / "model.pt").write_bytes(bytes(range(256)) * 8192)
    (tmp_path / "training.pt").write_bytes(b"state")
    write_manifest(tmp_path, 120, 3, {"val/loss": 0.5})
    return tmp_path


@pytest.fixture
def change(directory):
    """Rewrites the manifest."""

    def change(**changes):
        path = directory / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def test_names_sort_like_their_steps():
    names = [checkpoint_name(step) for step in (0, 9, 10, 99_999_999)]
    assert names == sorted(names) and names[2] == "step-00000010"


def test_what_was_written_is_read(directory):
    manifest = read_manifest(directory)
    assert (manifest.step, manifest.epoch, manifest.metrics) == (120, 3, {"val/loss": 0.5})
    assert manifest.files["training.pt"] == {"size": 5, "xxh3_128": xxhash.xxh3_128(b"state").hexdigest()}
    assert verify(directory) == []


def test_the_file_itself_is_strict_json_with_the_promised_keys(directory):
    write_manifest(directory, 1, 1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    content = json.loads((directory / "manifest.json").read_text(), parse_constant=pytest.fail)
    assert list(content) == ["format", "step", "epoch", "metrics", "files"]
    assert content["metrics"] == {"a": "nan", "b": "inf", "c": "-inf"}
    metrics = read_manifest(directory).metrics
    assert math.isnan(metrics["a"]) and (metrics["b"], metrics["c"]) == (math.inf, -math.inf)


def test_writing_again_does_not_count_the_manifest_among_the_files(directory):
    write_manifest(directory, 120, 3, {})
    assert sorted(read_manifest(directory).files) == ["model.pt", "training.pt"]


def test_a_missing_file_is_found(directory):
    (directory / "model.pt").unlink()
    [problem] = verify(directory)
    assert problem.startswith("model.pt cannot be read: ")


def test_a_file_that_is_cut_short_is_found(directory):
    (directory / "training.pt").write_bytes(b"sta")
    assert verify(directory) == ["training.pt has 3 bytes instead of 5"]


@pytest.mark.parametrize("position", [0, 1 << 20, (1 << 21) - 1])
def test_a_single_flipped_bit_is_found(directory, position):
    content = bytearray((directory / "model.pt").read_bytes())
    content[position] ^= 1
    (directory / "model.pt").write_bytes(content)
    assert verify(directory) == ["model.pt has another xxh3_128 checksum than was written"]


def test_every_damaged_file_is_named(directory):
    (directory / "model.pt").write_bytes(b"")
    (directory / "training.pt").unlink()
    assert [problem.split()[0] for problem in verify(directory)] == ["model.pt", "training.pt"]


def test_only_the_files_that_are_asked_for_are_looked_at(directory):
    (directory / "training.pt").unlink()
    assert verify(directory, ["model.pt"]) == []
    assert verify(directory, ["other.pt"]) == ["the manifest names no other.pt"]


def test_a_directory_without_a_manifest_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="manifest.json cannot be read"):
        read_manifest(tmp_path)
    [problem] = verify(tmp_path)
    assert "manifest.json cannot be read" in problem


@pytest.mark.parametrize("known", [2, "1", None])
def test_another_format_is_refused_by_its_number(directory, change, known):
    change(format=known)
    with pytest.raises(CheckpointError, match=f"has format {known!r}, and this version reads format 1"):
        read_manifest(directory)
    assert len(verify(directory)) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', "{}", '{"format": 1}'])
def test_a_manifest_that_is_none_is_refused(directory, content):
    (directory / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match="manifest.json is damaged"):
        read_manifest(directory)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"size": 5}, "the manifest has no checksum of training.pt"),
        ({"sha256": "00"}, "what the manifest says of training.pt is damaged: KeyError('size')"),
        (None, "what the manifest says of training.pt is damaged: TypeError"),
        ("size", "what the manifest says of training.pt is damaged: ValueError"),
        ({"size": 5, "crc99": "00"}, "training.pt has a checksum of an unknown kind, 'crc99'"),
    ],
)
def test_what_cannot_be_checked_is_not_taken_for_good(directory, change, said, problem):
    change(files={"training.pt": said})
    [found] = verify(directory)
    assert found.startswith(problem)


def test_a_checksum_of_another_known_kind_is_checked(directory, change):
    digest = hashlib.sha512(b"state").hexdigest()
    change(files={"training.pt": {"size": 5, "sha512": digest}})
    assert verify(directory) == []
    (directory / "training.pt").write_bytes(b"STATE")
    assert verify(directory) == ["training.pt has another sha512 checksum than was written"]
