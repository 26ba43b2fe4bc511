"""What is only tried leaves no trace: the run after it is, bit for bit, the run without it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler

from blowtorch import Run, hookimpl
from tests.core.small_runs import QUIET, assert_same, step, weights


def dry_run(run, net, loader):
    run(net, loader, dry_run=True, max_epochs=2, **QUIET)


def find_batch_size(run, net, loader):
    run.find_batch_size(net, loader, largest=16)


def evaluate(run, net, loader):
    run.evaluate(net, loader)


def predict(run, net, loader):
    run.predict(net, loader, gather=True)


TRAINING = [dry_run, find_batch_size]
TRIALS = [*TRAINING, evaluate, predict]


class Counting(nn.Module):
    """Counts its calls in whatever a module can count in."""

    saved: torch.Tensor
    unsaved: torch.Tensor
    replaced: torch.Tensor

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.register_buffer("saved", torch.zeros(()))
        self.register_buffer("unsaved", torch.zeros(()), persistent=False)
        self.register_buffer("replaced", torch.zeros(()), persistent=False)
        self.number, self.lengths, self.array = 0, [], np.zeros(1)

    def forward(self, x):
        self.saved += 1
        self.unsaved += 1
        self.replaced = self.replaced + 1
        self.number += 1
        self.lengths.append(len(x))
        self.array += 1
        return self.linear(x)

    def counts(self):
        return [self.saved.item(), self.unsaved.item(), self.replaced.item(), self.number, self.lengths, self.array[0]]


class Stream(IterableDataset):
    """Goes on from where it stood whenever it is iterated, without an end."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        while True:
            self.position += 1
            x = torch.full((4,), float(self.position))
            yield x, x[:1]

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class EveryEpochAnotherStart(Sampler):
    def __init__(self, size):
        self.size, self.epochs = size, 0

    def __iter__(self):
        self.epochs += 1
        return iter([(index + self.epochs) % self.size for index in range(self.size)])

    def __len__(self):
        return self.size


def start(validates=True):
    run = Run(random_seed=1, command_line=["train.py"])
    run.train_step(step)
    if validates:
        run.validate_step(step)
    run.predict_step(lambda batch, model: model(batch[0]))
    run.configure_optimizers(lambda model: torch.optim.Adam(model.parameters(), lr=0.01))
    return run


def test_each_kind_of_count_in_a_module_is_as_before(loader):
    for trial in TRIALS:
        net, run = Counting(), start(validates=trial is evaluate)
        trial(run, net, loader)
        assert net.counts() == [0, 0, 0, 0, [], 0], trial


def test_sanity_batches_leave_the_counts_of_a_module_and_the_position_of_a_stream(data):
    net, run, stream, seen = Counting(), start(), Stream(), []
    run.on("train_step_end")(lambda step: seen.append((net.number, net.unsaved.item(), stream.position)))
    run(
        net,
        DataLoader(data, 8),
        DataLoader(stream, 8),
        sanity_batches=2,
        limit_validate_batches=3,
        max_steps=1,
        **QUIET,
    )
    assert seen == [(1, 1, 0)]


@pytest.mark.parametrize("trial", TRAINING)
@pytest.mark.parametrize("place", ["global", "attribute"])
def test_an_optimizer_and_a_scheduler_that_the_script_made_itself(trial, place, data, fresh):
    def train(is_tried):
        net, run = fresh(), start(validates=False)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        holder = type("Holder", (), {})()
        holder.deep = type("Holder", (), {"both": (optimizer, scheduler)})()
        run.configure_optimizers(lambda: (optimizer, scheduler) if place == "global" else holder.deep.both)
        loader = DataLoader(data, 8, shuffle=True)
        run(net, loader, max_epochs=1, **QUIET)  # the optimizer has a state before it is tried
        before = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
        if is_tried:
            trial(run, net, loader)
            assert str(before) == str((optimizer.state_dict(), scheduler.state_dict()))
            assert scheduler.optimizer is optimizer
        result = run(net, loader, max_epochs=2, **QUIET)
        return weights(net), result.metrics

    tried, untried = train(True), train(False)
    assert_same(tried[0], untried[0])
    assert tried[1] == untried[1]


@pytest.mark.parametrize("trial", TRAINING)
def test_gradients_are_those_from_before(trial, net, loader):
    net(torch.ones(2, 4)).sum().backward()
    net[3].bias.grad = None
    before = [parameter.grad for parameter in net.parameters()]
    values = [None if gradient is None else gradient.clone() for gradient in before]
    trial(start(validates=False), net, loader)
    after = [parameter.grad for parameter in net.parameters()]
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert all(value is None or torch.equal(value, gradient) for value, gradient in zip(values, after, strict=True))


