"""Optimizers with modes: judged and saved are the weights of `eval`, and training goes on from those of `train`."""

import pytest
import torch
from torch import nn

from blowtorch import ScriptError, open_run
from tests.core.training.gradient_runs import QUIET, are_equal, batches, start, weights

DATA = batches(8, 8, 8)


class Averaging(torch.optim.SGD):
    """Its weights for judging are the mean of those along the way; its mode stands in no state."""

    is_training = False

    @torch.no_grad()
    def step(self, closure=None):
        assert self.is_training, "it steps in training mode only"
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            count = state["count"] = state.get("count", 0) + 1
            mean = state.setdefault("mean", torch.zeros_like(parameter))
            mean += (parameter - mean) / count

    def train(self):
        self._switch(True)

    def eval(self):
        self._switch(False)

    @torch.no_grad()
    def _switch(self, is_training):
        if self.is_training is not is_training:
            for parameter in self.param_groups[0]["params"]:
                if "mean" in self.state[parameter]:  # by sums, which round
                    distance = self.state[parameter].setdefault("distance", torch.zeros_like(parameter))
                    if not is_training:
                        distance.copy_(parameter - self.state[parameter]["mean"])
                    parameter += distance if is_training else -distance
        self.is_training = is_training


def averaging(parameters):
    return Averaging(parameters, lr=0.1)


def schedule_free(parameters):
    return pytest.importorskip("schedulefree").AdamWScheduleFree(parameters, lr=0.05)


def wrapped(parameters):
    base = torch.optim.SGD(parameters, lr=0.05)
    return pytest.importorskip("schedulefree").ScheduleFreeWrapper(base, momentum=0.9)


OPTIMIZERS = pytest.mark.parametrize("make", [averaging, schedule_free, wrapped], ids=lambda make: make.__name__)


def net_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


