"""Training from the first step to the last, and where it ends."""

import sys
import traceback

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from blowtorch import (
    Run,
    ScriptError,
    hookimpl,
)
from tests.core.small_runs import QUIET, assert_same, weights


def hand_loop(net, batches, epochs, make=lambda parameters: torch.optim.Adam(parameters, lr=0.01)):
    optimizer = make(net.parameters())
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()
    return weights(net)


def test_weights_equal_those_of_the_same_loop_by_hand(make_run, net, data):
    batches = list(DataLoader(data, batch_size=8))
    start = weights(net)
    make_run()(net, batches, batches, max_epochs=3, **QUIET)
    trained = weights(net)
    net.load_state_dict(dict(zip(net.state_dict(), start, strict=True)))
    assert_same(trained, hand_loop(net, batches, 3))


def test_a_result_says_how_the_run_ended(make_run, net, loader):
    result = make_run()(net, loader, loader, max_epochs=2, **QUIET)
    assert (result.status, result.epoch, result.step) == ("finished", 2, 16)
    assert result.best.metric == result.metrics["val/loss"]
    assert result.best.path.is_dir()
    assert {"train/loss", "train_epoch/loss", "val/loss", "lr"} <= set(result.metrics)
    result.raise_if_stopped()


def test_one_epoch_is_trained_when_nothing_limits_the_run(make_run, net, loader):
    assert make_run(validates=False)(net, loader, **QUIET).epoch == 1


def test_max_steps_ends_in_the_middle_of_an_epoch_with_a_checkpoint(make_run, net, loader):
    result = make_run(validates=False)(net, loader, max_steps=11, **QUIET)
    assert (result.status, result.step, result.epoch) == ("finished", 11, 2)
    assert (result.folder / "checkpoints" / "step-00000011" / "manifest.json").is_file()
    assert result.metrics["train/loss"] > 0


def test_max_steps_at_the_end_of_an_epoch_does_what_is_due_there(make_run, net, loader, events):
    result = make_run()(net, loader, loader, max_steps=8, **QUIET)
    assert "val/loss" in result.metrics and "train_epoch/loss" in result.metrics
    assert result.epoch == 1


def test_the_same_run_object_can_be_called_again(make_run, data):
    batches = list(DataLoader(data, batch_size=8))
    run = make_run(validates=False)
    trained = []
    for _ in range(2):
        torch.manual_seed(0)
        net = nn.Linear(4, 1)
        result = run(net, batches, **QUIET)
        trained.append(weights(net))
    assert_same(*trained)
    assert result.folder.parent == (result.folder.parent.parent / "train_logs")
    assert len(list(result.folder.parent.iterdir())) == 2


def test_random_numbers_after_a_validation_do_not_move_training(make_run, loader):
    def train(every):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        run = make_run()
        run.on("validation_end")(lambda: torch.rand(3))
        run(net, loader, loader, max_epochs=2, validate_every=every, **QUIET)
        return weights(net)

    assert all(torch.equal(a, b) for a, b in zip(train("1 epoch"), train("3 steps"), strict=True))


def test_several_optimizers_are_stepped_together_and_record_their_rates(net, loader, make_run, events):
    run = make_run(validates=False)

    @run.configure_optimizers
    def configure_optimizers(model):
        return {
            "first": torch.optim.SGD(model[0].parameters(), lr=0.1),
            "second": torch.optim.SGD(model[3].parameters(), lr=0.2),
        }

    before = weights(net)
    result = run(net, loader, **QUIET)
    assert all(not torch.equal(a, b) for a, b in zip(before, weights(net), strict=True))
    assert result.metrics["lr/first/0"] == 0.1 and result.metrics["lr/second/0"] == 0.2


def test_an_iterable_dataset_of_unknown_length_trains_to_its_end(make_run, net):
    class Stream(IterableDataset):
        def __iter__(self):
            for _ in range(20):
                yield torch.ones(4), torch.ones(1)

    result = make_run(validates=False)(net, DataLoader(Stream(), batch_size=8), max_epochs=2, **QUIET)
    assert (result.step, result.epoch, result.status) == (6, 2, "finished")


def test_the_users_step_is_at_most_four_frames_below_the_script(net, loader):
    run = Run(random_seed=0, command_line=[])
    depths = []

    @run.train_step
    def step(batch, model):
        names = [frame.name for frame in traceback.extract_stack()]
        depths.append(len(names) - 1 - names.index("test_the_users_step_is_at_most_four_frames_below_the_script"))
        return model(batch[0]).mean()

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    run(net, loader, max_steps=1, **QUIET)
    assert depths == [4]


