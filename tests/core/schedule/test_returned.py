"""What `configure_optimizers` may return, and what is said of anything else."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, lr_scheduler

from blowtorch import CheckpointError, Run, ScriptError
from tests.core.small_runs import QUIET

BATCHES = [torch.ones(2, 3)] * 4


def train(configure, model=None, **options):
    run, rates = Run(random_seed=0, command_line=[]), []

    @run.train_step
    def train_step(batch, model, state):
        rates.append(state.optimizers["optimizer"].param_groups[0]["lr"])
        return model(batch).square().mean()

    run.configure_optimizers(configure)
    result = run(nn.Linear(3, 1) if model is None else model, BATCHES, **{"max_epochs": 2, **QUIET, **options})
    return rates, result


def sgd(model, rate=1.0):
    return SGD(model.parameters(), lr=rate)


def drop(optimizer):
    return lr_scheduler.ExponentialLR(optimizer, 0.5)


def paired(form):
    def configure(model):
        optimizer = sgd(model, 0.1)
        return form(optimizer, drop(optimizer))

    return configure


@pytest.mark.parametrize(
    "form",
    [
        lambda optimizer, scheduler: (optimizer, scheduler),
        lambda optimizer, scheduler: ([optimizer], [scheduler]),
        lambda optimizer, scheduler: ([optimizer], scheduler),
        lambda optimizer, scheduler: {"optimizer": optimizer, "lr_scheduler": scheduler},
        lambda optimizer, scheduler: {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}},
        lambda optimizer, scheduler: ([optimizer], [{"scheduler": scheduler, "interval": "epoch"}]),
        lambda optimizer, scheduler: [{"optimizer": optimizer, "lr_scheduler": scheduler}],
    ],
)
def test_forms_whose_meaning_is_clear_are_taken(form):
    assert train(paired(form))[0] == [0.1] * 4 + [0.05] * 4


def test_a_scheduler_in_a_mapping_is_stepped_as_that_says():
    def form(optimizer, scheduler):
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "frequency": 2}}

    assert train(paired(form))[0] == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.0125, 0.0125]


def test_a_list_of_one_optimizer_is_that_optimizer():
    assert train(lambda model: [sgd(model, 0.1)])[0] == [0.1] * 8


@pytest.mark.parametrize(
    ("configure", "match"),
    [
        (lambda model: None, "returned None; expected an optimizer, .* does it forget to return its optimizer"),
        (lambda model: SGD, r"SGD has to be made, SGD\(model.parameters\(\), lr=...\)"),
        (lambda model: functools.partial(SGD, lr=0.1), "SGD has to be made"),
        (lambda model: {"optimizer": SGD}, "SGD has to be made"),
        (lambda model: [sgd(model), sgd(model)], r"returned \[SGD, SGD\]; .* give each of several optimizers a name"),
        (lambda model: (sgd(model), sgd(model)), r"returned \(SGD, SGD\); .* give each of several optimizers a name"),
        (lambda model: ([sgd(model), sgd(model)], []), r"\[SGD, SGD\]; .*give each of several optimizers a name"),
        (lambda model: {}, r"returned \{\}; expected an optimizer"),
        (lambda model: {"a": sgd(model), "b": None}, "returned a dict with None; expected an optimizer"),
        (lambda model: model.parameters(), "returned <generator .*; expected an optimizer"),
        (lambda model: (sgd(model), {"x": sgd(model)}), "scheduler 'x': expected a scheduler, got the optimizer SGD"),
        (lambda model: (sgd(model), drop(sgd(model))), "changes the rates of a SGD that configure_optimizers does not"),
        (lambda model: (sgd(model), drop), "as scheduler 'scheduler'; it has no method step"),
        (paired(lambda o, s: {"optimizer": o, "lr_scheduler": s, "monitor": "x"}), "beside 'lr_scheduler' there is"),
        (
            paired(lambda o, s: (o, {"scheduler": s, "strict": True})),
            "mapping of 'scheduler', 'strict'; return Schedule",
        ),
    ],
)
def test_anything_else_is_an_error_that_shows_the_right_form(configure, match):
    with pytest.raises(ScriptError, match=match) as raised:
        train(configure)
    assert "\n" not in str(raised.value)


def test_a_scheduler_of_the_optimizer_inside_of_another_one_is_taken():
    class Wrapper:
        def __init__(self, inner):
            self.inner, self.param_groups = inner, inner.param_groups
            self.zero_grad = inner.zero_grad
            self.state_dict, self.load_state_dict = inner.state_dict, inner.load_state_dict

        def step(self):
            self.inner.step()

    def configure(model):
        inner = sgd(model, 0.1)
        return Wrapper(inner), drop(inner)

    assert train(configure)[0] == [0.1] * 4 + [0.05] * 4


@pytest.mark.parametrize(
    ("model", "configure", "match"),
    [
        (nn.Identity(), sgd, "the model, a Identity, has no parameters to train"),
        (
            nn.Linear(3, 1).requires_grad_(False),
            lambda model: SGD([each for each in model.parameters() if each.requires_grad], lr=0.1),
            "none of the model asks for a gradient",
        ),
        (nn.Linear(3, 1), lambda model: SGD(iter(()), lr=0.1), "was a generator of them used twice"),
    ],
)
def test_an_optimizer_without_parameters_is_explained(model, configure, match):
    with pytest.raises(ScriptError, match=match):
        train(configure, model)


class Learner(nn.Linear):
    """A model whose `train` is a whole training of its own."""

    def train(self, data, epochs=10):  # type: ignore[override]
        raise AssertionError(data, epochs)


def test_a_model_whose_train_takes_arguments_of_its_own_is_trained():
    assert train(lambda model: sgd(model, 0.1), Learner(3, 1))[1].status == "finished"


def numpy_milestones(model):
    optimizer = sgd(model, 0.1)
    return optimizer, lr_scheduler.MultiStepLR(optimizer, np.array([1, 2]), np.float64(0.5))


def numpy_function(model):
    optimizer = sgd(model, 0.1)
    return optimizer, lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 if epoch < 2 else np.exp(-epoch))


def numpy_options(model):
    return torch.optim.Adam(model.parameters(), lr=np.logspace(-3, -1, 3)[1], betas=(np.float64(0.9), np.float64(0.99)))


@pytest.mark.parametrize("configure", [numpy_milestones, numpy_function, numpy_options])
def test_numbers_of_numpy_are_saved_and_continued_as_the_numbers_that_they_are(configure):
    straight = train(configure, max_epochs=4)[0]
    first, result = train(configure, max_steps=6, max_epochs=4)
    second, result = train(configure, resume=str(result.folder), max_epochs=4)
    assert first + second == straight
    assert type(result.metrics["lr"]) is float
    torch.load(result.folder / "checkpoints" / "step-00000016" / "training.pt", weights_only=True)


def test_what_cannot_be_saved_is_named_with_its_place_before_the_first_step():
    class Odd(SGD):
        def state_dict(self):
            return {**super().state_dict(), "extra": [object()]}

    with pytest.raises(CheckpointError, match=r"optimizers/optimizer\['extra'\]\[0\] is a object"):
        train(lambda model: Odd(model.parameters(), lr=0.1))


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_constant_is_the_rate_of_the_optimizer_kept(factor):
    rates = train(lambda model: sgd(model, 0.1), scheduler={"constant": {"factor": factor}})[0]
    assert rates == [0.1 * factor] * 8


def test_constant_holds_before_a_decay():
    scheduler = [{"constant": None, "for": "1 epoch"}, "linear"]
    rates = train(lambda model: sgd(model, 0.1), scheduler=scheduler)[0]
    assert rates == pytest.approx([0.1] * 4 + [0.1, 0.075, 0.05, 0.025])
