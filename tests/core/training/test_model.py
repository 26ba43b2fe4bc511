"""Compiled models, and operations whose gradient is not a number."""

import pytest
import torch
from torch import nn

from blowtorch import BlowtorchWarning
from tests.core.training.gradient_runs import QUIET, are_equal, batches, copied, start, weights


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("is_on", [False, True])
def test_anomalies_are_looked_for_only_while_a_run_trains(net, before, is_on):
    seen, run = [], start()
    run.on("train_step_end")(lambda: seen.append(torch.is_anomaly_enabled()))
    with torch.autograd.set_detect_anomaly(before):
        run(net, batches(8, 8), detect_anomalies=is_on, **QUIET)
        assert torch.is_anomaly_enabled() is before
        run.on("train_step_end")(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            run(net, batches(8, 8), detect_anomalies=is_on, **QUIET)
        assert torch.is_anomaly_enabled() is before
    assert seen == [is_on or before] * 3


@pytest.mark.filterwarnings("ignore:Error detected in SqrtBackward0:UserWarning")
def test_a_gradient_that_is_nan_names_its_operation(net):
    run = start()

    @run.train_step
    def step(batch, model):
        return {"loss": (model(batch[0]) * 0).sqrt().mean()}

    with pytest.raises(RuntimeError, match="Function 'MulBackward0' returned nan values"):
        run(net, batches(8), detect_anomalies=True, **QUIET)


@pytest.mark.parametrize("by", ["the option", "the script"])
def test_a_compiled_model_is_saved_under_its_own_names_and_continued_without_being_compiled(net, by):
    names, seen = list(net.state_dict()), []
    run = start()

    @run.train_step
    def step(batch, model):
        seen.append(type(model).__name__)
        return {"loss": nn.functional.mse_loss(model(batch[0]), batch[1])}

    run.init(lambda model: seen.append(type(model).__name__))
    compile = {"backend": "eager"} if by == "the option" else False
    given = net if by == "the option" else torch.compile(net, backend="eager")
    result = run(given, batches(8, 8), compile=compile, **QUIET)
    assert seen == ["Sequential", "OptimizedModule", "OptimizedModule"]
    saved = torch.load(result.folder / "checkpoints" / "step-00000002" / "model.pt", weights_only=True)
    assert list(saved) == names
    twin = copied(net)
    start()(twin, batches(8, 8), max_epochs=2, resume=str(result.folder), **QUIET)
    assert not are_equal(weights(net), weights(twin))


def test_a_validation_computes_with_the_compiled_model_in_evaluation_mode(net):
    run, seen = start(), []

    @run.validate_step
    def validate(batch, model):
        seen.append((type(model).__name__, model.training, net.training))
        return {"loss": model(batch[0]).mean()}

    run(net, batches(8), batches(8), compile={"backend": "eager"}, **QUIET)
    assert seen == [("OptimizedModule", False, False)]
    assert net.training


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net, torch.zeros(8, 4))])
def test_a_module_of_torch_jit_is_trained_continued_and_loaded(net, make):
    by_hand, jitted, again = copied(net), make(copied(net)), make(copied(net))
    start()(by_hand, batches(8, 8, 8), **QUIET)
    run = start()
    run.on("train_step_end")(lambda state: state.stop("enough") if state.step == 2 else None)
    stopped = run(jitted, batches(8, 8, 8), **QUIET)
    with pytest.warns(BlowtorchWarning, match="torch.compile takes no .*Module, so the option compile is left out"):
        start()(again, batches(8, 8, 8), resume=str(stopped.folder), compile=True, **QUIET)
    assert are_equal(weights(by_hand), weights(again))
