"""Parameters that are not trained, and checkpoints that leave them out."""

import copy
import json
import os
import signal

import pytest
import torch
from torch import nn

from blowtorch import CheckpointError, Run, open_run
from tests.core.small_runs import QUIET, assert_same, weights

OPTIONS = {"checkpoint_frozen": False, "max_epochs": 2, **QUIET}


class Adapted(nn.Module):
    """A frozen base with running statistics, and a small layer that is trained."""

    def __init__(self, seed=1, requires_grad=False):
        super().__init__()
        torch.manual_seed(seed)
        self.base = nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64)).requires_grad_(requires_grad)
        torch.manual_seed(7)
        self.top = nn.Linear(64, 1)

    def forward(self, x):
        return self.top(self.base(x))


FROZEN = ["base.0.weight", "base.0.bias", "base.1.weight", "base.1.bias"]


def begin():
    run = Run(random_seed=0, command_line=[])

    @run.train_step
    @run.validate_step
    def step(batch, model):
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    @run.configure_optimizers
    def configure_optimizers(model):
        return torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=0.01)

    return run


def stop_at(run, last):
    @run.on("train_step_end")
    def stop(step):
        if step == last:
            os.kill(os.getpid(), signal.SIGTERM)

    return run


def saved(result, name="latest"):
    path = open_run(result.folder).checkpoint(name).path
    manifest = json.loads((path / "manifest.json").read_text())
    return torch.load(path / "model.pt", weights_only=True), manifest


def test_what_asks_for_no_gradient_is_left_out_and_its_digest_is_kept(loader):
    whole, manifest = saved(begin()(Adapted(), loader, loader, **{**OPTIONS, "checkpoint_frozen": True}))
    assert set(whole) == set(Adapted().state_dict()) and "frozen" not in manifest
    kept, manifest = saved(begin()(Adapted(), loader, loader, **OPTIONS))
    assert set(whole) - set(kept) == set(FROZEN) == set(manifest["frozen"])
    assert "base.1.running_mean" in kept
    assert all(set(digest) == {"xxh3_128"} for digest in manifest["frozen"].values())


@pytest.mark.parametrize("callbacks", [[], [{"ema": {"decay": 0.9}}]], ids=str)
def test_a_run_that_goes_on_is_that_of_one_that_nobody_touched(loader, callbacks):
    straight, again = Adapted(), Adapted()
    begin()(straight, loader, loader, callbacks=callbacks, **OPTIONS)
    stopped = stop_at(begin(), 5)(Adapted(), loader, loader, callbacks=callbacks, **OPTIONS)
    assert stopped.status == "stopped"
    begin()(again, loader, loader, callbacks=callbacks, resume=str(stopped.folder), **OPTIONS)
    assert_same(weights(straight), weights(again))


def test_the_model_can_be_loaded_where_its_base_is_the_same(loader):
    net = Adapted()
    result = begin()(net, loader, loader, **OPTIONS)
    fresh = Adapted()
    nn.init.zeros_(fresh.top.weight)
    assert_same(weights(net), weights(open_run(result.folder).load_model(fresh, "latest")))
    expected = begin().evaluate(net, loader)
    assert begin().evaluate(Adapted(), loader, checkpoint=result.folder / "checkpoints" / "latest") == expected
    trainable = Adapted(requires_grad=True)  # to fine-tune all of it now
    begin()(trainable, loader, loader, initialize_from=str(result.folder), **QUIET)


