"""Copies of a state in memory, and files of tensors and plain values."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from blowtorch import CheckpointError
from blowtorch.checkpoint.plain import find_unplain
from blowtorch.checkpoint.tensors import WarmCopies, read_tensors, write_tensors
from blowtorch.folder.manifest import HashedFile, checksum


def make_state():
    return {"weights": torch.arange(6.0).reshape(2, 3), "steps": [1, torch.tensor(2)], "pair": (3, "four")}


def test_a_copy_stays_as_it_was_while_training_goes_on():
    state = make_state()
    taken = WarmCopies().take(state)
    state["weights"].add_(1)
    state["steps"][1].add_(1)
    state["steps"].append(5)
    assert taken["weights"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert taken["steps"] == [1, torch.tensor(2)] and taken["pair"] == (3, "four")


def test_the_memory_of_a_copy_is_used_again():
    copies, state = WarmCopies(), make_state()
    places = [copies.take(state)["weights"].data_ptr() for _ in range(3)]
    assert len(set(places)) == 1


def test_a_tensor_that_has_grown_gets_memory_of_its_size():
    copies = WarmCopies()
    copies.take({"a": torch.zeros(2)})
    assert copies.take({"a": torch.ones(3)})["a"].tolist() == [1, 1, 1]
    assert copies.take({"a": torch.ones(3, dtype=torch.int8)})["a"].dtype == torch.int8


def test_what_is_shared_is_copied_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    taken = WarmCopies().take(model.state_dict())
    assert taken["0.weight"] is taken["1.weight"]
    assert taken["0.bias"] is not taken["1.bias"]


def test_empty_tensors_are_not_taken_for_one_another():
    taken = WarmCopies().take({"a": torch.zeros(0, 2), "b": torch.zeros(0, 3)})
    assert [taken[name].shape for name in "ab"] == [(0, 2), (0, 3)]


def test_the_layout_in_memory_is_kept():
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert WarmCopies().take([image])[0].stride() == image.stride()


def test_a_module_keeps_the_versions_of_its_parts():
    """Without them, torch would take this for a state of long ago, when there was no count of batches to be missing."""
    module = nn.BatchNorm1d(2)
    taken = WarmCopies().take(module.state_dict())
    del taken["num_batches_tracked"]
    with pytest.raises(RuntimeError, match="Missing key.*num_batches_tracked"):
        module.load_state_dict(taken)


def test_parameters_are_copied_without_their_graph():
    taken = WarmCopies().take({"a": nn.Parameter(torch.ones(2))})
    assert not taken["a"].requires_grad and type(taken["a"]) is torch.Tensor


def test_sparse_tensors_are_copied_too():
    sparse = torch.eye(3).to_sparse()
    copies = WarmCopies()
    for _ in range(2):
        assert torch.equal(copies.take([sparse])[0].to_dense(), torch.eye(3))


def test_what_was_written_is_read_and_its_checksum_was_taken_on_the_way(tmp_path):
    entry = write_tensors(make_state(), tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt")
    assert torch.equal(found["weights"], make_state()["weights"]) and found["pair"] == (3, "four")
    assert entry == {
        "size": (tmp_path / "a.pt").stat().st_size,
        "xxh3_128": checksum(tmp_path / "a.pt", "xxh3_128"),
    }


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from blowtorch.checkpoint.tensors import write_tensors

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for size in (0, 100, 5000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        write_tensors({"a": torch.zeros(1000), "b": torch.zeros(1000)}, Path(f"{size}.pt"))
    except OSError as error:
        print(size, error)
"""


def test_a_disk_that_refuses_more_is_named_and_not_where_in_the_file_that_was(tmp_path):
    told = subprocess.run([sys.executable, "-c", FULL], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert [line.split(" ", 1)[1] for line in told.splitlines()] == ["[Errno 27] File too large"] * 3


def test_a_large_block_is_written_whole(tmp_path):
    content = bytes(range(256)) * (100_000)
    with HashedFile(tmp_path / "a") as file:
        assert file.write(content) == len(content)
        entry = file.entry()
    assert (tmp_path / "a").read_bytes() == content
    assert entry["xxh3_128"] == checksum(tmp_path / "a", "xxh3_128")


class Payload:
    """What a stranger's checkpoint might hold."""

    def __reduce__(self):
        return (open, ("executed", "w"))


def test_a_strangers_file_cannot_run_code(tmp_path):
    for name, save in (
        ("zip.pt", torch.save),
        ("pickle.pt", lambda value, path: path.write_bytes(pickle.dumps(value))),
    ):
        save({"model": Payload()}, tmp_path / name)
        with pytest.raises(CheckpointError, match=f"{name} cannot be read as tensors and plain values: "):
            read_tensors(tmp_path / name)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"a": [1, (2.0, "x", None)]}, None),
        ({"a": {1, 2}}, "part['a'] is a set"),
        ([{"b": Payload}], "part[0]['b'] is a type"),
        (make_state(), None),
    ],
)
def test_what_cannot_be_stored_is_found_by_its_place(value, problem):
    assert find_unplain(value, "part") == problem
