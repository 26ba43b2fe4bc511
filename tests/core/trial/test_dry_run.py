import pickle
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from blowtorch import CheckpointError, ExtensionError, hookimpl
from blowtorch.builtin.early_stopping import EarlyStopping
from tests.core.small_runs import step


class Witness:
    """A logger that remembers what it was given."""

    def __init__(self):
        self.given = []

    @hookimpl
    def log_start(self, run):
        self.given.append(("start", run.name))
        (Path(run.own_folder) / "file").write_text("something")

    @hookimpl
    def log_metrics(self, metrics, step):
        self.given.append(("metrics", step, sorted(metrics)))

    @hookimpl
    def log_finish(self, status):
        self.given.append(("finish", status))


class Refusing:
    @hookimpl
    def log_metrics(self, metrics):
        raise ConnectionError("the tracker is down")


def copy_of(model):
    return [value.clone() for value in model.state_dict().values()]


def streams():
    return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()


def test_everything_is_done_once_and_nothing_is_left(make_run, net, loader, capsys):
    calls = {"train": 0, "val": 0}
    run = make_run(validates=False)

    @run.train_step
    def train(batch, model):
        calls["train"] += 1
        return step(batch, model)

    @run.validate_step
    def validate(batch, model):
        calls["val"] += 1
        return step(batch, model)

    saved = []
    run.on("checkpoint_saved")(lambda checkpoint: saved.append(sorted(path.name for path in checkpoint.path.iterdir())))
    witness, before, before_streams = Witness(), copy_of(net), streams()
    result = run(net, loader, loader, max_epochs=5, dry_run=True, loggers=[witness], scheduler="cosine", progress=False)
    assert calls == {"train": 2, "val": 2}
    assert saved == [["manifest.json", "model.pt", "training.pt"]]
    assert [each[0] for each in witness.given] == ["start", *["metrics"] * 3, "finish"]
    assert witness.given[0] == ("start", "dry-run-1")
    assert ("metrics", 2, ["val/loss"]) in witness.given
    assert witness.given[-1] == ("finish", "finished")
    assert (result.status, result.step) == ("finished", 2)
    assert not Path("train_logs").exists()
    assert all(torch.equal(one, other) for one, other in zip(before, copy_of(net), strict=True))
    assert before_streams == streams()
    printed = capsys.readouterr().out
    assert "2 done of 40, " in printed
    assert "val          2 batches done of 8, " in printed and "each; 5 times" in printed
    assert "for up to 4 checkpoints" in printed
    assert "whole run    about " in printed


def test_the_run_after_a_dry_run_is_the_run_without_one(make_run, data):
    def train(is_tried):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        run, stopping = make_run(), EarlyStopping(patience=3)
        run.keep_state("stopping", stopping)
        loader = DataLoader(data, 8, shuffle=True)
        if is_tried:
            run(net, loader, loader, max_epochs=2, dry_run=True, progress=False, callbacks=["ema"])
        assert stopping.state_dict() == EarlyStopping().state_dict()
        run(net, loader, loader, max_epochs=2, progress=False)
        return copy_of(net)

    assert all(torch.equal(one, other) for one, other in zip(train(True), train(False), strict=True))


def test_a_model_that_an_init_function_rebuilds_is_given_back_as_it_was(make_run, loader):
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    head, run = net[2], make_run()

    @run.init
    def prepare(model):
        model[2] = nn.Linear(8, 1)
        model[0].requires_grad_(False)

    before = copy_of(net)
    run(net, loader, loader, dry_run=True, progress=False)
    assert net[2] is head
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, copy_of(net), strict=True))


def test_folders_above_and_objects_that_remember_are_as_they_were(make_run, net, loader):
    stopping = EarlyStopping(patience=2)
    options = {"callbacks": [stopping], "save_path": "deep/in/a/tree", "progress": False}
    make_run()(net, loader, loader, dry_run=True, **options)
    assert not Path("deep").exists()
    assert stopping.state_dict() == EarlyStopping().state_dict()


def test_a_dry_run_that_is_stopped_does_not_say_that_all_is_well(make_run, net, loader, capsys):
    run = make_run()
    run.on("train_step_end")(lambda state: signal.raise_signal(signal.SIGINT) if state.step == 1 else None)
    assert run(net, loader, loader, dry_run=True, progress=False).status == "stopped"
    assert "everything works" not in capsys.readouterr().out