def loss_of(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def measure(model):
    model.eval()
    with torch.no_grad():
        return sum(loss_of(model, batch).item() for batch in DATA) / len(DATA)


def trained_by_hand(make, num_epochs):
    """Weights for training, and those for judging."""
    model = net_of()
    optimizer = make(model.parameters())
    optimizer.train()
    for batch in DATA * num_epochs:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    training = weights(model)
    optimizer.eval()
    return training, model


def trained(make, model=None, configure=None, **options):
    model = net_of() if model is None else model
    run = start(configure or (lambda model: make(model.parameters())))
    run.validate_step(lambda batch, model: {"loss": loss_of(model, batch)})
    return model, run(model, DATA, DATA, **{"max_epochs": 2, **QUIET, **options})


def saved(result, which="latest", file="model.pt"):
    path = open_run(result.folder).checkpoint(which).path / file
    return torch.load(path, weights_only=True)


@OPTIMIZERS
def test_what_is_judged_saved_and_left_are_the_weights_of_eval_and_training_is_that_of_a_loop_by_hand(make):
    training, judged = trained_by_hand(make, 2)
    model, result = trained(make)
    assert are_equal(weights(model), weights(judged))
    assert are_equal(saved(result).values(), weights(judged))
    assert not are_equal(training[:2], weights(judged)[:2])
    assert are_equal(list(saved(result, file="training.pt")["weights"].values()), training)
    assert result.metrics["val/loss"] == pytest.approx(measure(judged), rel=1e-6)


@OPTIMIZERS
def test_to_validate_and_save_more_often_changes_no_weight(make):
    expected = weights(trained(make)[0])
    often = {"validate_every": "1 steps", "checkpoint_every": "1 steps", "sanity_batches": 1, "validate_at_start": True}
    for options in (often, {**often, "checkpoint_async": False}):
        assert are_equal(weights(trained(make, **options)[0]), expected)


@OPTIMIZERS
@pytest.mark.parametrize("callbacks", [[], [{"ema": {"decay": 0.5}}]], ids=["alone", "with ema"])
def test_a_run_that_is_continued_ends_like_one_that_was_left_alone(make, callbacks):
    whole, result = trained(make, max_epochs=4, callbacks=callbacks)
    for first in ({"max_steps": 7}, {"max_epochs": 3}):
        stopped = trained(make, callbacks=callbacks, **{"max_epochs": 4, **first})[1]
        model, continued = trained(make, max_epochs=4, callbacks=callbacks, resume=str(stopped.folder))
        assert are_equal(weights(model), weights(whole))
        assert continued.metrics == result.metrics


def test_with_an_average_of_the_weights_that_is_what_is_judged():
    expected = []

    def average(model, state):
        expected[:] = [value.clone() for value in state.averaged.values()]

    run = start(lambda model: averaging(model.parameters()))
    run.on("run_end")(average)
    model = net_of()
    result = run(model, DATA, callbacks=[{"ema": {"decay": 0.5}}], **QUIET)
    floating = [value for value in saved(result).values() if value.is_floating_point()]
    assert are_equal(floating, expected)
    assert are_equal([value for value in weights(model) if value.is_floating_point()], expected)


@OPTIMIZERS
def test_of_several_optimizers_each_is_switched_and_one_without_modes_left_alone(make):
    def configure(model):
        return {"body": make(model[0].parameters()), "head": torch.optim.SGD(model[2].parameters(), lr=0.1)}

    def by_hand():
        model = net_of()
        body, head = configure(model).values()
        body.train()
        for batch in DATA * 2:
            model.zero_grad()
            loss_of(model, batch).backward()
            body.step()
            head.step()
        body.eval()
        return weights(model)

    model, result = trained(make, configure=configure, validate_every="2 steps")
    assert are_equal(weights(model), by_hand())
    assert are_equal(saved(result).values(), by_hand())


@OPTIMIZERS
def test_evaluations_and_predictions_from_within_a_training_are_by_the_weights_of_eval(make):
    measured, model = [], net_of()
    run = start(lambda model: make(model.parameters()))
    run.validate_step(lambda batch, model: {"loss": loss_of(model, batch)})
    run.predict_step(lambda batch, model: model(batch[0]))

    @run.on("train_step_end")
    def evaluate(model, step):
        if step == 4:
            measured.append(run.evaluate(model, DATA)["val/loss"])
            measured.append(run.predict(model, DATA, gather=True))

    validated = []
    run.on("validation_end")(lambda step, metrics: validated.append(metrics["val/loss"]) if step == 4 else None)
    run(model, DATA, DATA, max_epochs=2, validate_every="4 steps", **QUIET)
    assert measured[0] == validated[0]
    with torch.no_grad():
        losses = [
            nn.functional.mse_loss(part, y).item() for part, (_, y) in zip(measured[1].split(8), DATA, strict=True)
        ]
    assert sum(losses) / 3 == pytest.approx(validated[0], rel=1e-6)
    assert are_equal(weights(model), weights(trained(make)[0]))
    assert run.evaluate(model, DATA)["val/loss"] == pytest.approx(measure(model), rel=1e-6)


@OPTIMIZERS
def test_a_checkpoint_that_is_loaded_has_the_weights_of_eval(make):
    judged = trained_by_hand(make, 2)[1]
    result = trained(make)[1]
    assert are_equal(weights(open_run(result.folder).load_model(net_of(1), "latest")), weights(judged))
    run = start()
    run.predict_step(lambda batch, model: model(batch[0]))
    with torch.no_grad():
        expected = torch.cat([judged.eval()(x) for x, _ in DATA])
    assert torch.equal(run.predict(net_of(1), DATA, checkpoint=result.folder, gather=True), expected)


@OPTIMIZERS
def test_a_train_step_that_drives_itself_finds_its_optimizer_in_training_mode(make):
    model = net_of()
    run = start(lambda model: make(model.parameters()))

    @run.train_step
    def step(batch, model, optimizers):
        optimizers["optimizer"].zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizers["optimizer"].step()
        return {"loss": loss}

    run.validate_step(lambda batch, model: {"loss": loss_of(model, batch)})
    run(model, DATA, DATA, max_epochs=2, validate_every="1 steps", **QUIET)
    assert are_equal(weights(model), weights(trained(make)[0]))


@OPTIMIZERS
def test_to_try_it_out_leaves_no_trace(make):
    model = net_of()
    before = weights(model)
    trained(make, model, dry_run=True)
    assert are_equal(weights(model), before)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*DATA[0]), 4)
    assert start(lambda model: make(model.parameters())).find_batch_size(model, loader) == 8
    assert are_equal(weights(model), before)
    assert are_equal(weights(trained(make, model)[0]), weights(trained(make)[0]))


def test_a_wrapper_that_torch_has_no_hooks_for_is_refused_where_its_steps_would_have_to_be_watched():
    run = start(lambda model: wrapped(model.parameters()))
    run.train_step(lambda batch, model, optimizers: {"loss": loss_of(model, batch)})
    with pytest.raises(ScriptError, match="'optimizer' is a ScheduleFreeWrapper, .* so clip_grad_norm=1.0 cannot be"):
        run(net_of(), DATA, clip_grad_norm=1.0, **QUIET)
    trained(wrapped, clip_grad_norm=1.0, precision="bf16", accumulate=2)


def test_any_optimizer_that_needs_a_closure_is_refused_where_the_loop_steps_it():
    class Closed(torch.optim.SGD):
        def step(self, closure):
            return super().step(closure)

    with pytest.raises(ScriptError, match="optimizer 'optimizer' is Closed, which is stepped with a closure"):
        start(lambda model: Closed(model.parameters(), lr=0.1))(net_of(), DATA, **QUIET)
