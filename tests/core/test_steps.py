from types import SimpleNamespace

import pytest
import torch

from blowtorch import ScriptError
from blowtorch.steps import Function, Optimization, Returns


def returns(warnings=None):
    return Returns("step", (warnings if warnings is not None else []).append)


def test_a_function_is_asked_for_its_names_when_it_is_registered():
    def step(batch, model, step, weight=2):
        pass

    assert Function(step, "train_step").asks_for == ("batch", "model", "step")


def test_an_argument_that_cannot_be_given_names_the_nearest_and_all_that_can():
    def step(bacth, model):
        pass

    with pytest.raises(ScriptError, match=r"'bacth'.*Did you mean 'batch'\? It can be given batch, model"):
        Function(step, "train_step")


def test_a_batch_is_no_argument_of_a_function_that_is_called_once():
    with pytest.raises(ScriptError, match="asks for an argument 'batch', which a init function cannot be given"):
        Function(lambda batch: None, "init")


def test_an_argument_with_a_default_that_bears_a_known_name_is_filled():
    def step(batch, epoch=0, other=1):
        return epoch

    state = SimpleNamespace(model=None, device=None, config=None, log=None, optimizers={}, step=4, epoch=2)
    bound = Function(step, "train_step").bind(state)
    assert bound.given(batch="batch") == {"batch": "batch", "epoch": 2}


def test_the_step_that_a_train_step_is_given_is_the_one_under_way():
    state = SimpleNamespace(model=None, device=None, config=None, log=None, optimizers={}, step=4, epoch=1)
    train = Function(lambda batch, step: step, "train_step").bind(state)
    validate = Function(lambda batch, step: step, "validate_step").bind(state, is_validate=True)
    assert train.given(batch=None)["step"] == 5
    assert validate.given(batch=None)["step"] == 4


def test_binding_leaves_the_registered_function_free_for_the_next_run():
    function = Function(lambda batch, model: None, "train_step")
    states = [SimpleNamespace(model=name, device=None, config=None, log=None, optimizers={}) for name in "ab"]
    first, second = (function.bind(state) for state in states)
    assert first.given(batch=1)["model"] == "a"
    assert second.given(batch=2) == {"batch": 2, "model": "b"}
    assert first.given(batch=3) == {"batch": 3, "model": "a"}


def test_a_lone_tensor_is_the_loss_and_logged_values_join_it():
    loss, logged = torch.tensor(1.0), {"accuracy": 0.5}
    assert returns().read(loss, logged) == {"loss": loss, "accuracy": 0.5}
    assert logged == {}


def test_a_tensor_that_is_no_scalar_is_averaged_with_one_warning():
    warnings = []
    reader = returns(warnings)
    for _ in range(3):
        read = reader.read({"loss": torch.tensor([1.0, 3.0]), "right": torch.tensor([True, False])}, {})
        assert read["loss"] == 2.0 and read["right"] == 0.5
    assert len(warnings) == 1
    assert "step returned 'loss' with shape (2,)" in warnings[0]


def test_what_a_step_returns_is_left_unchanged():
    returned = {"loss": torch.tensor([1.0, 3.0]), "batch_size": 7}
    read = returns().read(returned, {})
    read.pop("batch_size")
    assert returned["loss"].shape == (2,) and returned["batch_size"] == 7


@pytest.mark.parametrize("value", [None, "0.5", [torch.tensor(1.0)], (1, 2)])
def test_a_step_that_returns_nothing_usable_says_what_it_returned(value):
    with pytest.raises(ScriptError, match="step returned .*; expected a scalar tensor or a dict"):
        returns().read(value, {})


@pytest.mark.parametrize("value", [None, "0.5", [1.0]])
def test_a_metric_that_is_not_a_number_is_named(value):
    with pytest.raises(ScriptError, match="step returned 'accuracy' as .*; a metric is a tensor or a number"):
        returns().read({"loss": torch.tensor(1.0), "accuracy": value}, {})


def test_numpy_numbers_and_booleans_are_numbers():
    numpy = pytest.importorskip("numpy")
    assert returns().read({"a": numpy.float32(0.5), "b": True}, {}) == {"a": 0.5, "b": True}


def test_a_metric_must_have_a_string_for_a_name():
    with pytest.raises(ScriptError, match="a metric named 1; names are strings"):
        returns().read({1: torch.tensor(1.0)}, {})


def weight_and(optimize_metric=None, function=lambda batch: None):
    weight = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.5)
    return weight, Optimization(Function(function, "train_step"), {"optimizer": optimizer}, optimize_metric, returns())


def test_the_loss_is_minimised_when_there_is_one():
    weight, optimization = weight_and()
    optimization.zero_grad()
    optimization({"other": (3 * weight).sum(), "loss": (2 * weight).sum()}, {})
    assert weight.item() == 0.0


def test_the_option_names_another_metric():
    weight, optimization = weight_and("other")
    optimization({"other": (4 * weight).sum(), "loss": (2 * weight).sum()}, {})
    assert weight.item() == -1.0


def test_the_only_metric_with_a_gradient_is_minimised():
    weight, optimization = weight_and()
    optimization({"accuracy": 0.5, "energy": (2 * weight).sum(), "norm": weight.detach().sum()}, {})
    assert weight.item() == 0.0


def test_gradients_stay_readable_until_the_next_step():
    weight, optimization = weight_and()
    optimization({"loss": (2 * weight).sum()}, {})
    assert weight.grad.item() == 2.0
    optimization.zero_grad()
    assert weight.grad is None


@pytest.mark.parametrize(
    ("option", "names", "message"),
    [
        (None, ["a", "b"], "returned 'a', 'b', of which 'a', 'b' carry a gradient; return one called 'loss'"),
        ("los", ["loss"], r"optimize_metric is 'los', but .* returned 'loss'.* Did you mean 'loss'\?"),
    ],
)
def test_an_unclear_or_unknown_metric_to_minimise_is_an_error(option, names, message):
    weight, optimization = weight_and(option)
    with pytest.raises(ScriptError, match=message):
        optimization({name: weight.sum() for name in names}, {})


def test_a_loss_without_gradient_is_an_error_before_backward():
    _, optimization = weight_and()
    with pytest.raises(ScriptError, match="returned 'loss' without a gradient"):
        optimization({"loss": torch.tensor(1.0)}, {})


def test_a_step_that_asks_for_optimizers_drives_itself():
    weight, optimization = weight_and(function=lambda batch, optimizers: None)
    optimization({"loss": (2 * weight).sum()}, {})
    optimization.zero_grad()
    assert weight.item() == 1.0 and weight.grad is None
