import json
import os
import signal
import subprocess
import sys
import uuid

import fsspec
import pytest
import torch
from blowtorch_fsspec import FsspecBackend
from moto.server import ThreadedMotoServer

from blowtorch import RunInfo, open_run
from blowtorch.testing import CheckpointBackendContract

SCRIPT = """
import json, os, signal, sys
import torch
from blowtorch import Run

run = Run(random_seed=0, command_line=["train.py"])
options = json.loads(sys.argv[1])
kill_at, stop_at = options.pop("kill_at", None), options.pop("stop_at", None)
inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
loader = torch.utils.data.DataLoader(inputs, 8, shuffle=True)
run.configure_optimizers(lambda model: torch.optim.Adam(model.parameters(), lr=0.01))

@run.train_step
def step(batch, model):
    return model(torch.nn.functional.dropout(batch, 0.1)).pow(2).mean()

@run.on("train_step_end")
def end(state):
    if state.step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    if state.step == stop_at and not state.is_resumed:
        os.kill(os.getpid(), signal.SIGTERM)

def train(**more):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    return model, run(model, loader, max_epochs=3, checkpoint_every="3 steps", progress=False, **options, **more)

model, result = train()
if result.status == "stopped":
    model, result = train(resume="auto")
torch.save(model.state_dict(), "weights.pt")
print(result.folder)
"""

DIVIDED = """
import json, os, socket, sys
import fsspec, torch
import torch.distributed.fsdp
from blowtorch import Run, open_run

url, options = json.loads(sys.argv[1])
backend = {"fsspec": {"url": url, "options": options}}

def train(run_name, max_steps, resume="never", **more):
    run = Run(random_seed=0, command_line=["train.py"])
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(inputs, 8, shuffle=True)
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    run.train_step(lambda batch, model: model(batch).pow(2).mean())
    model = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Tanh(), torch.nn.Linear(9, 1))
    said = {"progress": False, "checkpoint_every": "4 steps", "parallel": "fsdp", "run_name": run_name}
    result = run(model, loader, max_epochs=None, max_steps=max_steps, resume=resume, **said, **more)
    if os.environ["RANK"] == "0":
        open(f"{run_name}.txt", "w").write(str(result.folder))
    return model

def in_processes(size, work):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    children = []
    for rank in range(size):
        children.append(os.fork())
        if not children[-1]:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
            os.environ |= {name: str(value) for name, value in {**place, "MASTER_PORT": port}.items()}
            work()
            torch.distributed.destroy_process_group() if size > 1 else None
            os._exit(0)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * size

def spoil():
    files = fsspec.filesystem("s3", **options)
    (shard,) = [path for path in files.find(url) if "step-00000012" in path and "shard-00002-of-00003" in path]
    content = bytearray(files.cat_file(shard))
    content[len(content) // 2] ^= 1
    files.pipe_file(shard, bytes(content))

def compare():
    expected = train("straight", 20).state_dict()
    view = open_run(open("divided.txt").read(), checkpoint_backend=backend)
    model = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Tanh(), torch.nn.Linear(9, 1))
    for name, value in view.load_model(model, "latest").state_dict().items():
        assert (value - expected[name]).abs().max() <= 1e-6 * expected[name].abs().max(), name
    print([checkpoint.step for checkpoint in view.checkpoints], flush=True)  # a child that is ended writes nothing more

in_processes(3, lambda: train("divided", 12, checkpoint_backend=backend))
in_processes(1, spoil)
in_processes(2, lambda: train("divided", 20, resume=open("divided.txt").read(), checkpoint_backend=backend))
in_processes(1, compare)
"""


@pytest.fixture(scope="session")
def server():
    """A server that speaks the protocol of S3."""
    started = ThreadedMotoServer(port=0)
    started.start()
    host, port = started.get_host_and_port()
    yield f"http://{host}:{port}"
    started.stop()


@pytest.fixture
def location(request, tmp_path, server):
    """URL and options of a place that is empty."""
    if request.param == "local":
        return f"file://{tmp_path}/store", {}
    options = {"key": "a", "secret": "b", "endpoint_url": server}
    bucket = f"bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("s3", **options).mkdir(bucket)
    return f"s3://{bucket}/runs", options


class TestLocal(CheckpointBackendContract):
    def make_checkpoint_backend(self, tmp_path):
        return FsspecBackend(f"file://{tmp_path}/store")


def info(folder):
    return RunInfo(id="abc", name="brave-otter-3", folder=folder, own_folder=None, config={}, resumed=False)


@pytest.mark.parametrize("url", [f"memory://{uuid.uuid4().hex}"])
def test_what_is_published_comes_back(url, tmp_path):
    check_round_trip(FsspecBackend(url), tmp_path)


