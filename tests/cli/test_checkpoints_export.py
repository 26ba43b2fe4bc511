"""`blowtorch checkpoints export`: what is read from the file is what the run had, and nothing half is left."""

import json
import shutil
import struct
import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from blowtorch import Run, open_run
from blowtorch_cli.safetensors_file import Entry, write_safetensors
from tests.core.parallel.divided import Blocks
from tests.core.parallel.processes import finish, fork

CODE = "from blowtorch_cli.checkpoints import checkpoints; checkpoints(prog_name='blowtorch checkpoints')"


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 3, bias=False)
        self.tied = self.last.weight
        self.register_buffer("table", torch.randn(5, 2).bfloat16())

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    run = Run(random_seed=1, command_line=[])

    @run.train_step
    @run.validate_step
    def step(batch, model):
        return nn.functional.mse_loss(model(batch[0]), batch[0])

    @run.configure_optimizers
    def configure_optimizers(model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    data = DataLoader(TensorDataset(torch.randn(12, 3)), batch_size=4)
    folder = str(tmp_path_factory.mktemp("runs"))
    return run(Model(), data, data, max_epochs=2, save_path=folder, progress=False)


def read(path):
    """The header, the tensors by the library, and the metadata as the library gives it."""
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_the_library_reads_the_weights_of_the_checkpoint(blowtorch, result, tmp_path):
    path = tmp_path / "model.safetensors"
    done = blowtorch("export", str(result.folder), "--which", "latest", "--to", str(path), code=CODE)
    assert done.returncode == 0, done.stderr
    view = open_run(result.folder)
    assert done.stdout == f"step-00000006 of {view.name}: 9 tensors, {path.stat().st_size} bytes in {path}\n"
    tensors, metadata = read(path)
    assert metadata == {"format": "pt", "run": view.name, "checkpoint": "step-00000006"}
    expected = view.load_model(Model(), "latest").state_dict()
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert tensors[name].dtype == value.dtype and torch.equal(tensors[name], value), name
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["--which", "step-4", "--to", "new.safetensors"],
            "has no checkpoint 'step-4'. There are step-00000003, step-00000006",
        ),
        (["--to", "old.safetensors"], "is there already: give another name, or --overwrite"),
        (["--to", "model.pt"], "expected a file FILE.safetensors"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(blowtorch, result, tmp_path, words, problem):
    (tmp_path / "old.safetensors").touch()
    *others, name = words
    done = blowtorch("export", str(result.folder), *others, str(tmp_path / name), code=CODE)
    assert done.returncode != 0 and problem in " ".join(done.stderr.split()), done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["old.safetensors"]
    assert (tmp_path / "old.safetensors").read_bytes() == b""


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    """The folder of a run of two processes, each of which has written its pieces of the model."""
    folder = tmp_path_factory.mktemp("divided")
    words = ["-m", "tests.core.parallel.divided", folder, "of_blocks"]
    for code, _, problem in finish(fork(words, 2, TEST_PARALLEL="fsdp")):
        assert code == 0, problem
    return next((folder / "of_blocks" / "runs").iterdir())


def test_a_model_that_was_divided_among_processes_is_exported_whole(blowtorch, divided, tmp_path):
    path = tmp_path / "model.safetensors"
    done = blowtorch("export", str(divided), "--to", str(path), code=CODE)
    assert done.returncode == 0, done.stderr
    expected = open_run(divided).load_model(Blocks()).state_dict()
    tensors, _ = read(path)
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert tensors[name].dtype == value.dtype and torch.equal(tensors[name], value), name


def test_a_divided_tensor_is_in_memory_only_while_it_is_used(divided):
    with open_run(divided).stored_weights("latest") as stored:
        assert stored.outlines.keys() == stored.tensors.keys() == Blocks().state_dict().keys()
        for name, outline in stored.outlines.items():
            tensor = stored.tensors[name]
            assert (outline.shape, outline.dtype) == (tensor.shape, tensor.dtype)
            assert outline.is_meta == (name != "scale"), name
            if outline.is_meta:
                reference = weakref.ref(tensor)
                del tensor
                assert reference() is None, name


def test_a_damaged_shard_is_named_and_nothing_is_exported(blowtorch, divided, tmp_path):
    folder = shutil.copytree(divided, tmp_path / "run")
    shard = open_run(folder).checkpoint("latest").path / "shard-00002-of-00002.pt"
    shard.write_bytes(shard.read_bytes()[:-1])
    path = tmp_path / "model.safetensors"
    done = blowtorch("export", str(folder), "--which", "latest", "--to", str(path), code=CODE)
    assert done.returncode == 1 and "is damaged: shard-00002-of-00002.pt has" in " ".join(done.stderr.split())
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def entries_of(**tensors):
    return [Entry(name, tuple(value.shape), value.dtype, partial(give, value)) for name, value in tensors.items()]


def give(value):
    return value


def test_every_dtype_and_shape_comes_back_aligned(tmp_path):
    tensors = {
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "byte": torch.tensor([[1], [2]], dtype=torch.uint8),
        "yes": torch.tensor([True, False, True]),
        "ünïcode": torch.tensor([1, -2], dtype=torch.int16),
        "eighth": torch.tensor([0.5, 2.0]).to(torch.float8_e4m3fn),
    }
    path = tmp_path / "all.safetensors"
    size = write_safetensors(path, entries_of(**tensors), {})
    assert size == path.stat().st_size
    found, _ = read(path)
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].shape == value.shape and found[name].dtype == value.dtype
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)), name
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    for name, told in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            assert told["data_offsets"][0] % tensors[name].dtype.itemsize == 0


def test_tensors_are_loaded_one_at_a_time_in_the_order_of_the_file(tmp_path):
    loaded = []

    def load(name):
        written = (tmp_path / ".tmp-some.safetensors").stat().st_size
        loaded.append((name, written))
        return torch.ones(100_000)

    entries = [Entry(name, (100_000,), torch.float32, partial(load, name)) for name in "cab"]
    write_safetensors(tmp_path / "some.safetensors", entries, {})
    assert [name for name, _ in loaded] == ["a", "b", "c"]
    assert [round(written / 400_000) for _, written in loaded] == [0, 1, 2]


def test_a_tensor_that_cannot_be_loaded_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "some.safetensors"
    path.write_text("before")

    def fail():
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_safetensors(path, [*entries_of(a=torch.ones(3)), Entry("b", (1,), torch.float32, fail)], {})
    assert [file.name for file in tmp_path.iterdir()] == ["some.safetensors"] and path.read_text() == "before"
