"""Clipping: what is measured, and where it would come too late."""

import math
import re

import pytest
import torch
from torch import nn

from blowtorch import OptionError, Run, ScriptError, open_run
from tests.core.training.gradient_runs import QUIET, batches, copied, sgd, start, weights


def test_the_norm_before_clipping_is_recorded(net, events):
    twin = copied(net)
    result = start()(net, batches(8), clip_grad_norm=0.01, **QUIET)
    (x, y) = batches(8)[0]
    nn.functional.mse_loss(twin(x), y).backward()
    expected = nn.utils.get_total_norm([parameter.grad for parameter in twin.parameters()])
    assert events(result, "metrics")[0]["metrics"]["train/grad_norm"] == expected.item()
    assert result.metrics["train_epoch/grad_norm"] == expected.item()


def test_each_optimizer_is_clipped_for_itself_and_records_its_own_norm(net):
    def configure(model):
        return {name: torch.optim.SGD(model[place].parameters(), lr=1.0) for name, place in (("a", 0), ("b", 3))}

    before = weights(net)
    result = start(configure)(net, batches(8), clip_grad_norm=0.01, **QUIET)
    moved = [one - other for one, other in zip(before, weights(net), strict=True)]
    for part in (moved[:2], moved[2:]):  # by plain SGD with a rate of 1
        assert torch.cat([each.flatten() for each in part]).norm().item() == pytest.approx(0.01, rel=1e-3)
    assert {"train/grad_norm/a", "train/grad_norm/b"} <= set(result.metrics)


def test_without_clipping_no_norm_is_recorded(net):
    assert "train/grad_norm" not in start()(net, batches(8), precision="bf16", **QUIET).metrics


def test_steps_leave_no_hooks_on_an_optimizer_that_outlives_the_run(net):
    optimizer = sgd(net)
    start(lambda model: optimizer)(net, batches(8, 8), clip_grad_norm=0.01, precision="bf16", **QUIET)
    before = torch.cat([value.flatten() for value in weights(net)])
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    optimizer.step()
    moved = before - torch.cat([value.flatten() for value in weights(net)])
    assert torch.allclose(moved, torch.tensor(10.0))  # by plain SGD with a rate of 0.1, and clipped by nobody


def test_a_closure_comes_too_late_for_clipping(net):
    run = start(lambda model: torch.optim.LBFGS(model.parameters()))

    @run.train_step
    def step(batch, model, optimizers):
        def closure():
            optimizers["optimizer"].zero_grad()
            loss = nn.functional.mse_loss(model(batch[0]), batch[1])
            loss.backward()
            return loss

        return optimizers["optimizer"].step(closure).detach()

    assert run(net, batches(8), **QUIET).step == 1
    with pytest.raises(OptionError, match="optimizer 'optimizer' is stepped with a closure"):
        run(net, batches(8), clip_grad_norm=1.0, **QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "option accumulate: expected at least 1, got 0"),
        ({"clip_grad_norm": 0}, "option clip_grad_norm: expected a number above 0, got 0"),
        ({"clip_grad_norm": math.nan}, "option clip_grad_norm: expected a number above 0, got nan"),
        ({"clip_grad_value": -1.0}, "option clip_grad_value: expected a number above 0, got -1.0"),
        ({"clip_grad_value": "1"}, "option clip_grad_value: expected float or null, got '1'"),
        ({"precision": "bf61"}, "option precision: expected 'fp32', 'bf16', 'fp16', got 'bf61'. Did you mean 'bf16'?"),
        ({"on_nan": "skipp"}, "option on_nan: expected 'stop', 'warn', 'skip', 'ignore', got 'skipp'"),
        ({"compile": "yes"}, "option compile: expected bool or Mapping, got 'yes'"),
        ({"sanity_batches": -1}, "option sanity_batches: expected at least 0, got -1"),
        ({"max_samples": 0}, "option max_samples: expected at least 1, got 0"),
        ({"overfit_batches": 0}, "option overfit_batches: expected at least 1, got 0"),
    ],
)
def test_options_are_checked_before_anything_is_written(net, tmp_path, options, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        start()(net, batches(8), **options, **QUIET)
    assert not list(tmp_path.iterdir())


def test_options_for_gradients_may_be_set_anew_when_a_run_goes_on(net):
    first = start()(net, batches(*[8] * 4), max_steps=2, run_name="a", **QUIET)
    for options in ({"clip_grad_norm": 1.0}, {"accumulate": 2, "precision": "bf16"}, {"on_nan": "skip"}):
        continued = start()(net, batches(*[8] * 4), max_steps=4, resume=str(first.folder), **options, **QUIET)
        assert continued.status == "finished"


def test_a_closure_is_refused_only_by_what_comes_too_late_for_it(net):
    def make(**options):
        run = Run(random_seed=0, command_line=[])

        @run.train_step
        def step(batch, model, optimizers, backward):
            def closure():
                optimizers["optimizer"].zero_grad()
                loss = nn.functional.mse_loss(model(batch[0]), batch[1])
                backward(loss)
                return loss

            return optimizers["optimizer"].step(closure)

        run.configure_optimizers(lambda model: torch.optim.LBFGS(model.parameters(), max_iter=2))
        return run(net, batches(8, 8), **options, **QUIET)

    assert make(precision="bf16").step == 2
    with pytest.raises(OptionError, match="a closure, which .* when it is too late for clip_grad_norm=1.0;"):
        make(clip_grad_norm=1.0)


def test_large_gradients_and_sparse_ones_are_finite(net):
    data = batches(*[8] * 3)
    run = start()
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=1e-25))
    for _, y in data:
        y *= 1e18  # gradients whose norm is infinite, though they are not
    assert "train/skipped_steps" not in run(net, data, on_nan="skip", **QUIET).metrics

    embedding = nn.Embedding(5, 3, sparse=True)
    run = Run(random_seed=0, command_line=[])
    run.train_step(lambda batch, model: model(batch).square().mean())
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    assert run(embedding, [torch.tensor([1, 2, 2])] * 3, on_nan="skip", **QUIET).step == 3


