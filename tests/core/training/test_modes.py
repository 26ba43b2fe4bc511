"""Modes of modules: what is in evaluation mode when a run is called stays so, and each comes back to its own."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.core.training.gradient_runs import QUIET, are_equal, batches, start, weights


class Body(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))


class KeepsStatistics(Body):
    """As in many detection networks."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


class Words(Body):
    """Its modes are set as torch says, by a method with a word for them and with more that it can be told."""

    def train(self, on=True, statistics=False):
        super().train(on)
        self[1].train(on and statistics)
        return self


class Passes(Body):
    def train(self, *arguments, **keywords):
        super().train(*arguments, **keywords)
        self[1].eval()
        return self


class TrainsItself(Body):
    """Its methods have the names of torch's and nothing else of them."""

    def train(self, data, epochs=3):
        raise AssertionError("nobody asked it to train on data")

    def eval(self, data=None):
        raise AssertionError("nobody asked it to evaluate data")


class Merging(nn.Linear):
    """Adapted weights that are merged for evaluation, as those of LoRA are."""

    def __init__(self):
        super().__init__(4, 8)
        self.weight.requires_grad_(False)
        self.adapter = nn.Parameter(torch.full((8, 4), 0.25))
        self.is_merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.is_merged is mode:
            self.weight.data += -self.adapter if mode else self.adapter
            self.is_merged = not mode
        return self

    def forward(self, x):
        assert self.is_merged is not self.training
        return super().forward(x) + (0 if self.is_merged else x @ self.adapter.T)


def model_of(body, **keywords):
    torch.manual_seed(0)
    return nn.Sequential(body(**keywords), nn.Linear(8, 1))


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


def trained(model, **options):
    """The modes in each step of training and of validations, from a run."""
    run, seen = start(), {False: [], True: []}

    @run.validate_step
    @run.train_step
    def step(batch, model, is_validate):
        seen[is_validate].append(modes(model))
        return {"loss": nn.functional.mse_loss(model(batch[0]), batch[1])}

    result = run(model, batches(8, 8), batches(8), max_epochs=2, validate_every="1 steps", **options, **QUIET)
    assert not any(any(step.values()) for step in seen[True])
    assert all(step == seen[False][0] for step in seen[False])
    return seen[False][0], (result.folder / "console.log").read_text()


def trained_by_hand(model):
    """The same without validations, of which there must be no trace in the weights."""
    torch.manual_seed(123)  # as the run does
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for x, y in batches(8, 8):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    return weights(model)


def test_what_is_in_evaluation_mode_when_the_run_is_called_stays_so_and_is_named():
    model, twin = model_of(Body), model_of(Body)
    for each in (model, twin):
        each[0].eval()
    seen, console = trained(model)
    assert seen == {"": True, "0": False, "0.0": False, "0.1": False, "0.2": False, "1": True}
    assert console.count("in evaluation mode in training too, as before it: 0\n") == 1
    assert are_equal(weights(model), trained_by_hand(twin))


def test_of_many_modules_in_evaluation_mode_the_first_are_named():
    model = nn.Sequential(nn.Linear(4, 1), *(nn.Dropout() for _ in range(12)))
    for dropout in list(model)[1:]:
        dropout.eval()
    console = trained(model)[1]
    assert "as before it: 1, 2, 3, 4, 5, 6, 7, 8 and 4 more\n" in console


def test_a_whole_model_in_evaluation_mode_is_trained_in_it_with_a_warning():
    model = model_of(Body).eval()
    with pytest.warns(UserWarning, match="the whole model was in evaluation mode when the run was called"):
        seen = trained(model)[0]
    assert not any(seen.values())
    assert torch.equal(model[0][1].running_mean, torch.zeros(8))


def test_a_model_in_training_mode_is_trained_in_it_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen, console = trained(model_of(Body))
    assert all(seen.values()) and "evaluation mode" not in console


def test_a_mode_that_init_sets_holds_for_the_run():
    run, seen = start(), []
    run.init(lambda model: model[0].eval() and None)
    run.on("train_step_end")(lambda model: seen.append(model[0].training))
    run(model_of(Body), batches(8, 8), **QUIET)
    assert seen == [False, False]


@pytest.mark.parametrize("body", [KeepsStatistics, Words, Passes], ids=lambda body: body.__name__)
def test_a_method_train_that_keeps_a_batch_norm_in_evaluation_mode_is_heeded(body):
    model, twin = model_of(body), model_of(body)
    seen, console = trained(model)
    assert [name for name, is_training in seen.items() if not is_training] == ["0.1"]
    assert "as before it: 0.1\n" in console
    twin.train()
    assert are_equal(weights(model), trained_by_hand(twin))


def test_a_method_train_that_is_no_switch_is_not_called():
    model, twin = model_of(TrainsItself), model_of(TrainsItself)
    assert all(trained(model)[0].values())
    assert are_equal(weights(model), trained_by_hand(twin))
    assert all(module.training for module in model.modules())
    run = start()
    run.predict_step(lambda batch, model: model(batch[0]))
    run.predict(model, batches(8), gather=True)


def test_a_method_train_that_an_instance_was_given_is_heeded():
    model = model_of(Body)
    model[0].eval()
    model[0].train = lambda mode=True: model[0]  # a common way to freeze an encoder for good
    assert not trained(model)[0]["0.1"]


def test_weights_that_are_merged_for_evaluation_are_taken_apart_for_training():
    model, twin = model_of(Merging), model_of(Merging)
    trained(model)
    trained_by_hand(twin)
    assert model[0].is_merged is False
    assert not torch.equal(model[0].adapter, torch.full((8, 4), 0.25))
    assert torch.allclose(model[0].adapter, twin[0].adapter)


def test_merged_weights_that_are_in_evaluation_mode_before_the_run_stay_merged():
    model = model_of(Merging)
    model[0].eval()
    before = model[0].weight.clone()
    trained(model)
    assert model[0].is_merged and torch.equal(model[0].weight, before)


def test_modes_are_those_of_before_after_a_search_for_the_batch_size_and_it_is_done_in_them():
    model, run, seen = model_of(Body), start(), []
    model[0].eval()

    @run.train_step
    def step(batch, model):
        seen.append(modes(model))
        return {"loss": model(batch[0]).mean()}

    before = modes(model)
    data = TensorDataset(*batches(8)[0])
    assert run.find_batch_size(model, DataLoader(data, 4)) == 8
    assert all(each == before for each in seen) and seen
    assert modes(model) == before
