"""A run whose folder is damaged, disk full, clock set back or worker killed: all of it real."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from blowtorch import BlowtorchWarning, CheckpointError, RunFolderError, find_runs, open_run

QUIET = {"progress": False, "log_every": "3 steps", "checkpoint_every": "4 steps"}


def make_net(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Dropout(0.3), nn.Linear(width, 1))


def weights(net):
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@pytest.fixture
def straight(make_run, loader, events):
    """What an uninterrupted run of three epochs gives."""
    net = make_net()
    result = make_run()(net, loader, loader, max_epochs=3, save_path="straight", **QUIET)
    return weights(net), metric_lines(events, result)


@pytest.fixture
def stopped(make_run, loader):
    """A run that has been stopped at its step 13 of 24; its checkpoints are those of steps 12 and 13, and the best."""
    net, run = make_net(), make_run()

    @run.on("train_step_end")
    def stop(state):
        if state.step == 13:
            signal.raise_signal(signal.SIGTERM)

    return run(net, loader, loader, max_epochs=3, **QUIET).folder


@pytest.fixture
def goes_on_as_if_nothing_had_been(make_run, loader, events, straight):
    def check(folder, **options):
        net = make_net()
        result = make_run()(net, loader, loader, max_epochs=3, **({"resume": str(folder)} | QUIET | options))
        assert result.status == "finished"
        assert torch.equal(weights(net), straight[0])
        assert metric_lines(events, result) == straight[1]
        return result

    return check


def metric_lines(events, result):
    return [{**event, "time": None} for event in events(result, "metrics")]


def truncate(checkpoint):
    os.truncate(checkpoint / "training.pt", 100)


def flip_a_bit(checkpoint):
    content = bytearray((checkpoint / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / "model.pt").write_bytes(content)


def lose_a_file(checkpoint):
    (checkpoint / "model.pt").unlink()


def empty_the_manifest(checkpoint):
    (checkpoint / "manifest.json").write_text("")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "training.pt has 100 bytes instead of"),
        (flip_a_bit, "model.pt has another xxh3_128 checksum than was written"),
        (lose_a_file, "model.pt cannot be read"),
        (empty_the_manifest, "manifest.json is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    goes_on_as_if_nothing_had_been, stopped, damage, said
):
    damage(stopped / "checkpoints" / "step-00000013")
    with pytest.warns(BlowtorchWarning, match=f"step-00000013 is damaged .*{said}.*an earlier one is taken"):
        goes_on_as_if_nothing_had_been(stopped)


def test_a_checkpoint_without_a_manifest_is_none(goes_on_as_if_nothing_had_been, stopped):
    (stopped / "checkpoints" / "step-00000013" / "manifest.json").unlink()
    goes_on_as_if_nothing_had_been(stopped)


@pytest.mark.parametrize("content", [None, "step-00009999\n", ""])
def test_pointers_are_conveniences(goes_on_as_if_nothing_had_been, stopped, content):
    for name in ("latest", "best"):
        pointer = stopped / "checkpoints" / name
        pointer.unlink() if content is None else pointer.write_text(content)
    result = goes_on_as_if_nothing_had_been(stopped)
    view = open_run(result.folder)
    assert view.checkpoint("latest").step == 24 and view.checkpoint("best").name == result.best.name


def test_a_pointer_to_nothing_that_is_named_says_so(make_run, loader, stopped):
    (stopped / "checkpoints" / "latest").write_text("step-00009999\n")
    with pytest.raises(
        RunFolderError,
        match=r"checkpoints/latest names 'step-00009999', which is not there; resume=.* takes the newest",
    ):
        make_run()(make_net(), loader, loader, resume=str(stopped / "checkpoints" / "latest"), **QUIET)


def test_what_a_killed_process_left_is_cleaned_up(goes_on_as_if_nothing_had_been, stopped):
    for name in (".tmp-step-00000016-abc", ".deleted-step-00000004-1", ".old-step-00000012"):
        (stopped / "checkpoints" / name).mkdir()
        (stopped / "checkpoints" / name / "model.pt").write_bytes(b"half")
    goes_on_as_if_nothing_had_been(stopped)
    assert not list((stopped / "checkpoints").glob(".*"))


def test_a_torn_last_line_of_the_record_is_repaired(goes_on_as_if_nothing_had_been, stopped):
    with (stopped / "record.jsonl").open("a") as file:
        file.write('{"event": "metrics", "step": 14, "metr')
    goes_on_as_if_nothing_had_been(stopped)


def test_a_clock_that_was_set_back_misleads_nobody(goes_on_as_if_nothing_had_been, make_run, loader, stopped):
    """The newest run has the highest number, whatever its timestamp and the times of its files say."""
    older = stopped.parent / f"30-01-01_00-00-00_older-{int(stopped.name.rpartition('-')[2]) - 1}"
    subprocess.run(["cp", "-r", stopped, older], check=True)
    info = (older / "run.yaml").read_text()
    (older / "run.yaml").write_text(info.replace("status: stopped", "status: lost"))
    for path in [stopped, *stopped.rglob("*")]:
        os.utime(path, (0, 0))
    for path in older.rglob("*"):
        os.utime(path, (time.time() + 1e6,) * 2)
    result = goes_on_as_if_nothing_had_been("auto", save_path=str(stopped.parent), run_name=None)
    assert result.folder == stopped


class Slow(Dataset):
    """Knows its workers, and is not fetched in no time."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        time.sleep(0.005)
        return torch.full((4,), index / 64), torch.tensor([index / 16])