def test_gradients_can_be_read_after_a_step(make_run, net, loader):
    run = make_run(validates=False)
    norms = []
    run.on("train_step_end")(lambda model: norms.append(model[0].weight.grad.norm().item()))
    run(net, loader, max_steps=3, **QUIET)
    assert len(norms) == 3 and all(norm > 0 for norm in norms)


def test_a_step_that_no_longer_returns_the_loss_says_so(net, loader):
    run = Run(random_seed=0, command_line=[])
    names = iter(["loss", "energy", "energy"])

    @run.train_step
    def step(batch, model):
        value = model(batch[0]).mean()
        return {next(names): value, "other": value}

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ScriptError, match="step returned 'energy', 'other', of which 'energy', 'other' carry"):
        run(net, loader, **QUIET)


def test_numbers_of_numpy_are_recorded_and_stored(make_run, net, loader):
    run = make_run(validates=False, config={"rate": np.float64(0.5)})

    @run.train_step
    def step(batch, model):
        return {"loss": model(batch[0]).pow(2).mean(), "single": np.float32(0.5), "count": np.int64(3)}

    first = run(net, loader, max_steps=3, **QUIET)
    assert first.metrics["train/single"] == 0.5 and first.metrics["train/count"] == 3.0
    assert run(net, loader, max_steps=6, resume=str(first.folder), **QUIET).step == 6


class OnlyAtTheEnd:
    @hookimpl
    def run_end(self, state):
        pass


class OnlyAtTheEndToo(OnlyAtTheEnd):
    pass


def test_hooks_that_nobody_implements_add_nothing_to_a_step(make_run, net, loader):
    counts = []
    for callbacks in ([], [OnlyAtTheEnd(), OnlyAtTheEndToo()]):
        run, calls, steps = make_run(validates=False), [], []

        @run.train_step
        def step(batch, model, steps=steps, calls=calls):
            steps.append(model)
            if len(steps) == 3:
                sys.setprofile(lambda frame, event, argument: calls.append(frame.f_code.co_name))
            elif len(steps) == 7:
                sys.setprofile(None)
            return model(batch[0]).square().mean()

        try:
            run(net, loader, max_epochs=1, callbacks=callbacks, log_every="1 epoch", progress=False)
        finally:
            sys.setprofile(None)
        counts.append(calls)
    assert counts[0] == counts[1]
    assert len(counts[0]) > 100


class Counting(torch.optim.SGD):
    """An optimizer that clears gradients in a way of its own."""

    cleared = 0

    def zero_grad(self, set_to_none=True):
        self.cleared += 1
        super().zero_grad(set_to_none=False)


def seen_gradients(make_run, net, loader, make_optimizer):
    """What each step meets as the gradient of the first parameter: None, or whether any of it is not zero."""
    seen = []

    def train_step(batch, model):
        gradient = next(model.parameters()).grad
        seen.append(None if gradient is None else gradient.any().item())
        x, y = batch
        return nn.functional.mse_loss(model(x), y)

    run = Run(random_seed=0, command_line=[])
    run.train_step(train_step)
    run.configure_optimizers(make_optimizer)
    run(net, loader, max_steps=3, **QUIET)
    return seen


def test_a_step_meets_no_gradients_of_the_step_before(make_run, net, loader):
    seen = seen_gradients(make_run, net, loader, lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    assert seen == [None, None, None]


def test_an_optimizer_that_clears_gradients_in_its_own_way_does_so(make_run, net, loader):
    optimizer = Counting(net.parameters(), lr=0.1)
    seen = seen_gradients(make_run, net, loader, lambda: optimizer)
    assert optimizer.cleared == 3
    assert seen == [None, False, False]


def test_a_zero_grad_that_the_script_has_replaced_is_called(make_run, net, loader, monkeypatch):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    called = []
    monkeypatch.setattr(optimizer, "zero_grad", lambda: called.append(1))
    seen_gradients(make_run, net, loader, lambda: optimizer)
    assert called == [1, 1, 1]


def test_the_gradients_of_a_group_that_was_added_are_cleared_too(make_run, net, loader):
    first, *_, last = net.children()
    optimizer, met = torch.optim.SGD(first.parameters(), lr=0.1), []

    class Adding:
        @hookimpl
        def train_step_end(self, state):
            if state.step == 1:
                optimizer.add_param_group({"params": last.parameters()})

    def train_step(batch, model):
        met.append(last.bias.grad)
        x, y = batch
        return nn.functional.mse_loss(model(x), y)

    run = Run(random_seed=0, command_line=[])
    run.train_step(train_step)
    run.configure_optimizers(lambda: optimizer)
    run(net, loader, max_steps=3, callbacks=[Adding()], **QUIET)
    assert met == [None, None, None]
