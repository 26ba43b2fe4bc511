"""A dry run refuses what the run would refuse, and says from where it would go on."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from blowtorch import CheckpointError, RunFolderError
from tests.core.small_runs import QUIET, assert_same, weights


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "owner.lock"}


@pytest.fixture
def stopped(make_run, net, loader):
    """A run of two epochs that was stopped after one."""
    run = make_run()
    run.on("epoch_end")(lambda state: state.stop("enough"))
    return run(net, loader, loader, max_epochs=2, run_name="first", **QUIET)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"resume": "nowhere"}, "nowhere' is no run folder"),
        ({"run_name": "x" * 300}, "run_name of at most 225 bytes.* got 300"),
        ({"run_name": "è" * 150}, "run_name of at most 225 bytes.* got 300"),
        ({"run_name": ".."}, "run_name with letters or digits"),
        ({"save_path": "a_file"}, "save_path 'a_file' cannot be written"),
    ],
)
@pytest.mark.parametrize("is_tried", [True, False])
def test_a_folder_that_cannot_be_is_refused_as_the_run_refuses_it(options, reason, is_tried, make_run, net, loader):
    Path("a_file").touch()
    with pytest.raises(RunFolderError, match=reason):
        make_run()(net, loader, loader, dry_run=is_tried, **QUIET, **options)


def test_a_run_that_can_go_on_is_named_and_stays_as_it_is(stopped, make_run, net, loader, capsys):
    before, before_files = weights(net), files_of(stopped.folder)
    torch.nn.init.zeros_(net[0].weight)
    result = make_run()(net, loader, loader, resume=str(stopped.folder), max_epochs=2, dry_run=True, **QUIET)
    assert f"goes on      in {stopped.folder}, from step-00000008\n" in capsys.readouterr().out
    assert result.step == 2
    assert files_of(stopped.folder) == before_files
    assert net[0].weight.abs().sum() == 0
    assert [path.name for path in stopped.folder.parent.iterdir()] == [stopped.folder.name]
    make_run()(net, loader, loader, resume=str(stopped.folder), max_epochs=2, **QUIET)
    assert len(before) == len(weights(net))


def test_a_checkpoint_of_another_model_is_refused(stopped, make_run, loader):
    other = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.0), nn.Linear(5, 1))
    for is_tried in (True, False):
        with pytest.raises(CheckpointError, match="has shape"):
            make_run()(other, loader, loader, resume=str(stopped.folder), max_epochs=2, dry_run=is_tried, **QUIET)


def test_a_checkpoint_that_lacks_what_the_script_keeps_is_refused(stopped, make_run, net, loader):
    run, options = make_run(), {"resume": str(stopped.folder), "max_epochs": 2, **QUIET}
    run.keep_state("average", nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match="holds no 'kept/average'"):
        run(net, loader, loader, dry_run=True, **options)
    run(net, loader, loader, dry_run=True, resume_without=["kept/average"], **options)


def test_a_damaged_checkpoint_is_passed_over_as_the_run_does(make_run, net, loader, capsys):
    run = make_run()
    run.on("epoch_end")(lambda state: state.stop("enough") if state.epoch == 2 else None)
    result = run(net, loader, loader, max_epochs=3, **QUIET)
    newest = result.folder / "checkpoints" / "step-00000016" / "training.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(UserWarning, match="checkpoint step-00000016 is damaged"):
        make_run()(net, loader, loader, resume=str(result.folder), max_epochs=3, dry_run=True, **QUIET)
    assert "from step-00000008\n" in capsys.readouterr().out


def test_a_run_that_another_process_trains_is_refused(stopped, make_run, net, loader):
    code = "import sys, fcntl; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", code, stopped.folder / "owner.lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        owner.stdout.readline()
        with pytest.raises(RunFolderError, match="is being trained by process"):
            make_run()(net, loader, loader, resume=str(stopped.folder), max_epochs=2, dry_run=True, **QUIET)
        owner.communicate(b"\n")
    make_run()(net, loader, loader, resume=str(stopped.folder), max_epochs=2, dry_run=True, **QUIET)


def test_the_weights_of_the_run_that_goes_on_are_not_mixed_with_those_it_once_began_from(
    stopped, make_run, net, loader
):
    before = weights(net)
    options = {"resume": str(stopped.folder), "initialize_from": "gone", "max_epochs": 2, **QUIET}
    make_run()(net, loader, loader, dry_run=True, **options)  # as the run does, which needs it no more
    assert_same(before, weights(net))


def test_a_validation_after_every_step_is_done_once(make_run, net, loader, capsys):
    batches, run = [], make_run(validates=False)
    run.validate_step(lambda batch, model: (batches.append(batch), model(batch[0]).mean())[1])
    run(net, loader, loader, max_epochs=2, validate_every="1 steps", validate_at_start=True, dry_run=True, **QUIET)
    assert len(batches) == 2
    assert "each; 17 times" in capsys.readouterr().out
