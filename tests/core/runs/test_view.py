"""Reading the folders of runs: without torch, and whatever was left behind."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from blowtorch import BlowtorchWarning, CheckpointError, RunFolderError, find_runs, open_run
from blowtorch.config.config import load_config
from blowtorch.folder.folder import RunFolder
from blowtorch.folder.manifest import write_manifest
from blowtorch.runs.view import find_newest


@pytest.fixture
def folder():
    """The folder of a run that nobody trains."""
    made = RunFolder.create("train_logs", "test")
    made.lock.release()
    return made


@pytest.fixture
def trained(make_run, net, loader):
    """A finished run with checkpoints, and the model that it left."""
    run = make_run(config={"model": {"width": 8}})
    result = run(net, loader, loader, max_epochs=3, log_every="2 steps", keep_last=3, progress=False)
    return result


def record(folder, *events):
    text = "".join(json.dumps(event) + "\n" for event in events)
    folder.record.write_text(text)
    return open_run(folder.path)


def metrics(step, **values):
    return {"event": "metrics", "step": step, "epoch": 1, "time": 1.0, "metrics": values}


def save(folder, step, content=b"weights", **metrics):
    directory = folder.checkpoints / f"step-{step:08d}"
    directory.mkdir()
    (directory / "model.pt").write_bytes(content)
    write_manifest(directory, step, 1, metrics)
    return directory


# ---------------------------------------------------------------- a real run

READ = """
import sys
from blowtorch import find_runs, open_run
[run] = find_runs("train_logs")
run = open_run(run.path)
print(run.status, run.config["model.width"], len(run.checkpoints), run.checkpoint("best").step, run.id)
found = run.metrics()
print(sorted(found), found["train/loss"].steps.tolist())
assert "torch" not in sys.modules
"""


def test_a_run_is_read_without_torch(trained):
    done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == f"finished 8 3 {trained.best.step} {open_run(trained.folder).id}"
    assert second == "['lr', 'train/loss', 'train_epoch/loss', 'val/loss'] " + str(list(range(2, 25, 2)))


def test_a_run_says_what_it_is(trained):
    run = open_run(trained.folder)
    assert (run.path, run.name, run.number) == (trained.folder, trained.folder.name[18:], 1)
    assert repr(run) == f"<RunView {run.name} finished>"
    assert run.info["checkpoint_metric"] == "val/loss"


def test_the_best_and_the_latest_weights_come_back(trained, net):
    run = open_run(trained.folder)
    other = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 1))
    assert run.load_model(other, "latest") is other
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(other.parameters(), net.parameters(), strict=True))
    best = torch.load(trained.best.path / "model.pt", weights_only=True)
    run.load_model(other)
    assert all(torch.equal(value, best[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
def test_damaged_weights_are_never_loaded(trained, net, damage):
    path = trained.best.path / "model.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[:-1])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"step-\d+ is damaged: model\.pt "):
        open_run(trained.folder).load_model(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_weights_of_another_model_are_refused(trained):
    with pytest.raises(CheckpointError, match=r"step-\d+ has no tensor "):
        open_run(trained.folder).load_model(nn.Linear(4, 1))


# ---------------------------------------------------------------- opening


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="'.*' is no run folder: it holds no run.yaml"):
        open_run(tmp_path)
    with pytest.raises(RunFolderError, match="'missing' is no run folder"):
        open_run("missing")


def test_runs_are_found_newest_first_and_other_things_left_out():
    names = [RunFolder.create("train_logs", name).name for name in ("b", "a", "c")]
    for number in range(4, 12):
        names.append(RunFolder.create("train_logs", "later").name)
        assert names[-1] == f"later-{number}"
    Path("train_logs/notes").mkdir()
    Path("train_logs/file").touch()
    assert [run.name for run in find_runs()] == names[::-1]


def test_where_there_is_no_folder_there_are_no_runs():
    assert find_runs("missing") == []


@pytest.mark.parametrize("text", ["", "status: [", "status: finished\n"])
def test_a_damaged_run_is_left_out_of_the_list_with_a_warning(trained, text):
    damaged = trained.folder.parent / "26-01-01_00-00-00_bad-9"
    damaged.mkdir()
    (damaged / "run.yaml").write_text(text)
    with pytest.warns(BlowtorchWarning, match=r"bad-9.*run\.yaml.*; the run is left out"):
        assert [run.name for run in find_runs()] == [open_run(trained.folder).name]


def test_the_newest_run_of_a_name_or_of_a_script_is_found():
    for name, script in (("a", "one.py"), ("a-b", "two.py"), ("a", "one.py"), ("b", "two.py")):
        RunFolder.create("train_logs", name, script=script)
    assert find_newest("train_logs", "a", "two.py").number == 3
    assert find_newest("train_logs", "a-b", "").number == 2
    assert find_newest("train_logs", None, "one.py").number == 3
    assert find_newest("train_logs", None, "other.py") is None
    assert find_newest("train_logs", "other", "one.py") is None


@pytest.mark.parametrize("name", ["größe", "true", "1e-3", "a" * 200, "x-x"])
@pytest.mark.parametrize("script", ["a b/größe's 'x'.py", f"{'long folder ' * 30}/train.py", "C:\\Users\\train.py"])
def test_a_run_is_found_however_its_name_and_its_script_are_written(name, script):
    RunFolder.create("train_logs", name, script=script)
    RunFolder.create("train_logs", "other", script="other")
    assert find_newest("train_logs", name, "").number == find_newest("train_logs", None, script).number == 1


def test_runs_before_the_newest_are_not_read_and_a_damaged_one_after_it_is_said():
    for number, text in enumerate(("id: [", "", "id: a\nnumber: 2\nstatus: finished"), start=1):
        path = Path(f"train_logs/26-01-01_00-00-00_damaged-{number}")
        path.mkdir(parents=True)
        (path / "run.yaml").write_text(text)
    RunFolder.create("train_logs", "mine")
    assert find_newest("train_logs", "mine", "").number == 4
    with pytest.warns(BlowtorchWarning, match=r"damaged-\d.*; the run is left out") as warnings:
        assert find_newest("train_logs", "other", "") is None
    assert len(warnings) == 3


# ---------------------------------------------------------------- status


def test_a_running_run_has_an_owner_and_a_lost_one_none(folder):
    run = open_run(folder.path)
    assert run.status == "lost"
    folder.lock.acquire()
    assert run.status == "running"
    folder.lock.release()
    assert run.status == "lost"


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_a_run_that_has_ended_is_what_it_is_also_for_who_opened_it_before(folder, status):
    run = open_run(folder.path)
    folder.start_session(load_config({}, [], [], dict), {}, [])
    folder.end_session(status)
    assert run.status == open_run(folder.path).status == status


def test_a_killed_run_is_lost(folder):
    code = "import os, sys; from blowtorch.folder.folder import RunFolder; folder = RunFolder.reopen(sys.argv[1]); "
    code += "folder.lock.acquire(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(folder.path)], check=False)
    assert open_run(folder.path).info["status"] == "running"
    assert open_run(folder.path).status == "lost"


# ---------------------------------------------------------------- metrics


def test_each_metric_has_steps_and_values_of_its_own(folder):
    run = record(folder, metrics(1, a=1.0), metrics(2, b=5), {"event": "text", "step": 2}, metrics(4, a=2.0))
    found = run.metrics()
    assert found["a"].steps.tolist() == [1, 4] and found["a"].values.tolist() == [1.0, 2.0]
    assert found["b"].steps.tolist() == [2] and found["b"].values.tolist() == [5.0]
    assert found["b"].steps.dtype == np.int64 and found["b"].values.dtype == np.float64


def test_numbers_that_are_not_finite_are_numbers_again(folder):
    values = record(folder, metrics(1, a="nan"), metrics(2, a="inf"), metrics(3, a="-inf")).metrics()["a"].values
    assert math.isnan(values[0]) and values[1:].tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("torn", ['{"event": "metr', '{"event": "metrics", "step": 9}'])
def test_a_torn_last_line_is_left_out(folder, torn):
    """Even one that looks whole: what has no line feed is not finished."""
    run = record(folder, metrics(1, a=1.0))
    with folder.record.open("a") as file:
        file.write(torn)
    assert run.metrics()["a"].steps.tolist() == [1]
    assert len(list(run.events())) == 1


def test_a_damaged_line_is_named_by_its_number(folder):
    run = record(folder, metrics(1, a=1.0))
    with folder.record.open("ab") as file:
        file.write(b"\0\0\0\n")
    with pytest.raises(RunFolderError, match=r"record\.jsonl:2 is damaged"):
        run.metrics()


def test_a_run_that_recorded_nothing_has_no_metrics(folder):
    assert open_run(folder.path).metrics() == {}
    assert list(open_run(folder.path).events()) == []


# ---------------------------------------------------------------- configuration


def test_the_configuration_has_the_types_that_it_had(folder):
    (folder.path / "config.yaml").write_text("rate: 1.0e-05\ntext: '1e-3'\nlist: [1, no]\n")
    config = open_run(folder.path).config
    assert config == {"rate": 1e-5, "text": "1e-3", "list": [1, "no"]}
    assert config["list.1"] == "no"


# ---------------------------------------------------------------- checkpoints


def test_checkpoints_are_in_the_order_of_their_steps_however_many_digits_they_have(folder):
    folder.start_session(load_config({}, [], [], dict), {}, [], checkpoint_metric="val/loss")
    for step, loss in ((100_000_000, 0.1), (2, 0.3), (99_999_999, 0.2)):
        save(folder, step, **{"val/loss": loss})
    (folder.checkpoints / "step-00000005").mkdir()
    (folder.checkpoints / ".tmp-step-00000006").mkdir()
    found = open_run(folder.path).checkpoints
    assert [(each.step, each.metric) for each in found] == [(2, 0.3), (99_999_999, 0.2), (100_000_000, 0.1)]
    assert found[0].path == folder.checkpoints / found[0].name == folder.checkpoints / "step-00000002"
    assert open_run(folder.path).checkpoint("latest").step == 100_000_000


def test_a_checkpoint_is_found_by_its_name_or_by_a_pointer(folder):
    for step in (1, 2, 3):
        save(folder, step)
    (folder.checkpoints / "best").write_text("step-00000001\n")
    (folder.checkpoints / "latest").write_text("step-00000002\n")
    run = open_run(folder.path)
    assert [run.checkpoint(which).step for which in ("best", "latest", "step-00000003")] == [1, 2, 3]
    with pytest.raises(CheckpointError, match=r"'bset'\. Did you mean 'best'\? There are .*-00000003, latest, best$"):
        run.checkpoint("bset")


def test_a_pointer_that_points_at_nothing_does_not_hide_the_latest(folder):
    save(folder, 1)
    (folder.checkpoints / "latest").write_text("step-00000009\n")
    assert open_run(folder.path).checkpoint("latest").step == 1


@pytest.mark.parametrize("pointer", [None, "step-00000009"])
def test_where_nothing_is_best_the_error_says_what_there_is(folder, pointer):
    save(folder, 1)
    if pointer is not None:
        (folder.checkpoints / "best").write_text(pointer)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint 'best'\. Did you mean 'latest'\? There are step-00000001, latest$"
    ):
        open_run(folder.path).checkpoint("best")


def test_a_misspelt_checkpoint_names_the_nearest(folder):
    save(folder, 120)
    with pytest.raises(CheckpointError, match="no checkpoint 'step-0000120'. Did you mean 'step-00000120'?"):
        open_run(folder.path).checkpoint("step-0000120")


def test_a_run_without_checkpoints_says_so(folder):
    with pytest.raises(CheckpointError, match=r"no checkpoint 'latest'\. There are none"):
        open_run(folder.path).load_model(nn.Linear(1, 1), "latest")
