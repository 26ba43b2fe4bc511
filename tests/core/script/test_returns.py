from types import SimpleNamespace
from typing import Any

import pytest
import torch

from blowtorch import ScriptError
from blowtorch.record.logged import Logged
from blowtorch.record.metrics import Total
from blowtorch.script.functions import Function
from blowtorch.script.returns import Loss, Returns


def returns(warnings=None):
    return Returns("step", Logged(), (warnings if warnings is not None else []).append)


def test_a_lone_tensor_is_the_loss_and_logged_values_join_it():
    loss, logged = torch.tensor(1.0), Logged()
    logged.add({"accuracy": 0.5})
    assert Returns("step", logged, print).as_scalars(loss) == {"loss": loss, "accuracy": 0.5}
    assert logged.values == {}


def test_a_tensor_that_is_no_scalar_is_averaged_with_one_warning():
    warnings = []
    reader = returns(warnings)
    for _ in range(3):
        read = reader.as_scalars({"loss": torch.tensor([1.0, 3.0]), "right": torch.tensor([True, False])})
        assert read["loss"] == 2.0 and read["right"] == 0.5
    assert len(warnings) == 1
    assert "step returned 'loss' with shape (2,)" in warnings[0]


def test_what_a_step_returns_is_left_unchanged():
    returned: dict[str, Any] = {"loss": torch.tensor([1.0, 3.0]), "batch_size": 7}
    read = returns().as_scalars(returned)
    read.pop("batch_size")
    assert returned["loss"].shape == (2,) and returned["batch_size"] == 7


def test_a_batch_weighs_what_it_says_or_what_the_step_returned():
    reader = returns()
    assert reader.reader()({"loss": 1.0}, [torch.ones(3, 2), torch.ones(3)]) == (None, 3, {"loss": 1.0})
    assert reader.reader()({"loss": 5.0, "batch_size": 1}, [torch.ones(3, 2)]) == (None, 1, {"loss": 5.0})
    assert reader.window.means() == {"loss": 2.0}


@pytest.mark.parametrize("number", [1.5, 2, torch.tensor(0.25), torch.tensor(3), torch.tensor([0.5, 1.0]), True])
def test_the_first_return_and_those_after_it_are_read_alike(number):
    batch, reader = torch.ones(4), returns()
    read = reader.reader()
    first, second = (read({"loss": number}, batch) for _ in range(2))
    assert first == second
    assert reader.window.close() == {"loss": Total(2 * 4 * float(first[2]["loss"]), 8)}


def test_metrics_may_change_their_kind_from_step_to_step():
    """Each is counted once and with the right weight, whatever the steps before it returned."""
    reader, batch = returns(), torch.ones(2)
    steps = [
        {"loss": torch.tensor(1.0), "right": 0.5},
        {"loss": torch.tensor(1.0), "right": 1},
        {"loss": torch.tensor(1.0), "right": torch.tensor([True, False])},
        {"loss": torch.tensor(1.0), "right": 0.5, "batch_size": 4},
        {"loss": torch.tensor(1.0)},
        {},
    ]
    read = reader.reader()
    for step in steps:
        read(step, batch)
    assert reader.window.close() == {"loss": Total(12.0, 12), "right": Total(1 + 2 + 1 + 2, 10)}


def test_a_lone_loss_and_a_dict_may_take_turns():
    """The sum of a lone loss stands in the reader, and nothing that comes between is lost or counted twice."""
    reader, batch = returns(), [torch.ones(2, 3)]
    read = reader.reader()
    for step in (torch.tensor(1.0), torch.tensor(1.0), {"loss": torch.tensor(97.0)}, torch.tensor(1.0)):
        read(step, batch)
    assert reader.window.means() == {"loss": 25.0}
    read(torch.tensor(25.0), batch)
    assert reader.window.state_dict() == {"loss": [250.0, 10, "mean"]}
    assert reader.window.close() == {"loss": Total(250.0, 10)}
    read(torch.tensor(3.0), batch)
    reader.window.add({"loss": 5.0}, 2)
    assert reader.reader()(torch.tensor(4.0), batch)[1] == 2
    assert reader.window.means() == {"loss": 4.0}


@pytest.mark.parametrize("batch", [[], [SimpleNamespace(shape=None)], [torch.tensor(5.0)], torch.tensor(5.0), {}, None])
def test_a_batch_without_a_size_counts_as_one_sample_at_every_step(batch):
    read = returns().reader()
    assert [read(torch.tensor(1.0), batch)[1] for _ in range(3)] == [1, 1, 1]