@pytest.mark.parametrize("is_self_driven", [False, True])
@pytest.mark.parametrize(
    "options", [{"clip_grad_norm": 0.1}, {"clip_grad_value": 0.01}, {"clip_grad_norm": 0.1, "clip_grad_value": 0.05}]
)
def test_a_sparse_gradient_is_clipped_as_the_dense_one_that_it_stands_for(options, is_self_driven):
    words = [torch.tensor([0, 3, 3, 1]), torch.tensor([3, 3, 3, 5]), torch.tensor([2, 0, 2, 2])]

    def train(is_sparse):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 3, sparse=is_sparse), nn.Linear(3, 1))
        run = Run(random_seed=0, command_line=[])
        run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=1.0))
        if is_self_driven:

            @run.train_step
            def drive(batch, model, optimizers):
                optimizers["optimizer"].zero_grad()
                model(batch).square().sum().backward()
                optimizers["optimizer"].step()
                return {}

        else:
            run.train_step(lambda batch, model: model(batch).square().sum())
        result = run(model, words, max_epochs=2, **options, **QUIET)
        return weights(model), result.metrics

    (sparse, of_sparse), (dense, of_dense) = train(is_sparse=True), train(is_sparse=False)
    for one, other in zip(sparse, dense, strict=True):
        torch.testing.assert_close(one, other)
    assert of_sparse == pytest.approx(of_dense)


def test_a_parameter_of_two_optimizers_is_refused_where_its_gradient_would_be_changed_twice():
    net = nn.Linear(4, 1)
    run = start()
    run.configure_optimizers(
        lambda model: {
            "all": torch.optim.SGD(model.parameters(), lr=0.1),
            "weight": torch.optim.SGD([model.weight], lr=0.1),
        }
    )
    with pytest.raises(ScriptError, match="'all' and 'weight' have a parameter in common, so accumulate=2 would"):
        run(net, batches(8, 8), accumulate=2, **QUIET)
    assert run(net, batches(8, 8), **QUIET).step == 2


def test_an_optimizer_that_wants_closures_says_so_before_training(net):
    run = start()
    run.configure_optimizers(lambda model: torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ScriptError, match="'optimizer' is LBFGS, which is stepped with a closure; have the train step"):
        run(net, batches(8), **QUIET)


@pytest.mark.parametrize("most", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("options", [{}, {"on_nan": "skip"}, {"clip_grad_value": 0.1}])
def test_groups_in_another_order_are_clipped_to_the_bits_of_a_loop_that_clips_the_parameters_of_the_model(
    most, options
):
    def make():
        torch.manual_seed(0)
        widths = [(4, 7), (7, 33), (33, 5)]
        return nn.Sequential(*(layer for width in widths for layer in (nn.Linear(*width), nn.LayerNorm(width[1]))))

    def configure(model):
        decay = [each for each in model.parameters() if each.ndim > 1]
        rest = [each for each in model.parameters() if each.ndim == 1]
        groups = [{"params": rest[::-1], "weight_decay": 0.0}, {"params": decay, "weight_decay": 0.1}]
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9)

    data = [torch.randn(8, 4, generator=torch.Generator().manual_seed(number)) for number in range(20)]
    model, twin = make(), make()
    run = Run(random_seed=0, command_line=[])
    run.train_step(lambda batch, model: (model(batch) - 1).square().mean() * 10)
    run.configure_optimizers(configure)
    result = run(model, data, clip_grad_norm=most, log_every="1 step", **options, **QUIET)
    optimizer, norms = configure(twin), []
    for batch in data:
        optimizer.zero_grad()
        ((twin(batch) - 1).square().mean() * 10).backward()
        if "clip_grad_value" in options:
            nn.utils.clip_grad_value_(twin.parameters(), 0.1)
        norms.append(nn.utils.clip_grad_norm_(twin.parameters(), most).item())
        optimizer.step()
    assert all(map(torch.equal, weights(model), weights(twin)))
    assert open_run(result.folder).metrics()["train/grad_norm"].values.tolist() == norms