def test_another_base_is_refused_by_name_wherever_a_checkpoint_is_loaded(loader):
    result = begin()(Adapted(), loader, loader, **OPTIONS)
    checkpoint = str(result.folder / "checkpoints" / "latest")
    ways = {
        "resume": lambda net: begin()(net, loader, loader, resume=str(result.folder), **{**OPTIONS, "max_epochs": 3}),
        "initialize_from": lambda net: begin()(net, loader, loader, initialize_from=checkpoint, **OPTIONS),
        "evaluate": lambda net: begin().evaluate(net, loader, checkpoint=checkpoint),
        "load_model": lambda net: open_run(result.folder).load_model(net, "latest"),
    }
    for load in ways.values():
        with pytest.raises(
            CheckpointError, match=r"left out 'base.0.weight', which was not trained; the model has ano"
        ):
            load(Adapted(seed=2))
        almost = Adapted()
        with torch.no_grad():
            almost.state_dict()["base.1.bias"][3] += 1e-6
        with pytest.raises(CheckpointError, match=r"left out 'base.1.bias'"):
            load(almost)
    assert begin()(Adapted(), loader, loader, resume=str(result.folder), **{**OPTIONS, "max_epochs": 3}).step == 24


def test_a_base_that_something_else_changes_than_an_optimizer_is_saved(loader):
    """As the momentum encoder of a contrastive loss, by `data`, of which torch counts no versions."""
    run = begin()

    @run.on("train_step_end")
    def follow(model, step):
        model.base[0].weight.data.mul_(0.999)

    net = Adapted()
    kept, manifest = saved(run(net, loader, loader, **OPTIONS))
    assert set(manifest["frozen"]) == set(FROZEN) - {"base.0.weight"}
    assert torch.equal(kept["base.0.weight"], net.base[0].weight)


def test_what_is_frozen_or_freed_along_the_way_is_saved(loader):
    run = begin()

    @run.on("train_step_end")
    def change(model, step):
        if step == 5:
            model.top.bias.requires_grad_(False)
            model.base[0].bias.requires_grad_(True)

    kept, manifest = saved(run(Adapted(), loader, loader, **OPTIONS))
    assert set(manifest["frozen"]) == set(FROZEN) - {"base.0.bias"}
    assert {"top.bias", "base.0.bias"} <= set(kept)


def test_a_base_from_another_checkpoint_is_taken_from_there_again(loader):
    first = begin()(Adapted(seed=3, requires_grad=True), loader, loader, **QUIET)
    options = {"initialize_from": str(first.folder), **OPTIONS}
    straight, again = Adapted(), Adapted(seed=5)
    begin()(straight, loader, loader, **options)
    stopped = stop_at(begin(), 5)(Adapted(), loader, loader, **options)
    begin()(again, loader, loader, resume=str(stopped.folder), **options)
    assert_same(weights(straight), weights(again))


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_from_the_same_weights_again(loader):
    first = begin()(Adapted(seed=3), loader, loader, **QUIET)
    straight, again = Adapted(), Adapted()
    options = {"initialize_from": str(first.folder), **QUIET}
    begin()(straight, loader, loader, **options)
    run = begin()

    @run.on("train_step_end")
    def fail():
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        run(Adapted(), loader, loader, run_name="killed", **options)
    begin()(again, loader, loader, run_name="killed", resume="auto", **options)
    assert_same(weights(straight), weights(again))
    open_run(first.folder).checkpoint("latest").path.rename(first.folder / "gone")
    (first.folder / "checkpoints" / "best").unlink()
    with pytest.raises(ValueError, match="mine"):
        run(Adapted(), loader, loader, run_name="other", resume="never", **QUIET)
    with pytest.raises(CheckpointError, match="initialize_from=.* is no good checkpoint"):
        begin()(again, loader, loader, run_name="other", resume="auto", **options)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.0),
        torch.randn(5).bfloat16(),
        torch.randn(3, 8).double().t(),
        torch.complex(torch.randn(3), torch.randn(3)),
        torch.arange(7, dtype=torch.uint8),
        torch.randn(12)[1:],
        torch.empty(0),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_numbers_of_all_kinds_may_be_frozen(loader, tensor):
    class Holding(nn.Linear):
        def __init__(self):
            super().__init__(4, 1)
            self.held = nn.Parameter(copy.deepcopy(tensor), requires_grad=False)

    net = Holding()
    result = begin()(net, loader, loader, **OPTIONS)
    kept, manifest = saved(result)
    assert set(manifest["frozen"]) == {"held"} and "held" not in kept
    assert_same(weights(net), weights(open_run(result.folder).load_model(Holding(), "latest")))