def test_other_runs_in_the_folder_stay_and_resume_does_not_see_the_dry_run(make_run, net, loader):
    first = make_run()(net, loader, loader, max_epochs=1, progress=False, run_name="a")
    options = {"max_epochs": 2, "run_name": "a", "resume": "auto", "progress": False}
    make_run()(net, loader, loader, dry_run=True, **options)
    assert [path.name for path in Path("train_logs").iterdir()] == [first.folder.name]
    assert make_run()(net, loader, loader, **options).folder.name.endswith("a-2")


def test_groups_of_batches_functions_for_epochs_and_validations_of_their_own(make_run, net, loader, capsys):
    run = make_run()

    @run.train_epoch
    def train_epoch(data_loader, model, optimizers, log):
        for x, y in data_loader:
            optimizers["optimizer"].zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizers["optimizer"].step()
            log({"loss": loss})

    run.validate_step(loader, name="ood", every="3 epochs", at_start=True)(lambda batch, model: model(batch[0]).mean())
    result = run(net, loader, loader, max_epochs=6, dry_run=True, progress=False)
    assert result.step == 2
    printed = capsys.readouterr().out
    assert "ood          2 batches done of 8, " in printed and "each; 3 times" in printed
    result = make_run()(net, loader, loader, max_epochs=6, accumulate=3, dry_run=True, progress=False)
    assert result.step == 2
    assert "2 done of 18, " in capsys.readouterr().out


def test_a_validation_that_takes_no_batches_is_timed_as_a_whole(make_run, net, loader, capsys):
    run = make_run()
    run.validate_epoch(name="sample")(lambda model: {"size": 1.0})
    run(net, loader, loader, max_epochs=3, dry_run=True, progress=False)
    assert re.search(r"sample +done once in [\d.]+ m?s; 3 times\n", capsys.readouterr().out)


def test_a_logger_that_does_not_work_fails_a_dry_run(make_run, net, loader):
    options = {"loggers": [Refusing()], "logger_timeout": "1 second", "progress": False}
    with (
        pytest.warns(UserWarning, match="Refusing.*behind"),
        pytest.raises(ExtensionError, match="the dry run failed: logger 'Refusing'.*tracker is down; a run would"),
    ):
        make_run()(net, loader, loader, dry_run=True, **options)
    assert not Path("train_logs").exists()


def test_a_state_that_cannot_be_loaded_fails_a_dry_run(make_run, net, loader):
    class Broken:
        """Takes its state back while nothing is trained, and not when a run goes on."""

        is_in_training = False

        def state_dict(self):
            return {"value": 1}

        def load_state_dict(self, state):
            if self.is_in_training:
                raise KeyError("other")

    run, broken = make_run(), Broken()
    run.keep_state("broken", broken)
    run.on("run_start")(lambda: setattr(broken, "is_in_training", True))
    run.on("run_end")(lambda: setattr(broken, "is_in_training", False))
    with pytest.raises(
        CheckpointError, match="kept/broken does not take its state from checkpoint step-00000002: KeyError: 'other'"
    ):
        run(net, loader, loader, dry_run=True, progress=False)
    assert not Path("train_logs").exists()


def test_an_error_in_a_validation_shows_and_leaves_nothing(make_run, net, loader):
    run = make_run()
    run.validate_step(lambda batch, model: model(batch[0][:, :2]).mean())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(net, loader, loader, dry_run=True, progress=False)
    assert not Path("train_logs").exists()


def test_a_disk_without_room_for_the_checkpoints_of_a_run_fails_a_dry_run(make_run, loader, tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    try:
        net = nn.Sequential(nn.Linear(4, 9000), nn.Linear(9000, 1))  # 0.65 MB of state in each checkpoint
        options = {"dry_run": True, "save_path": str(place), "progress": False}
        with pytest.raises(CheckpointError, match=r"up to 4 checkpoints of 6\d\d\.\d kB, 2\.\d MB in all, and .* has "):
            make_run()(net, loader, loader, **options)
        make_run()(net, loader, loader, keep_last=1, keep_best=0, **options)
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", place], check=True)
        shutil.rmtree(place)


def test_a_run_of_unknown_length_says_so(make_run, net, loader, capsys):
    make_run()(net, (batch for batch in loader), loader, max_epochs=1, dry_run=True, progress=False)
    printed = capsys.readouterr().out
    assert "2 done of an unknown number, " in printed
    assert "whole run    its length is not known" in printed
