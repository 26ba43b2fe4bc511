"""Precision: bf16, and fp16 with the scale of its losses."""

import pytest
import torch
from torch import nn

from blowtorch import NotFiniteError, ScriptError
from tests.core.training.gradient_runs import QUIET, are_equal, batches, start, weights


def self_driven(times=1):
    """Steps its optimizer so many times on each batch."""
    run = start()

    @run.train_step
    def step(batch, model, optimizers, backward):
        for _ in range(times):
            optimizers["optimizer"].zero_grad()
            loss = nn.functional.mse_loss(model(batch[0]), batch[1])
            backward(loss)
            optimizers["optimizer"].step()
        return {"loss": loss}

    return run


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_every_function_of_the_users_computes_in_the_precision(net, precision, dtype):
    run, seen = start(), {}
    generator_batches = batches(8)

    def note(name, model, batch):
        output = model(batch[0])
        seen[name] = output.dtype
        return {"loss": nn.functional.mse_loss(output, batch[1])}

    run.train_step(lambda batch, model: note("train", model, batch))
    run.validate_step(lambda batch, model: note("validate", model, batch))
    run.predict_step(lambda batch, model: note("predict", model, batch)["loss"])
    options = {"precision": precision, **QUIET}
    run(net, generator_batches, generator_batches, **options)
    run.predict(net, generator_batches, gather=True, **options)
    assert seen == dict.fromkeys(("train", "validate", "predict"), dtype)
    assert all(value.dtype is torch.float32 for value in weights(net))
    run.evaluate(net, generator_batches, **QUIET)
    assert seen["validate"] is torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_backward_takes_what_the_method_of_tensors_takes(net, precision):
    run = start()

    @run.train_step
    def step(batch, model, optimizers, backward):
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        backward(loss, retain_graph=True)
        once = model[0].weight.grad.clone()
        backward(loss)
        assert torch.equal(model[0].weight.grad, 2 * once)
        return loss

    assert run(net, batches(8), precision=precision, **QUIET).step == 1


@pytest.mark.parametrize("kind", ["train_step", "train_epoch"])
def test_fp16_needs_backward_where_a_function_steps_the_optimizers(net, kind):
    run = start()
    if kind == "train_step":
        run.train_step(lambda batch, optimizers: None)
    else:
        run.train_epoch(lambda data_loader, optimizers: None)
    with pytest.raises(ScriptError, match=r"fp16.*<lambda> does not ask for 'backward'; add it.*backward\(loss\)"):
        run(net, batches(8), precision="fp16", **QUIET)


def calm(number):
    """Batches whose gradients fit into fp16, scaled too."""
    return [(x, y / 10) for x, y in batches(*[8] * number)]


def scale_after(run, net, data):
    """The scale of losses in the last checkpoint; at first it is 2 to the power of 16."""
    result = run(net, data, precision="fp16", **QUIET)
    name = (result.folder / "checkpoints" / "latest").read_text().strip()
    training = torch.load(result.folder / "checkpoints" / name / "training.pt", weights_only=True)
    return training["parts"]["gradients"]["scale"]


def test_the_scale_is_halved_by_an_overflow_and_saved(net):
    spoiled = calm(3)
    spoiled[1][1][0] = 3e4
    assert scale_after(start(), net, calm(3)) == 2.0**16
    assert scale_after(start(), net, spoiled) == 2.0**15


def test_an_optimizer_may_be_stepped_twice_in_a_step_and_each_overflow_counts(net):
    data = calm(2)
    data[0][1][0] = 3e4
    assert scale_after(self_driven(times=2), net, calm(2)) == 2.0**16
    assert scale_after(self_driven(times=2), net, data) == 2.0**15

    run = self_driven()
    calls = []

    @run.train_step
    def step(batch, model, optimizers, backward):
        """Overflows in the first of two steps alone."""
        before = weights(model)
        for factor in (3e4, 1.0):
            optimizers["optimizer"].zero_grad()
            loss = nn.functional.mse_loss(model(batch[0]), batch[1]) * factor
            backward(loss)
            optimizers["optimizer"].step()
            calls.append(are_equal(before, weights(model)))
        return loss

    assert scale_after(run, net, calm(1)) == 2.0**15
    assert calls == [True, False]


@pytest.mark.parametrize("on_nan", ["stop", "warn"])
def test_fp16_does_not_look_for_a_scale_for_ever(net, on_nan):
    run = start()

    @run.train_step
    def step(batch, model):
        """The loss is finite, and its gradient never."""
        return {"loss": (model(batch[0]) * 0).sqrt().sum()}

    with pytest.raises(NotFiniteError, match="gradients of the last 100 steps, up to step 100, were not finite"):
        run(net, batches(8, 8), max_epochs=60, precision="fp16", on_nan=on_nan, **QUIET)