def test_the_loss_is_chosen_anew_in_each_epoch():
    reader, loss = returns(), Loss(Function(lambda batch: None, "train_step"), None)
    first, batch = {"recon": gradient()}, torch.ones(2)
    assert reader.reader(loss)(first, batch)[0] is first["recon"]
    later = {"recon": gradient(), "loss": gradient()}
    assert reader.reader(loss)(later, batch)[0] is later["loss"]


def test_a_metric_that_stops_to_be_a_number_is_an_error_at_any_step():
    reader = returns()
    reader.reader()({"loss": torch.tensor(1.0), "right": 0.5}, torch.ones(2))
    with pytest.raises(ScriptError, match="step returned 'right' as None"):
        reader.reader()({"loss": torch.tensor(1.0), "right": None}, torch.ones(2))


def test_a_batch_of_numbers_counts_as_one_sample():
    reader = returns()
    assert [reader.reader()(torch.tensor(1.0), torch.tensor(5.0))[1] for _ in range(2)] == [1, 1]


def test_values_on_an_accelerator_are_not_read_by_any_step():
    """The meta device cannot be read at all, so taking must not try."""
    reader = returns()
    for _ in range(3):
        reader.reader()({"loss": torch.empty((), device="meta")}, torch.ones(2))


def test_a_lone_tensor_may_be_logged_beside_at_any_step():
    logged = Logged()
    reader = Returns("step", logged, print)
    reader.reader()(torch.tensor(1.0), torch.ones(2))
    logged.add({"extra": 5})
    reader.reader()(torch.tensor(3.0), torch.ones(2))
    assert reader.window.means() == {"loss": 2.0, "extra": 5.0}


@pytest.mark.parametrize("value", [None, "0.5", [torch.tensor(1.0)], (1, 2)])
def test_a_step_that_returns_nothing_usable_says_what_it_returned(value):
    with pytest.raises(ScriptError, match="step returned .*; expected a scalar tensor or a dict"):
        returns().as_scalars(value)


@pytest.mark.parametrize("value", [None, "0.5", [1.0]])
def test_a_metric_that_is_not_a_number_is_named(value):
    with pytest.raises(ScriptError, match="step returned 'accuracy' as .*; a metric is a tensor or a number"):
        returns().as_scalars({"loss": torch.tensor(1.0), "accuracy": value})


def test_a_metric_must_have_a_string_for_a_name():
    with pytest.raises(ScriptError, match="a metric named 1; names are strings"):
        returns().as_scalars({1: torch.tensor(1.0)})


def choose(metrics, optimize_metric=None):
    loss = Loss(Function(lambda batch: None, "train_step"), optimize_metric)
    assert loss.of(metrics) is metrics[loss.name]
    return loss.name


def gradient():
    return torch.ones((), requires_grad=True) * 2


def test_the_loss_is_minimised_when_there_is_one():
    assert choose({"other": gradient(), "loss": gradient()}) == "loss"


def test_the_option_names_another_metric():
    assert choose({"other": gradient(), "loss": gradient()}, "other") == "other"


def test_the_only_metric_with_a_gradient_is_minimised():
    assert choose({"accuracy": 0.5, "energy": gradient(), "norm": gradient().detach()}) == "energy"


@pytest.mark.parametrize(
    ("option", "names", "message"),
    [
        (None, ["a", "b"], "returned 'a', 'b', of which 'a', 'b' carry a gradient; return one called 'loss'"),
        ("los", ["loss"], r"optimize_metric is 'los', but .* returned 'loss'.* Did you mean 'loss'\?"),
    ],
)
def test_an_unclear_or_unknown_metric_to_minimise_is_an_error(option, names, message):
    with pytest.raises(ScriptError, match=message):
        choose({name: gradient() for name in names}, option)


@pytest.mark.parametrize("value", [torch.tensor(1.0), 1.0])
def test_a_loss_without_gradient_is_an_error_before_backward(value):
    with pytest.raises(ScriptError, match="returned 'loss' without a gradient"):
        choose({"loss": value})


@pytest.mark.parametrize("size", [0, -1])
def test_a_returned_batch_size_is_above_zero(size):
    with pytest.raises(ScriptError, match="'batch_size' as .*; it is a number above 0"):
        returns().as_scalars({"loss": 1.0, "batch_size": size})


def test_a_complex_metric_is_refused():
    with pytest.raises(ScriptError, match="'wave' as a complex number"):
        returns().as_scalars({"wave": torch.tensor(1j)})