@pytest.mark.parametrize("location", ["s3"], indirect=True)
def test_what_is_published_to_s3_comes_back(location, tmp_path):
    check_round_trip(FsspecBackend(*location), tmp_path)


def check_round_trip(backend, tmp_path):
    backend.checkpoint_open(info(tmp_path))
    assert list(backend.checkpoint_list()) == []
    for number, name in enumerate(["step-00000010", "step-00000002", "step-00000010"]):
        folder = tmp_path / f"given-{number}"
        (folder / "inner").mkdir(parents=True)
        (folder / "model.pt").write_bytes(b"weights" * (number + 1))
        (folder / "inner" / "more.txt").write_text(str(number))
        backend.checkpoint_publish(name, folder)
    assert list(backend.checkpoint_list()) == ["step-00000002", "step-00000010"]
    some, every = tmp_path / "some", tmp_path / "every"
    some.mkdir()
    every.mkdir()
    assert backend.checkpoint_fetch("step-00000010", some, ["model.pt"]) == some
    assert [path.name for path in some.rglob("*")] == ["model.pt"]
    backend.checkpoint_fetch("step-00000010", every, None)
    assert (every / "model.pt").read_bytes() == b"weights" * 3
    assert (every / "inner" / "more.txt").read_text() == "2"
    backend.checkpoint_delete("step-00000010")
    backend.checkpoint_delete("step-00000010")
    assert list(backend.checkpoint_list()) == ["step-00000002"]
    with pytest.raises(FileNotFoundError, match="no checkpoint 'step-00000010'"):
        backend.checkpoint_fetch("step-00000010", some, None)


def train(folder, **options):
    return run_script(folder, SCRIPT, options)


def run_script(folder, script, options):
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(script)
    environment = {**os.environ, "AWS_EC2_METADATA_DISABLED": "true"}
    return subprocess.run(
        [sys.executable, "train.py", json.dumps(options)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
    )


@pytest.mark.parametrize("location", ["local", "s3"], indirect=True)
def test_a_killed_run_goes_on_from_there_to_the_same_bits(location, tmp_path):
    url, options = location
    backend = {"fsspec": {"url": url, "options": options}}
    straight = train(tmp_path / "straight")
    assert straight.returncode == 0, straight.stderr
    killed = train(tmp_path / "killed", checkpoint_backend=backend, kill_at=14)
    assert killed.returncode == -signal.SIGKILL
    resumed = train(tmp_path / "killed", checkpoint_backend=backend, resume="auto")
    compare(tmp_path, straight, resumed)
    folder = tmp_path / "killed" / resumed.stdout.split()[-1]
    view = open_run(folder, checkpoint_backend=backend if "secret" in options else None)
    assert [checkpoint.step for checkpoint in view.checkpoints] == [21, 24]
    loaded = view.load_model(torch.nn.Linear(4, 1), "latest").state_dict()
    trained = torch.load(tmp_path / "killed" / "weights.pt")
    assert all(torch.equal(trained[name], loaded[name]) for name in trained)


@pytest.mark.parametrize("location", ["s3"], indirect=True)
def test_the_pieces_of_three_processes_are_read_by_two_and_one_that_is_damaged_is_found(location, tmp_path):
    done = run_script(tmp_path, DIVIDED, location)
    assert done.returncode == 0, done.stderr
    damaged = "checkpoint step-00000012 is damaged (shard-00002-of-00003.pt has another"
    assert done.stderr.count(damaged) == 1, "the first process says it for all"
    assert done.stdout.split("\n")[-2] == "[16, 20]"


def test_a_stopped_run_goes_on_from_memory_to_the_same_bits(tmp_path):
    """In one process: what is in memory is gone with it."""
    straight = train(tmp_path / "straight")
    resumed = train(tmp_path / "killed", checkpoint_backend={"fsspec": {"url": "memory://runs"}}, stop_at=14)
    compare(tmp_path, straight, resumed)


def compare(tmp_path, straight, resumed):
    """Weights and recorded metrics of the two runs are the same, and only the second went on from a checkpoint."""
    assert resumed.returncode == 0, resumed.stderr
    first, second = (torch.load(tmp_path / name / "weights.pt") for name in ("straight", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = []
    for done, name in ((straight, "straight"), (resumed, "killed")):
        view = open_run(tmp_path / name / done.stdout.split()[-1])
        lines.append([(each["step"], each["metrics"]) for each in view.events() if each["event"] == "metrics"])
        assert any(each["event"] == "resume" for each in view.events()) == (name == "killed")
    assert lines[0] == lines[1]