def test_a_worker_that_the_system_kills_fails_the_run_which_goes_on_later(make_run, events):
    def train(run, net, **options):
        return run(net, DataLoader(Slow(), batch_size=8, num_workers=2), max_epochs=2, **QUIET, **options)

    expected, net, again = make_net(), make_net(), make_net()
    whole = train(make_run(validates=False), expected)
    run = make_run(validates=False)

    @run.on("train_step_end")
    def kill(state):
        if state.step == 10:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="worker .*(killed|exited)"):
        train(run, net)
    view = find_runs()[0]
    assert view.status == "failed" and "DataLoader worker" in [*view.events()][-1]["reason"]
    result = train(make_run(validates=False), again, resume=str(view.path))
    assert torch.equal(weights(again), weights(expected))
    assert metric_lines(events, whole) == metric_lines(events, result)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of three megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a file system")

    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("trouble", ["full", "read-only"])
@pytest.mark.parametrize("is_async", [True, False])
def test_a_disk_that_takes_nothing_more_costs_no_checkpoint_and_the_run_goes_on_later(
    make_run, loader, events, small_disk, trouble, is_async
):
    place = small_disk
    options = {"max_epochs": 3, "keep_last": 2, "checkpoint_async": is_async, **QUIET}
    expected, net, again = make_net(9000), make_net(9000), make_net(9000)  # 0.65 MB of state in each checkpoint
    whole = make_run(validates=False)(expected, loader, **options)
    run = make_run(validates=False)

    @run.on("train_step_end")
    def trouble_comes(state):
        if state.step == 14:
            checkpoints = state.folder / "checkpoints"
            # The first one is deleted once the third is published; room that comes after the trouble would end it.
            while {path.name for path in checkpoints.glob("[.s]*")} != {"step-00000008", "step-00000012"}:
                time.sleep(0.01)
            if trouble == "full":
                free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
                (place / "filler").write_bytes(b"x" * max(0, free - 40_000))
            else:
                subprocess.run(["mount", "--bind", checkpoints, checkpoints], check=True)
                subprocess.run(["mount", "-o", "remount,ro,bind", checkpoints], check=True)

    with (
        pytest.warns(BlowtorchWarning, match="step-000000(16|20|24) could not be (written|taken)"),
        pytest.raises((CheckpointError, OSError), match="could not be written|[Rr]ead-only|No space"),
    ):
        run(net, loader, save_path=place / "logs", **options)
    (view,) = find_runs(place / "logs")
    if trouble == "full":
        (place / "filler").unlink()
    else:
        subprocess.run(["umount", view.path / "checkpoints"], check=True)
    assert view.checkpoint("latest").step == 12
    view.load_model(make_net(9000), "latest")
    result = make_run(validates=False)(again, loader, resume=str(view.path), **options)
    assert torch.equal(weights(again), weights(expected))
    assert metric_lines(events, whole) == metric_lines(events, result)
    assert json.loads((view.path / "record.jsonl").read_text().splitlines()[-1])["status"] == "finished"
