"""Which checkpoints a run keeps, and which of them is the best."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from blowtorch import (
    BlowtorchWarning,
    CheckpointError,
    NotFiniteError,
    find_runs,
    open_run,
)
from tests.core.small_runs import QUIET, assert_same, run_by_epoch, weights


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(make_run, net, loader):
    run = make_run(validates=False)

    @run.train_step
    def step(batch, model, step):
        return model(batch[0]).pow(2).mean() * (float("nan") if step > 10 else 1.0)

    with (
        pytest.warns(
            BlowtorchWarning,
            match=r"step-000000(16|24) is not written: at step (16|24) '0.weight' in the model is not finite",
        ),
        pytest.raises(CheckpointError, match="the last checkpoint of the run could not be written"),
    ):
        run(net, loader, max_epochs=3, keep_last=1, keep_best=0, on_nan="ignore", **QUIET)
    (view,) = find_runs()
    assert view.status == "failed"
    assert [checkpoint.name for checkpoint in view.checkpoints] == ["step-00000008"]


@pytest.mark.parametrize("smaller_is_better", [True, False])
def test_of_equally_good_checkpoints_one_is_kept(net, loader, smaller_is_better):
    run = run_by_epoch(lambda data_loader: list(data_loader) and {})
    run.validate_step(lambda batch: {"loss": 1.0})
    options = {"smaller_is_better": smaller_is_better, "keep_last": 1, "max_epochs": 4, "validate_at_start": True}
    result = run(net, loader, loader, **options, **QUIET)
    assert [each.name for each in open_run(result.folder).checkpoints] == ["step-00000000", "step-00000032"]
    assert result.best is not None and result.best.step == 0


def test_without_a_best_checkpoint_to_keep_none_is_named(make_run, net, loader):
    result = make_run()(net, loader, loader, keep_best=0, keep_last=1, max_epochs=2, **QUIET)
    assert result.best is None


def test_a_continued_run_has_the_checkpoint_events_of_a_straight_one(make_run, data, events):
    found = []
    for parts in ([3], [1, 2, 3]):
        torch.manual_seed(0)
        net, folder = nn.Linear(4, 1), None
        for max_epochs in parts:
            resume = {} if folder is None else {"resume": str(folder)}
            batches = DataLoader(data, batch_size=8)
            result = make_run()(net, batches, batches, max_epochs=max_epochs, **resume, **QUIET)
            folder = result.folder
        found.append([{**each, "time": 0} for each in events(result, "checkpoint")])
    assert len(found[0]) == 3 and all(each["metric"] is not None for each in found[0])
    assert found[0] == found[1]


def test_the_best_by_another_metric_is_forgotten(make_run, net, loader):
    first = make_run()(net, loader, loader, max_epochs=1, run_name="a", **QUIET)
    again = make_run()(net, loader, loader, max_epochs=1, resume=str(first.folder), checkpoint_metric="val/x", **QUIET)
    assert first.best is not None and again.best is None


def test_a_metric_of_few_steps_decides_on_no_checkpoint(make_run, net, loader):
    result = make_run()(net, loader, loader, checkpoint_metric="train/loss", **QUIET)
    assert result.best is None
    assert (
        "no checkpoint is the best one: checkpoint_metric is 'train/loss'"
        in (result.folder / "console.log").read_text()
    )


def test_retention_keeps_the_newest_and_the_best(make_run, net, data, events):
    run = make_run(validates=False)
    losses = iter([3.0, 1.0, 2.0, 4.0, 5.0])
    run.validate_epoch(lambda data_loader: {"loss": next(losses)})
    batches = list(DataLoader(data, batch_size=8))
    result = run(net, batches, batches, max_epochs=5, keep_last=2, keep_best=1, **QUIET)
    folder = result.folder / "checkpoints"
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-00000016", "step-00000032", "step-00000040"]
    assert (folder / "latest").read_text().strip() == "step-00000040"
    assert (folder / "best").read_text().strip() == "step-00000016"
    assert result.best.metric == 1.0 and result.best.step == 16


def test_a_larger_metric_can_be_better(make_run, net, data):
    run = make_run(validates=False)
    accuracies = iter([0.5, 0.9, float("nan"), 0.7])
    run.validate_epoch(lambda data_loader: {"accuracy": next(accuracies)})
    batches = list(DataLoader(data, batch_size=8))
    options = {"checkpoint_metric": "val/accuracy", "smaller_is_better": False}
    result = run(net, batches, batches, max_epochs=4, **options, **QUIET)
    assert result.best.metric == 0.9


def test_a_finished_run_leaves_nothing_temporary_and_is_read_back(make_run, net, loader):
    result = make_run()(net, loader, loader, max_epochs=2, run_name="mine", **QUIET)
    assert not [path.name for path in (result.folder / "checkpoints").iterdir() if path.name.startswith(".")]
    view = open_run(result.folder)
    assert view.status == "finished" and "mine" in view.name
    steps, values = view.metrics()["val/loss"]
    assert list(steps) == [8, 16] and values[-1] == result.metrics["val/loss"]
    fresh = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 1))
    assert_same(weights(view.load_model(fresh, "latest")), weights(net))


def test_nan_in_the_open_window_is_seen_before_a_checkpoint(make_run, net, loader):
    run = make_run(validates=False)

    @run.train_step
    def step(batch, model, step):
        return model(batch[0]).pow(2).mean() * (float("nan") if step > 3 else 1.0)

    options = {"max_steps": 6, "checkpoint_every": "2 steps", "keep_last": 1, "keep_best": 0}
    with pytest.raises(NotFiniteError, match="step-00000004 is not written"):
        run(net, loader, **options, **QUIET)
    assert [each.name for each in find_runs()[0].checkpoints] == ["step-00000002"]


def test_the_best_pointer_goes_back_with_the_run(make_run, net, data):
    losses = iter([2.0, 3.0, 1.0, 4.0])
    batches = list(DataLoader(data, batch_size=8))

    def train(**options):
        run = make_run(validates=False)
        run.validate_epoch(lambda data_loader: {"loss": next(losses)})
        return run(net, batches, batches, keep_last=5, **options, **QUIET)

    first = train(max_epochs=3)
    pointer = first.folder / "checkpoints" / "best"
    assert pointer.read_text().strip() == "step-00000024"
    again = train(max_epochs=3, resume=str(first.folder / "checkpoints" / "step-00000016"))
    assert pointer.read_text().strip() == "step-00000008"
    assert again.best.metric == 2.0
