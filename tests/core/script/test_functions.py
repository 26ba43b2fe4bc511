import pytest

from blowtorch import Run, ScriptError
from blowtorch.script.functions import Function
from tests.core.script.states import make_state


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

    state = make_state(step=4, epoch=2)
    bound = Function(step, "train_step").bind(state)
    assert bound.fill(batch="batch") == {"batch": "batch", "epoch": 2}


def test_the_step_that_a_train_step_is_given_is_the_one_under_way():
    state = make_state(step=4, epoch=1)
    train = Function(lambda batch, step: step, "train_step").bind(state)
    validate = Function(lambda batch, step: step, "validate_step").bind(state, is_validate=True)
    assert train.fill(batch=None)["step"] == 5
    assert validate.fill(batch=None)["step"] == 4


def test_binding_leaves_the_registered_function_free_for_the_next_run():
    function = Function(lambda batch, model: None, "train_step")
    states = [make_state(model=name) for name in "ab"]
    first, second = (function.bind(state) for state in states)
    assert first.fill(batch=1)["model"] == "a"
    assert second.fill(batch=2) == {"batch": 2, "model": "b"}
    assert first.fill(batch=3) == {"batch": 3, "model": "a"}


def test_what_a_function_can_be_given_is_named_once():
    with pytest.raises(ScriptError, match="It can be given") as refused:
        Run(random_seed=0, command_line=[]).on("train_step_end")(lambda nonsense: None)
    given = str(refused.value).partition("It can be given ")[2].split(", ")
    assert len(given) == len(set(given))
