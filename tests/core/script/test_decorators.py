"""What a script registers with a run, and what its functions may ask for."""

import sys

import pytest
import torch

from blowtorch import (
    ConfigError,
    Run,
    ScriptError,
)
from tests.core.small_runs import QUIET, weights


@pytest.mark.parametrize("is_notebook", [True, False])
def test_a_cell_that_is_run_again_replaces_its_functions(make_run, net, loader, monkeypatch, is_notebook):
    if is_notebook:
        monkeypatch.delattr(sys.modules["__main__"], "__file__")
    run = make_run(validates=False)
    called = []
    for number in (1, 2):  # what a notebook does when a cell is run twice
        exec(
            f"@run.on('run_start')\ndef note():\n    called.append({number})\n"
            "@run.init\ndef prepare():\n    called.append('init')",
            {"run": run, "called": called, "__name__": "__main__"},
        )
        run.on("run_start")(lambda: called.append("lambda"))
    run(net, loader, **QUIET)
    assert called == (["init", 2, "lambda", "lambda"] if is_notebook else ["init", "init", 1, "lambda", 2, "lambda"])


def test_a_prediction_step_is_not_given_what_it_could_not_record(make_run):
    with pytest.raises(ScriptError, match="asks for an argument 'log', which a predict_step function cannot be given"):
        make_run().predict_step(lambda batch, log: None)


def test_init_functions_see_the_model_before_the_optimizers(make_run, net, loader):
    run = make_run(validates=False)
    order = []
    run.init(lambda model, device: order.append((model is net, device.type)))
    run.configure_optimizers(lambda model: order.append("optimizers") or torch.optim.SGD(model.parameters(), lr=0.1))
    run(net, loader, **QUIET)
    assert order == [(True, "cpu"), "optimizers"]


def test_a_step_can_ask_for_everything(net, loader):
    run = Run(config={"a": 1}, random_seed=0, command_line=[])
    seen = []

    @run.train_step
    def step(batch, model, device, epoch, step, is_validate, config, log, state, optimizers, backward):
        seen.append((epoch, step, is_validate, config["a"], state.step, sorted(optimizers)))
        loss = model(batch[0]).pow(2).mean()
        optimizers["optimizer"].zero_grad()
        backward(loss)
        optimizers["optimizer"].step()
        log({"twice": 2.0})
        return {"loss": loss.detach()}

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    before = weights(net)
    result = run(net, loader, max_steps=2, **QUIET)
    assert seen == [(1, 1, False, 1, 0, ["optimizer"]), (1, 2, False, 1, 1, ["optimizer"])]
    assert result.metrics["train/twice"] == 2.0
    assert not torch.equal(before[0], weights(net)[0])


def test_loaders_given_to_decorators_may_be_left_out_of_the_call(net, loader):
    run = Run(random_seed=0, command_line=[])

    @run.train_step(loader)
    @run.validate_step(loader)
    def step(batch, model):
        return model(batch[0]).pow(2).mean()

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    assert {"train/loss", "val/loss"} <= set(run(net, max_epochs=1, **QUIET).metrics)
    assert step.__name__ == "step"


def test_what_a_script_lacks_is_said_before_anything_is_written(net, loader, tmp_path, make_run, monkeypatch):
    run = Run(random_seed=0, command_line=[])
    with pytest.raises(ScriptError, match="no train step"):
        run(net, loader)
    run.train_step(lambda batch, model: model(batch[0]).mean())
    with pytest.raises(ScriptError, match="no optimizer"):
        run(net, loader)
    run = make_run(validates=False)
    with pytest.raises(ScriptError, match="nothing to train on"):
        run(net)
    with pytest.raises(ScriptError, match="no validation step uses it"):
        run(net, loader, loader)
    with pytest.raises(ScriptError, match="train loader is empty"):
        run(net, [])
    with pytest.raises(ScriptError, match=r"expects a torch.nn.Module, got 'net'"):
        run("net", loader)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_moment_names_the_nearest():
    with pytest.raises(ScriptError, match=r"'epoch_ended'.*Did you mean 'epoch_end'\?"):
        Run(random_seed=0, command_line=[]).on("epoch_ended")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"config_files": 3}, "config_files is the path of a file, or a list of paths, got 3"),
        ({"config_files": ["a.yaml", None]}, "config_files is the path of a file"),
        ({"command_line": "with a=1"}, "command_line is a list of words like sys.argv, got the string 'with a=1'"),
    ],
)
def test_arguments_of_a_run_of_a_wrong_type_are_refused(keywords, message):
    with pytest.raises(ConfigError, match=message):
        Run(**keywords)