@pytest.mark.parametrize("trial", TRIALS)
def test_a_lazy_model_has_no_shape_again(trial, loader):
    def train(is_tried):
        torch.manual_seed(0)
        net, run = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Linear(8, 1)), start(trial is evaluate)

        @run.init
        def fill(model):
            with torch.no_grad():
                model(torch.zeros(2, 4))

        if is_tried:
            trial(run, net, loader)
            assert isinstance(net[0], nn.LazyLinear) and isinstance(net[0].weight, nn.UninitializedParameter)
            assert isinstance(net[1].running_mean, nn.UninitializedBuffer)
        run(net, loader, loader if trial is evaluate else None, max_epochs=1, **QUIET)
        return weights(net)

    assert_same(train(True), train(False))


@pytest.mark.parametrize("trial", TRIALS)
def test_a_stream_goes_on_from_where_it_stood(trial):
    stream, net = Stream(), nn.Linear(4, 1)
    loader, given = DataLoader(stream, 2), []
    next(iter(stream))
    run = start(validates=trial is evaluate)
    if trial is dry_run:
        run(net, loader, dry_run=True, max_steps=5, **QUIET)
    else:
        trial(run, net, loader) if trial is find_batch_size else trial(run, net, Limited(stream))
    assert stream.position == 1
    run.train_step(lambda batch, model: (given.append(batch[0][0, 0].item()), model(batch[0]).mean())[1])
    run(net, loader, loader if trial is evaluate else None, max_steps=2, limit_validate_batches=1, **QUIET)
    assert given == [2, 4]


class Limited:
    """Three batches of a stream, whose position it holds."""

    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        for number, sample in enumerate(self.stream, 1):
            yield [part[None] for part in sample]
            if number == 3:
                return

    def state_dict(self):
        return self.stream.state_dict()

    def load_state_dict(self, state):
        self.stream.load_state_dict(state)


def test_a_sampler_that_counts_its_epochs_does_not_count_a_trial(data, net):
    sampler, run = EveryEpochAnotherStart(64), start(validates=False)
    loader = DataLoader(data, 8, sampler=sampler)
    dry_run(run, net, loader)
    assert sampler.epochs == 0


def test_what_functions_name_is_put_back_as_well(loader, net):
    teacher, noise = nn.BatchNorm1d(4), np.random.default_rng(0)
    other = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    run = start(validates=False)

    @run.train_step
    def train_step(batch, model):
        optimizer.zero_grad()
        other(teacher(batch[0])).mean().backward()
        optimizer.step()
        return model(batch[0] + noise.normal()).mean()

    before, drawn = [*weights(teacher), *weights(other)], copy.deepcopy(noise).normal()
    for trial in TRAINING:
        trial(run, net, loader)
        assert_same(before, [*weights(teacher), *weights(other)])
    assert noise.normal() == drawn


class Remembering:
    """A callback that keeps what it hears, and has no state to be asked for."""

    def __init__(self):
        self.best, self.heard, self.mean = 10.0, ["before"], torch.zeros(1)

    @hookimpl
    def train_step_end(self, state):
        self.best -= 1
        self.heard.append(state.step)
        self.mean += 1


def test_callbacks_and_metric_objects_forget_what_was_tried(loader, net):
    torchmetrics = pytest.importorskip("torchmetrics")
    callback, error, run = Remembering(), torchmetrics.MeanSquaredError(), start(validates=False)
    error.update(torch.ones(4), torch.zeros(4))

    @run.train_step
    def train_step(batch, model):
        output = model(batch[0])
        error.update(output.detach(), batch[1])
        return {"loss": output.mean(), "error": error}

    heard, mean = callback.heard, callback.mean
    run(net, loader, dry_run=True, callbacks=[callback], **QUIET)
    assert (callback.best, callback.heard, callback.mean.item()) == (10.0, ["before"], 0.0)
    assert callback.heard is heard and callback.mean is mean
    assert error.compute() == 1.0


def test_a_prediction_keeps_what_a_model_remembers_from_batch_to_batch(loader):
    net, run = Counting(), start(validates=False)
    run.predict_step(lambda model, batch: (model(batch[0]), model.unsaved.clone())[1])
    assert [count.item() for count in run.predict(net, [[torch.zeros(1, 4)]] * 3)] == [1, 2, 3]
    assert net.unsaved == 0


def test_a_prediction_that_ends_late_undoes_no_training(loader):
    net, run = Counting(), start(validates=False)
    outputs = run.predict(net, loader)
    next(outputs)
    run(net, loader, max_epochs=1, **QUIET)
    trained, counts = weights(net), net.counts()
    outputs.close()
    assert_same(trained, weights(net))
    assert net.counts() == counts


def test_a_hook_a_frozen_weight_and_a_kept_object_of_an_init_function_are_gone(net, loader):
    run, hooked = start(validates=False), []

    @run.init
    def init(model):
        model[0].register_forward_hook(lambda module, inputs, output: hooked.append(0))
        model[0].weight.requires_grad_(False)
        model.double()
        model.float()
        run.keep_state("average", nn.Linear(1, 1))

    before = weights(net)
    for trial in TRAINING:
        trial(run, net, loader)
        hooked.clear()
        net(torch.ones(1, 4))
        assert not hooked and net[0].weight.requires_grad
        assert_same(before, weights(net))
    run(net, loader, max_steps=1, **QUIET)
    assert hooked
