"""Several validations: data by name, no data at all, the order in which they are done, and evaluation by name."""

import warnings

import pytest
import torch
from torch import nn

from blowtorch import BlowtorchWarning, Run, ScriptError
from tests.core.small_runs import QUIET

BATCHES = [torch.full((4, 3), float(index)) for index in range(1, 5)]


def make_run():
    run = Run(random_seed=0, command_line=[])
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.0))
    run.train_step(lambda batch, model: model(batch).square().mean())
    return run


def mean(batch, model):
    return {"mean": batch.mean()}


def net():
    return nn.Linear(3, 1)


@pytest.fixture
def two():
    run = make_run()
    run.validate_step(name="inside")(mean)
    run.validate_step(BATCHES[2:], name="outside")(mean)
    return run


def test_loaders_of_validations_are_given_by_name(two):
    result = two(net(), BATCHES, {"inside": BATCHES[:1]}, **QUIET)
    assert (result.metrics["inside/mean"], result.metrics["outside/mean"]) == (1.0, 3.5)
    result = two(net(), BATCHES, {"outside": BATCHES[:2], "inside": BATCHES[:1]}, **QUIET)
    assert (result.metrics["inside/mean"], result.metrics["outside/mean"]) == (1.0, 1.5)  # the call comes first


def test_a_mapping_that_names_no_validation_is_refused_with_the_nearest_name(two):
    with pytest.raises(
        ScriptError, match=r"'insid' is no validation that takes data. Did you mean 'inside'\? There are"
    ):
        two(net(), BATCHES, {"insid": BATCHES}, **QUIET)
    with pytest.raises(ScriptError, match="'x' is no validation that takes data. There are inside, outside"):
        two.evaluate(net(), {"x": BATCHES, "y": BATCHES})
    with pytest.raises(ScriptError, match="'val' is no validation that takes data. There are none"):
        make_run()(net(), BATCHES, {"val": BATCHES}, **QUIET)


def test_a_validation_that_takes_no_batches_needs_none():
    run, sampled = make_run(), []

    @run.validate_epoch(name="sample")
    def sample(model, step):
        sampled.append(step)
        return {"size": 2.0}

    with warnings.catch_warnings():
        warnings.simplefilter("error", BlowtorchWarning)
        assert run(net(), BATCHES, validate_every="2 steps", **QUIET).metrics["sample/size"] == 2.0
        run.validate_epoch([], name="sample")(sample)
        run(net(), BATCHES, sanity_batches=1, **QUIET)
        assert run.evaluate(net()) == {"sample/size": 2.0}
    assert sampled[:2] == [2, 4]


def test_one_that_takes_no_batches_stands_beside_one_that_is_given_those_of_the_call():
    run = make_run()
    run.validate_epoch(name="sample")(lambda model: {"size": 2.0})
    run.validate_step(mean)
    metrics = run(net(), BATCHES, BATCHES[:1], **QUIET).metrics
    assert (metrics["sample/size"], metrics["val/mean"]) == (2.0, 1.0)


def test_validations_are_done_in_the_order_in_which_they_are_written():
    run, order = make_run(), []

    @run.validate_step(BATCHES, name="first")
    @run.validate_step(BATCHES, name="second")
    def one(batch, model):
        return {"mean": batch.mean()}

    @run.validate_step
    @run.validate_step(BATCHES, name="fourth")
    def other(batch, model):
        return {"mean": batch.mean()}

    run.validate_step(BATCHES, name="fifth")(mean)
    run.validate_step(BATCHES, name="sixth")(mean)
    run.on("validation_end")(lambda name: order.append(name))
    run(net(), BATCHES, BATCHES, **QUIET)
    assert order == ["first", "second", "val", "fourth", "fifth", "sixth"]
    run.validate_step(BATCHES, name="second")(mean)  # as a cell of a notebook that is run again
    order.clear()
    run(net(), BATCHES, BATCHES, **QUIET)
    assert order == ["first", "second", "val", "fourth", "fifth", "sixth"]


def test_all_validations_are_evaluated_or_the_one_that_is_named(two):
    assert two.evaluate(net(), BATCHES[:1]) == {"inside/mean": 1.0, "outside/mean": 3.5}
    assert two.evaluate(net(), name="outside") == {"outside/mean": 3.5}
    assert two.evaluate(net(), BATCHES[:1], name="outside") == {"outside/mean": 1.0}
    assert two.evaluate(net(), {"inside": BATCHES[1:2]}) == {"inside/mean": 2.0, "outside/mean": 3.5}
    with pytest.warns(BlowtorchWarning, match="'inside' has no loader, so it is left out"):
        assert two.evaluate(net()) == {"outside/mean": 3.5}


def test_the_data_of_the_call_are_those_of_the_only_validation():
    run = make_run()
    run.validate_step(BATCHES)(mean)
    assert run.evaluate(net(), BATCHES[:1]) == {"val/mean": 1.0}
    assert run.evaluate(net()) == {"val/mean": 2.5}


def test_what_cannot_be_evaluated_is_said(two):
    with pytest.raises(
        ScriptError, match=r"no validation 'outsid'. Did you mean 'outside'\? There are inside, outside"
    ):
        two.evaluate(net(), name="outsid")
    with pytest.raises(ScriptError, match="validation 'inside' has no data; give it a loader"):
        two.evaluate(net(), name="inside")
    two.validate_step(BATCHES, name="inside")(mean)
    with pytest.raises(ScriptError, match="no validation step uses it; .* name the validation that is meant"):
        two.evaluate(net(), BATCHES[:1])
