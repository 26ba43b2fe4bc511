"""What a training script can do, and what it is told when it cannot."""

import dataclasses
import inspect
import os
import signal
import sys
import traceback

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from blowtorch import (
    BlowtorchWarning,
    CheckpointError,
    ConfigError,
    ExtensionError,
    NotFiniteError,
    OptionError,
    Run,
    RunFolderError,
    RunOptions,
    Schedule,
    ScriptError,
    find_runs,
    hookimpl,
    open_run,
)

QUIET = {"progress": False}


class Ear:
    """A callback that notes every moment."""

    def __init__(self):
        self.heard = []

    @hookimpl
    def run_start(self, state):
        self.heard.append(("run_start", state.step))

    @hookimpl
    def epoch_start(self, state):
        self.heard.append(("epoch_start", state.epoch))

    @hookimpl
    def train_step_end(self, state, metrics):
        self.heard.append(("train_step_end", state.step, sorted(metrics)))

    @hookimpl
    def validation_end(self, state, name, metrics):
        self.heard.append(("validation_end", state.step, name, sorted(metrics)))

    @hookimpl
    def epoch_end(self, state, metrics):
        self.heard.append(("epoch_end", state.epoch, sorted(metrics)))

    @hookimpl
    def checkpoint_saved(self, state, checkpoint, is_best):
        self.heard.append(("checkpoint_saved", checkpoint.name, is_best))

    @hookimpl
    def run_end(self, state, status):
        self.heard.append(("run_end", status))


def weights(model):
    return [value.clone() for value in model.state_dict().values()]


def assert_same(first, second):
    assert len(first) == len(second)
    for mine, other in zip(first, second, strict=True):
        assert torch.equal(mine, other)


def hand_loop(net, batches, epochs, make=lambda parameters: torch.optim.Adam(parameters, lr=0.01)):
    optimizer = make(net.parameters())
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()
    return weights(net)


# ---------------------------------------------------------------- training


def test_weights_equal_those_of_the_same_loop_by_hand(make_run, net, data):
    batches = list(DataLoader(data, batch_size=8))
    start = weights(net)
    make_run()(net, batches, batches, max_epochs=3, **QUIET)
    trained = weights(net)
    net.load_state_dict(dict(zip(net.state_dict(), start, strict=True)))
    assert_same(trained, hand_loop(net, batches, 3))


def test_a_result_says_how_the_run_ended(make_run, net, loader):
    result = make_run()(net, loader, loader, max_epochs=2, **QUIET)
    assert (result.status, result.epoch, result.step) == ("finished", 2, 16)
    assert result.best.metric == result.metrics["val/loss"]
    assert result.best.path.is_dir()
    assert {"train/loss", "train_epoch/loss", "val/loss", "lr"} <= set(result.metrics)
    result.raise_if_stopped()


def test_one_epoch_is_trained_when_nothing_limits_the_run(make_run, net, loader):
    assert make_run(validates=False)(net, loader, **QUIET).epoch == 1


def test_max_steps_ends_in_the_middle_of_an_epoch_with_a_checkpoint(make_run, net, loader):
    result = make_run(validates=False)(net, loader, max_steps=11, **QUIET)
    assert (result.status, result.step, result.epoch) == ("finished", 11, 2)
    assert (result.folder / "checkpoints" / "step-00000011" / "manifest.json").is_file()
    assert result.metrics["train/loss"] > 0


def test_max_steps_at_the_end_of_an_epoch_does_what_is_due_there(make_run, net, loader, events):
    result = make_run()(net, loader, loader, max_steps=8, **QUIET)
    assert "val/loss" in result.metrics and "train_epoch/loss" in result.metrics
    assert result.epoch == 1


def test_the_same_run_object_can_be_called_again(make_run, data):
    batches = list(DataLoader(data, batch_size=8))
    run = make_run(validates=False)
    trained = []
    for _ in range(2):
        torch.manual_seed(0)
        net = nn.Linear(4, 1)
        result = run(net, batches, **QUIET)
        trained.append(weights(net))
    assert_same(*trained)
    assert result.folder.parent == (result.folder.parent.parent / "train_logs")
    assert len(list(result.folder.parent.iterdir())) == 2


def test_moments_come_in_order(make_run, net, loader):
    ear = Ear()
    make_run()(
        net,
        loader,
        loader,
        callbacks=[ear],
        limit_train_batches=2,
        max_epochs=1,
        validate_at_start=True,
        checkpoint_async=False,
        **QUIET,
    )
    assert ear.heard == [
        ("run_start", 0),
        ("validation_end", 0, "val", ["val/loss"]),
        ("checkpoint_saved", "step-00000000", True),
        ("epoch_start", 1),
        ("train_step_end", 1, ["loss"]),
        ("train_step_end", 2, ["loss"]),
        ("validation_end", 2, "val", ["val/loss"]),
        ("epoch_end", 1, ["train_epoch/loss"]),
        ("checkpoint_saved", "step-00000002", True),
        ("run_end", "finished"),
    ]


def test_functions_can_be_called_at_moments_with_what_they_ask_for(make_run, net, loader):
    run = make_run(validates=False)
    heard = []

    @run.on("epoch_end")
    def after(epoch, metrics, model, state):
        heard.append((epoch, sorted(metrics), model is net, state.step))

    run(net, loader, max_epochs=2, **QUIET)
    assert heard == [(1, ["train_epoch/loss"], True, 8), (2, ["train_epoch/loss"], True, 16)]


def test_a_callback_can_end_the_run(make_run, net, loader):
    run = make_run(validates=False)

    @run.on("train_step_end")
    def enough(state):
        if state.step == 3:
            state.stop_reason = "three is enough"

    result = run(net, loader, max_epochs=5, **QUIET)
    assert (result.status, result.step) == ("finished", 3)


def test_the_order_in_which_callbacks_are_called_is_written_down(make_run, net, loader):
    called = []

    class Last:
        @hookimpl(trylast=True)
        def epoch_end(self):
            called.append("Last")

    class Plain:
        @hookimpl
        def epoch_end(self):
            called.append("Plain")

    run = make_run()

    @run.on("epoch_end")
    def note():
        called.append("@run.on note")

    callbacks = [Last(), "early_stopping", Plain(), "ema"]
    result = run(net, loader, loader, callbacks=callbacks, **QUIET)
    order = yaml.safe_load((result.folder / "run.yaml").read_text())["callbacks"]
    assert order["epoch_end"] == ["console", "early_stopping", "Plain", "Last", "@run.on note"]
    assert order["train_step_end"] == ["ema"]
    assert called == order["epoch_end"][2:]


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


def test_what_is_logged_when_the_run_ends_is_recorded(make_run, net, loader, events):
    run = make_run(validates=False)
    run.on("run_end")(lambda log: log({"size": 12.0}))
    result = run(net, loader, max_steps=2, **QUIET)
    assert events(result, "metrics")[-1]["metrics"] == {"size": 12.0}
    assert events(result)[-1]["event"] == "finish"


def test_random_numbers_after_a_validation_do_not_move_training(make_run, loader):
    def train(every):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        run = make_run()
        run.on("validation_end")(lambda: torch.rand(3))
        run(net, loader, loader, max_epochs=2, validate_every=every, **QUIET)
        return weights(net)

    assert all(torch.equal(a, b) for a, b in zip(train("1 epoch"), train("3 steps"), strict=True))


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


def test_several_optimizers_are_stepped_together_and_record_their_rates(net, loader, make_run, events):
    run = make_run(validates=False)

    @run.configure_optimizers
    def configure_optimizers(model):
        return {
            "first": torch.optim.SGD(model[0].parameters(), lr=0.1),
            "second": torch.optim.SGD(model[3].parameters(), lr=0.2),
        }

    before = weights(net)
    result = run(net, loader, **QUIET)
    assert all(not torch.equal(a, b) for a, b in zip(before, weights(net), strict=True))
    assert result.metrics["lr/first/0"] == 0.1 and result.metrics["lr/second/0"] == 0.2


def test_a_train_epoch_function_drives_the_epoch(net, loader, events):
    run = Run(random_seed=0, command_line=[])

    @run.train_epoch
    def train_epoch(data_loader, model, optimizers, log):
        optimizer = optimizers["optimizer"]
        for x, y in data_loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            log({"loss": loss})
        return {"passes": 1}

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    result = run(net, loader, max_epochs=2, log_every="4 steps", **QUIET)
    assert (result.step, result.epoch) == (16, 2)
    recorded = [(each["step"], sorted(each["metrics"])) for each in events(result, "metrics")]
    assert recorded == [
        (4, ["lr", "train/loss"]),
        (8, ["lr", "train/loss"]),
        (8, ["lr", "train/passes", "train_epoch/loss", "train_epoch/passes"]),
        (12, ["lr", "train/loss"]),
        (16, ["lr", "train/loss"]),
        (16, ["lr", "train/passes", "train_epoch/loss", "train_epoch/passes"]),
    ]


def test_an_iterable_dataset_of_unknown_length_trains_to_its_end(make_run, net):
    class Stream(IterableDataset):
        def __iter__(self):
            for _ in range(20):
                yield torch.ones(4), torch.ones(1)

    result = make_run(validates=False)(net, DataLoader(Stream(), batch_size=8), max_epochs=2, **QUIET)
    assert (result.step, result.epoch, result.status) == (6, 2, "finished")


def test_the_users_step_is_at_most_four_frames_below_the_script(net, loader):
    run = Run(random_seed=0, command_line=[])
    depths = []

    @run.train_step
    def step(batch, model):
        names = [frame.name for frame in traceback.extract_stack()]
        depths.append(len(names) - 1 - names.index("test_the_users_step_is_at_most_four_frames_below_the_script"))
        return model(batch[0]).mean()

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    run(net, loader, max_steps=1, **QUIET)
    assert depths == [4]


def test_gradients_can_be_read_after_a_step(make_run, net, loader):
    run = make_run(validates=False)
    norms = []
    run.on("train_step_end")(lambda model: norms.append(model[0].weight.grad.norm().item()))
    run(net, loader, max_steps=3, **QUIET)
    assert len(norms) == 3 and all(norm > 0 for norm in norms)


# ---------------------------------------------------------------- metrics and the record


def test_what_is_recorded_is_the_mean_since_the_last_recording_weighted_by_batch_size(net, events):
    batches = [torch.full((size, 4), float(value)) for value, size in ((1, 2), (2, 6), (3, 4), (5, 4), (9, 1))]
    run = Run(random_seed=0, command_line=[])

    @run.train_step
    def step(batch, model):
        return {"loss": model(batch).mean() * 0 + batch.mean(), "size": len(batch)}

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    result = run(net, batches, log_every="2 steps", **QUIET)
    recorded = [(each["step"], each["metrics"]) for each in events(result, "metrics")]
    assert [(step, metrics["train/loss"]) for step, metrics in recorded] == [(2, 1.75), (4, 4.0), (5, 9.0)]
    assert recorded[-1][1]["train_epoch/loss"] == pytest.approx((2 + 12 + 12 + 20 + 9) / 17)
    assert all(each["epoch"] == 1 and each["time"] > 1e9 for each in events(result, "metrics"))


def test_a_returned_batch_size_weighs_and_is_not_recorded(net, events):
    batches = [{"value": 1.0, "size": 1}, {"value": 4.0, "size": 2}]
    run = Run(random_seed=0, command_line=[])

    @run.train_step
    def step(batch, model):
        return {"loss": next(model.parameters()).sum() * 0 + batch["value"], "batch_size": batch["size"]}

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    result = run(net, batches, **QUIET)
    assert result.metrics["train/loss"] == 3.0
    assert "train/batch_size" not in result.metrics


def test_a_schedule_follows_the_clock_and_a_step_records_the_rate_that_it_used(net, loader, make_run, events):
    run = make_run(validates=False)

    @run.configure_optimizers
    def configure_optimizers(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        halve = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return optimizer, Schedule(halve, every="2 steps")

    result = run(net, loader, max_steps=6, log_every="1 steps", **QUIET)
    assert [each["metrics"]["lr"] for each in events(result, "metrics")] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_a_bare_torch_scheduler_is_stepped_per_epoch_and_a_named_one_per_step(net, loader, make_run, events):
    run = make_run(validates=False)

    @run.configure_optimizers
    def configure_optimizers(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.1)

    result = run(net, loader, max_epochs=3, log_every="8 steps", **QUIET)
    assert [each["metrics"]["lr"] for each in events(result, "metrics") if "lr" in each["metrics"]] == pytest.approx(
        [1.0, 0.1, 0.01]
    )

    run = make_run(validates=False)
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=1.0))
    result = run(net, loader, max_epochs=1, log_every="1 steps", scheduler="cosine", **QUIET)
    expected = [0.5 * (1 + np.cos(np.pi * step / 8)) for step in range(8)]
    assert [each["metrics"]["lr"] for each in events(result, "metrics") if "lr" in each["metrics"]] == pytest.approx(
        expected
    )


def test_log_outside_of_a_step_is_recorded_at_once_under_its_own_name(make_run, net, loader, events):
    run = make_run(validates=False)

    @run.on("epoch_end")
    def after(log):
        log({"temperature": 0.5})

    result = run(net, loader, **QUIET)
    assert {"temperature": 0.5} in [each["metrics"] for each in events(result, "metrics")]


def test_logging_when_nothing_runs_is_an_error():
    with pytest.raises(ScriptError, match="while nothing is being trained"):
        Run(random_seed=0, command_line=[]).log({"a": 1.0})


def test_the_record_begins_with_start_and_ends_with_finish(make_run, net, loader, events):
    result = make_run()(net, loader, loader, **QUIET)
    kinds = [event["event"] for event in events(result)]
    assert kinds[0] == "start" and kinds[-1] == "finish" and "checkpoint" in kinds
    finish = events(result, "finish")[0]
    assert finish["status"] == "finished" and finish["summary"]["val/loss"] == result.metrics["val/loss"]


# ---------------------------------------------------------------- validation


def test_validations_have_names_data_and_clocks_of_their_own(make_run, net, loader, data, events):
    run = make_run()

    @run.validate_step(DataLoader(data, batch_size=64), name="ood", every="4 steps", at_start=True)
    def other(batch, model, is_validate):
        assert is_validate and not model.training and not torch.is_grad_enabled()
        return {"accuracy": 0.25}

    result = run(net, loader, loader, max_epochs=1, **QUIET)
    recorded = [(each["step"], name) for each in events(result, "metrics") for name in each["metrics"]]
    assert [step for step, name in recorded if name == "ood/accuracy"] == [0, 4, 8]
    assert [step for step, name in recorded if name == "val/loss"] == [8]
    assert net.training


def test_validating_more_often_leaves_the_weights_bit_identical(make_run, data):
    trained = []
    for options in ({}, {"validate_every": "1 steps", "validate_at_start": True, "log_every": "1 steps"}):
        run = make_run(random_seed=7)
        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

        @run.validate_step
        def step(batch, model):
            return {"loss": torch.rand(()) + np.random.rand() + model(batch[0]).mean()}

        loader = DataLoader(data, batch_size=8, shuffle=True)
        run(net, loader, loader, max_epochs=2, **options, **QUIET)
        trained.append(weights(net))
    assert_same(*trained)


def test_modules_that_were_frozen_in_eval_mode_stay_so(make_run, loader):
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    run = make_run()
    run.init(lambda model: model[1].eval())
    run(net, loader, loader, validate_every="2 steps", **QUIET)
    assert [module.training for module in net] == [True, False, True]


def test_a_validate_epoch_function_is_given_the_loader(make_run, net, loader):
    run = make_run(validates=False)

    @run.validate_epoch
    def validate(data_loader, model):
        return {"batches": sum(1 for _ in data_loader)}

    result = run(net, loader, loader, limit_validate_batches=3, **QUIET)
    assert result.metrics["val/batches"] == 3


def test_evaluate_uses_the_validation_step_and_writes_nothing(make_run, net, data, tmp_path):
    run = make_run()
    before, stream = weights(net), torch.random.get_rng_state()
    metrics = run.evaluate(net, DataLoader(data, batch_size=10, shuffle=True))
    x, y = data.tensors
    assert metrics == {"val/loss": pytest.approx(nn.functional.mse_loss(net(x), y).item())}
    assert_same(before, weights(net))
    assert torch.equal(stream, torch.random.get_rng_state())
    assert list(tmp_path.iterdir()) == []


def test_a_validation_step_without_a_loader_is_left_out_with_one_warning(make_run, net, loader):
    with pytest.warns(BlowtorchWarning, match="validation 'val' has no loader"):
        make_run()(net, loader, **QUIET)


def test_loaders_given_to_decorators_may_be_left_out_of_the_call(net, loader):
    run = Run(random_seed=0, command_line=[])

    @run.train_step(loader)
    @run.validate_step(loader)
    def step(batch, model):
        return model(batch[0]).pow(2).mean()

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    assert {"train/loss", "val/loss"} <= set(run(net, max_epochs=1, **QUIET).metrics)
    assert step.__name__ == "step"


def test_a_metric_that_no_validation_measures_is_said_once(make_run, net, loader):
    run = make_run(validates=False)
    run.validate_step(lambda batch: {"accuracy": 0.5})
    result = run(net, loader, loader, max_epochs=3, **QUIET)
    assert result.best is None
    said = (result.folder / "console.log").read_text()
    assert said.count("no checkpoint is the best one: checkpoint_metric is 'val/loss'") == 1


# ---------------------------------------------------------------- options and precedence


def test_the_command_line_beats_the_files_and_they_beat_the_keywords(make_run, net, loader, tmp_path):
    (tmp_path / "c.yaml").write_text("run: {max_epochs: 2, log_every: 3 steps}\n")
    run = make_run("with", "run.max_epochs=3", validates=False, config_files=["c.yaml"])
    result = run(net, loader, max_epochs=1, log_every="1 steps", **QUIET)
    assert result.epoch == 3
    steps = {event["step"] for event in open_run(result.folder).events() if event["event"] == "metrics"}
    assert {3, 6, 9} <= steps and 1 not in steps


def test_an_empty_section_of_options_is_none_at_all(make_run, net, loader, tmp_path):
    (tmp_path / "c.yaml").write_text("run:\n")
    assert make_run(validates=False, config_files="c.yaml")(net, loader, **QUIET).epoch == 1
    (tmp_path / "c.yaml").write_text("run: 3\n")
    with pytest.raises(OptionError, match="the configuration section 'run' holds options, got 3"):
        make_run(validates=False, config_files="c.yaml")


def test_an_override_that_nothing_reads_is_reported_after_the_first_epoch(make_run, net, loader):
    run = make_run("with", "model.width=3", validates=False, config={"model": {"width": 2, "depth": 1}})
    with pytest.warns(BlowtorchWarning, match="nothing has read 'model.width'"):
        run(net, loader, **QUIET)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_epoch": 3}, OptionError, r"unknown option 'max_epoch' in run\(...\). Did you mean 'max_epochs'\?"),
        ({"max_epochs": "3"}, OptionError, "option max_epochs: expected int or null, got '3'"),
        ({"log_every": "50 stebs"}, OptionError, "log_every.*unknown unit 'stebs'"),
        ({"log_every": 50}, OptionError, "log_every: expected str, got 50"),
        ({"loggers": ["tensorbord"]}, ExtensionError, "tensorbord"),
        ({"callbacks": ["early_stoping"]}, ExtensionError, "Did you mean 'early_stopping'"),
        ({"callbacks": [{"early_stopping": {"patiense": 3}}]}, ExtensionError, "patiense.*Did you mean 'patience'"),
        ({"scheduler": "cosin"}, ExtensionError, "Did you mean 'cosine'"),
        ({"checkpoint_backend": "locall"}, ExtensionError, "Did you mean 'local'"),
        ({"device": "cuda:77"}, OptionError, "option device"),
        ({"device": "gpu"}, OptionError, "option device"),
        ({"resume": "no/such/run"}, RunFolderError, "no/such/run"),
        ({"keep_last": 0}, OptionError, "keep_last: expected at least 1, got 0"),
    ],
)
def test_bad_options_are_errors_before_anything_is_written(make_run, net, loader, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        make_run(validates=False)(net, loader, **options, **QUIET)
    assert list(tmp_path.iterdir()) == []


def test_a_save_path_that_cannot_be_written_is_an_error(make_run, net, loader, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file"):
        make_run(validates=False)(net, loader, save_path="file/logs", **QUIET)


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
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ScriptError, match="WORLD_SIZE is '2'"):
        run(net, loader)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_moment_names_the_nearest():
    with pytest.raises(ScriptError, match=r"'epoch_ended'.*Did you mean 'epoch_end'\?"):
        Run(random_seed=0, command_line=[]).on("epoch_ended")


# ---------------------------------------------------------------- ends


def test_an_error_in_the_users_code_is_recorded_and_raised_as_it_was(make_run, net, loader, events):
    run = make_run(validates=False)
    ear = Ear()

    @run.train_step
    def step(batch, model, step):
        if step == 3:
            raise ZeroDivisionError("my own mistake")
        return model(batch[0]).mean()

    with pytest.raises(ZeroDivisionError, match="my own mistake") as caught:
        run(net, loader, callbacks=[ear], **QUIET)
    assert len(traceback.extract_tb(caught.value.__traceback__)) <= 5
    (view,) = find_runs()
    assert view.status == "failed"
    last = list(view.events())[-1]
    assert last["event"] == "finish" and last["status"] == "failed" and "my own mistake" in last["reason"]
    assert ear.heard[-1] == ("run_end", "failed")


def test_a_callback_that_raises_fails_the_run_with_its_name_in_front(make_run, net, loader):
    class Clumsy:
        @hookimpl
        def epoch_end(self, state):
            raise ValueError("oh no")

    with pytest.raises(ExtensionError, match="callback 'Clumsy'.* raised in epoch_end: ValueError: oh no"):
        make_run(validates=False)(net, loader, callbacks=[Clumsy()], **QUIET)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_after_its_step_with_a_checkpoint(make_run, net, loader, number):
    run = make_run(validates=False)
    before = signal.getsignal(number)

    @run.on("train_step_end")
    def interrupt(state):
        if state.step == 5:
            os.kill(os.getpid(), number)

    result = run(net, loader, max_epochs=3, **QUIET)
    assert (result.status, result.step) == ("stopped", 5)
    assert (result.folder / "checkpoints" / "step-00000005" / "manifest.json").is_file()
    assert open_run(result.folder).status == "stopped"
    assert signal.getsignal(number) is before
    with pytest.raises(SystemExit) as caught:
        result.raise_if_stopped()
    assert caught.value.code == 75


def test_a_second_ctrl_c_stops_at_once(make_run, net, loader):
    run = make_run(validates=False)

    @run.train_step
    def step(batch, model):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return model(batch[0]).mean()

    with pytest.raises(KeyboardInterrupt):
        run(net, loader, **QUIET)
    assert [view.status for view in find_runs()] == ["stopped"]


def test_an_error_while_a_run_is_prepared_fails_it_and_frees_its_folder(make_run, net, loader):
    run = make_run(validates=False)

    @run.configure_optimizers
    def configure_optimizers(model):
        raise ZeroDivisionError("my own mistake")

    with pytest.raises(ZeroDivisionError, match="my own mistake"):
        run(net, loader, run_name="mine", **QUIET)
    (view,) = find_runs()
    assert view.status == "failed"
    again = make_run(validates=False)(net, loader, run_name="mine", resume="auto", **QUIET)
    assert again.folder == view.path.absolute() and again.status == "finished"


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(make_run, net, loader):
    run = make_run(validates=False)

    @run.train_step
    def step(batch, model, step):
        return model(batch[0]).pow(2).mean() * (float("nan") if step > 10 else 1.0)

    with (
        pytest.warns(
            BlowtorchWarning, match=r"step-000000(16|24) is not written: '0.weight' in the model is not finite"
        ),
        pytest.raises(CheckpointError, match="the last checkpoint of the run could not be written"),
    ):
        run(net, loader, max_epochs=3, keep_last=1, keep_best=0, on_nan="ignore", **QUIET)
    (view,) = find_runs()
    assert view.status == "failed"
    assert [checkpoint.name for checkpoint in view.checkpoints] == ["step-00000008"]


def test_a_full_disk_does_not_hide_the_users_own_error(make_run, net, loader, monkeypatch):
    run = make_run(validates=False)

    @run.train_step
    def step(batch, model):
        def refuse(*arguments, **keywords):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("blowtorch.folder.folder._write_whole", refuse)
        raise ValueError("my own mistake")

    with pytest.warns(BlowtorchWarning, match="No space left"), pytest.raises(ValueError, match="my own mistake"):
        run(net, loader, **QUIET)


def run_by_epoch(train_epoch):
    run = Run(random_seed=0, command_line=[])
    run.train_epoch(train_epoch)
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    return run


def test_a_train_epoch_function_that_breaks_off_has_done_the_batch_that_it_was_given(net, loader):
    def train_epoch(data_loader):
        for _ in data_loader:
            break

    assert run_by_epoch(train_epoch)(net, loader, max_steps=3, **QUIET).step == 3


def test_a_train_epoch_function_without_batches_is_an_error_where_it_would_never_end(net, loader):
    run = run_by_epoch(lambda data_loader: None)
    with pytest.raises(ScriptError, match="took no batch of its data_loader, so max_steps is never reached"):
        run(net, loader, max_steps=3, **QUIET)
    assert run(net, loader, max_epochs=2, **QUIET).epoch == 2


def test_a_train_epoch_function_has_no_metric_to_optimize(net, loader, tmp_path):
    with pytest.raises(ScriptError, match="optimize_metric is for a train step; <lambda> drives the whole epoch"):
        run_by_epoch(lambda data_loader: None)(net, loader, optimize_metric="loss", **QUIET)
    assert not (tmp_path / "train_logs").exists()


def test_a_step_that_no_longer_returns_the_loss_says_so(net, loader):
    run = Run(random_seed=0, command_line=[])
    names = iter(["loss", "energy", "energy"])

    @run.train_step
    def step(batch, model):
        value = model(batch[0]).mean()
        return {next(names): value, "other": value}

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ScriptError, match="step returned 'energy', 'other', of which 'energy', 'other' carry"):
        run(net, loader, **QUIET)


def test_a_scheduler_may_follow_a_mean_of_the_epoch(make_run, net, loader):
    plateau = {"plateau": {"metric": "train_epoch/loss", "patience": 0, "smaller_is_better": False}}
    result = make_run(validates=False)(net, loader, scheduler=plateau, max_epochs=3, **QUIET)
    assert result.metrics["lr"] < 0.1


def test_a_scheduler_may_follow_a_metric_with_a_slash_in_its_name(make_run, net, loader):
    run = make_run(validates=False)
    run.validate_step(lambda batch: {"loss": 1.0, "top/1": 0.5})
    plateau = {"plateau": {"metric": "val/top/1", "patience": 0}}
    assert run(net, loader, loader, scheduler=plateau, max_epochs=3, **QUIET).metrics["lr"] < 0.1


@pytest.mark.parametrize("smaller_is_better", [True, False])
def test_of_equally_good_checkpoints_one_is_kept(net, loader, smaller_is_better):
    run = run_by_epoch(lambda data_loader: list(data_loader) and {})
    run.validate_step(lambda batch: {"loss": 1.0})
    options = {"smaller_is_better": smaller_is_better, "keep_last": 1, "max_epochs": 4, "validate_at_start": True}
    result = run(net, loader, loader, **options, **QUIET)
    assert [each.name for each in open_run(result.folder).checkpoints] == ["step-00000000", "step-00000032"]
    assert result.best is not None and result.best.step == 0


def test_without_a_best_checkpoint_to_keep_none_is_named(make_run, net, loader):
    result = make_run()(net, loader, loader, keep_best=0, keep_last=1, max_epochs=2, **QUIET)
    assert result.best is None


def test_a_continued_run_has_the_checkpoint_events_of_a_straight_one(make_run, data, events):
    found = []
    for parts in ([3], [1, 2, 3]):
        torch.manual_seed(0)
        net, folder = nn.Linear(4, 1), None
        for max_epochs in parts:
            resume = {} if folder is None else {"resume": str(folder)}
            batches = DataLoader(data, batch_size=8)
            result = make_run()(net, batches, batches, max_epochs=max_epochs, **resume, **QUIET)
            folder = result.folder
        found.append([{**each, "time": 0} for each in events(result, "checkpoint")])
    assert len(found[0]) == 3 and all(each["metric"] is not None for each in found[0])
    assert found[0] == found[1]


def test_the_best_by_another_metric_is_forgotten(make_run, net, loader):
    first = make_run()(net, loader, loader, max_epochs=1, run_name="a", **QUIET)
    again = make_run()(net, loader, loader, max_epochs=1, resume=str(first.folder), checkpoint_metric="val/x", **QUIET)
    assert first.best is not None and again.best is None


def test_a_metric_of_few_steps_decides_on_no_checkpoint(make_run, net, loader):
    result = make_run()(net, loader, loader, checkpoint_metric="train/loss", **QUIET)
    assert result.best is None
    assert (
        "no checkpoint is the best one: checkpoint_metric is 'train/loss'"
        in (result.folder / "console.log").read_text()
    )


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


def test_an_epoch_loader_has_a_length(net, loader):
    run = Run(random_seed=0, command_line=[])
    lengths = []

    @run.train_epoch
    def train_epoch(data_loader):
        lengths.append((len(data_loader), sum(1 for _ in data_loader)))

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    run(net, loader, limit_train_batches=5, **QUIET)
    assert lengths == [(5, 5)]


def test_a_scheduler_that_waits_for_a_metric_that_nobody_measures_is_an_error(make_run, net, loader):
    with pytest.raises(ScriptError, match=r"a scheduler waits for 'val/los'.*Did you mean 'val/loss'\?"):
        make_run()(net, loader, loader, scheduler={"plateau": {"metric": "val/los"}}, **QUIET)


def test_a_smaller_limit_than_what_is_done_trains_nothing_more(make_run, net, loader):
    first = make_run(validates=False)(net, loader, max_steps=12, **QUIET)
    again = make_run(validates=False)(net, loader, max_epochs=1, resume=str(first.folder), **QUIET)
    assert (again.step, again.status) == (12, "finished")


def test_a_pointer_names_a_checkpoint_and_a_misspelt_word_the_nearest(make_run, net, loader):
    first = make_run(validates=False)(net, loader, **QUIET)
    latest = first.folder / "checkpoints" / "latest"
    assert make_run(validates=False)(net, loader, max_epochs=2, resume=str(latest), **QUIET).step == 16
    with pytest.raises(OptionError, match="got 'auot'. Did you mean 'auto'"):
        make_run(validates=False)(net, loader, resume="auot", **QUIET)


def test_a_run_that_cannot_be_continued_stays_as_it_was(make_run, net, loader, events):
    first = make_run(validates=False)(net, loader, **QUIET)
    before = events(first)
    with pytest.raises(CheckpointError, match="tensor"):
        make_run(validates=False)(nn.Linear(4, 1), loader, max_epochs=2, resume=str(first.folder), **QUIET)
    assert open_run(first.folder).status == "finished"
    assert events(first) == before


def test_the_last_event_is_finish_whatever_becomes_of_the_loggers(make_run, net, loader, events):
    class Broken:
        @hookimpl
        def log_start(self):
            raise OSError("the tracker is down")

    with pytest.warns(BlowtorchWarning, match="the tracker is down") as caught:
        result = make_run(validates=False)(
            net, loader, loggers=[Broken(), Broken()], logger_timeout="1 second", **QUIET
        )
    assert len(caught) == 2
    assert events(result)[-1]["event"] == "finish"
    assert sorted(path.name for path in (result.folder / "loggers").iterdir()) == ["Broken", "Broken-2"]


# ---------------------------------------------------------------- checkpoints and resume


def test_retention_keeps_the_newest_and_the_best(make_run, net, data, events):
    run = make_run(validates=False)
    losses = iter([3.0, 1.0, 2.0, 4.0, 5.0])
    run.validate_epoch(lambda data_loader: {"loss": next(losses)})
    batches = list(DataLoader(data, batch_size=8))
    result = run(net, batches, batches, max_epochs=5, keep_last=2, keep_best=1, **QUIET)
    folder = result.folder / "checkpoints"
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-00000016", "step-00000032", "step-00000040"]
    assert (folder / "latest").read_text().strip() == "step-00000040"
    assert (folder / "best").read_text().strip() == "step-00000016"
    assert result.best.metric == 1.0 and result.best.step == 16


def test_a_larger_metric_can_be_better(make_run, net, data):
    run = make_run(validates=False)
    accuracies = iter([0.5, 0.9, float("nan"), 0.7])
    run.validate_epoch(lambda data_loader: {"accuracy": next(accuracies)})
    batches = list(DataLoader(data, batch_size=8))
    options = {"checkpoint_metric": "val/accuracy", "smaller_is_better": False}
    result = run(net, batches, batches, max_epochs=4, **options, **QUIET)
    assert result.best.metric == 0.9


def test_a_finished_run_leaves_nothing_temporary_and_is_read_back(make_run, net, loader):
    result = make_run()(net, loader, loader, max_epochs=2, run_name="mine", **QUIET)
    assert not [path.name for path in (result.folder / "checkpoints").iterdir() if path.name.startswith(".")]
    view = open_run(result.folder)
    assert view.status == "finished" and "mine" in view.name
    steps, values = view.metrics()["val/loss"]
    assert list(steps) == [8, 16] and values[-1] == result.metrics["val/loss"]
    fresh = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 1))
    assert_same(weights(view.load_model(fresh, "latest")), weights(net))


def test_a_stopped_run_goes_on_and_ends_with_the_same_bits(make_run, data, events):
    """Dropout, shuffling and a schedule: everything that could differ after a restart."""

    def train(stop_at=None, **options):
        run = make_run(random_seed=5)
        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        loader = DataLoader(data, batch_size=8, shuffle=True)

        @run.on("train_step_end")
        def stop(state):
            if state.step == stop_at:
                state.interruption = "the test"

        options = {"max_epochs": 3, "scheduler": "cosine", "log_every": "3 steps", **options, **QUIET}
        result = run(net, loader, loader, **options)
        return result, weights(net)

    straight, expected = train(save_path="straight")
    lines = [{**event, "time": 0} for event in events(straight, "metrics")]
    for stop_at in (8, 11):
        options = {"save_path": f"stop-{stop_at}", "resume": "auto"}
        stopped, _ = train(stop_at, **options)
        assert stopped.status == "stopped"
        resumed, trained = train(**options)
        assert resumed.status == "finished" and resumed.folder == stopped.folder
        assert_same(trained, expected)
        assert [{**event, "time": 0} for event in events(resumed, "metrics")] == lines
        assert len(events(resumed, "resume")) == 1
        assert resumed.best.metric == straight.best.metric


def test_what_differs_from_the_process_before_is_said_and_recorded(make_run, net, loader, events):
    run = make_run("with", "model.width=3", validates=False, config={"model": {"width": 2}})
    assert run["model.width"] == 3
    first = run(net, loader, max_epochs=1, **QUIET)
    run = make_run(validates=False, config={"model": {"width": 2}})
    run(net, loader, max_epochs=2, resume=str(first.folder), **QUIET)
    assert events(first, "resume")[0]["changed"] == {"model.width": [3, 2], "run.max_epochs": [1, 2]}
    assert "run.max_epochs was 1 and is 2" in (first.folder / "console.log").read_text()


def test_a_run_stopped_in_the_last_step_of_an_epoch_still_does_what_was_due(make_run, data, events):
    """The validation by steps falls on that step, and a plateau scheduler is stepped by it."""

    def train(stop_at=None, **options):
        run = make_run(random_seed=5)
        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        run.on("epoch_start")(lambda: torch.rand(3))

        @run.configure_optimizers
        def configure_optimizers(model):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)

        @run.on("train_step_end")
        def stop(state):
            if state.step == stop_at:
                state.interruption = "the test"

        loader = DataLoader(data, batch_size=8, shuffle=True)
        options = {"max_epochs": 4, "validate_every": "4 steps", "validate_at_start": True, **options, **QUIET}
        return run(net, loader, loader, **options), weights(net)

    straight, expected = train(save_path="straight")
    lines = [{**event, "time": 0} for event in events(straight, "metrics")]
    for stop_at in (8, 16):
        options = {"save_path": f"stop-{stop_at}", "resume": "auto"}
        train(stop_at, **options)
        resumed, trained = train(**options)
        assert_same(trained, expected)
        assert [{**event, "time": 0} for event in events(resumed, "metrics")] == lines


def test_a_run_that_ends_badly_is_not_shown_as_running(make_run, net, loader):
    class Clumsy:
        @hookimpl
        def run_end(self):
            raise ValueError("at the very end")

    with pytest.raises(ExtensionError, match="at the very end"):
        make_run(validates=False)(net, loader, callbacks=[Clumsy()], **QUIET)
    assert [view.status for view in find_runs()] == ["failed"]


def test_schedulers_per_step_follow_a_function_that_drives_the_epoch(net, loader):
    run = Run(random_seed=0, command_line=[])

    @run.train_epoch
    def train_epoch(data_loader, optimizers):
        for _ in data_loader:
            optimizers["optimizer"].step()

    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    run.configure_optimizers(lambda model: optimizer)
    run(net, loader, scheduler="linear", **QUIET)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


def test_resume_auto_begins_anew_after_a_finished_run(make_run, net, loader):
    first = make_run(validates=False)(net, loader, resume="auto", **QUIET)
    second = make_run(validates=False)(net, loader, resume="auto", **QUIET)
    assert first.folder != second.folder


def test_a_finished_run_is_continued_by_its_path_to_a_larger_limit(make_run, net, loader):
    first = make_run(validates=False)(net, loader, max_epochs=1, **QUIET)
    again = make_run("with", f"run.resume={first.folder}", validates=False)(net, loader, max_epochs=3, **QUIET)
    assert (again.folder, again.step, again.epoch) == (first.folder, 24, 3)


def test_a_run_goes_back_to_a_named_checkpoint_and_puts_later_ones_aside(make_run, net, loader, events):
    first = make_run(validates=False)(net, loader, max_epochs=3, keep_last=5, **QUIET)
    earlier = first.folder / "checkpoints" / "step-00000008"
    again = make_run(validates=False)(net, loader, max_epochs=2, resume=str(earlier), **QUIET)
    names = sorted(path.name for path in (first.folder / "checkpoints").glob("*step-*"))
    assert names == ["aside-step-00000016", "aside-step-00000024", "step-00000008", "step-00000016"]
    assert events(again, "resume")[0]["checkpoint"] == "step-00000008"
    assert [each["step"] for each in events(again, "metrics") if "train_epoch/loss" in each["metrics"]] == [8, 16]


def test_a_run_with_objects_among_its_options_can_be_continued(make_run, net, loader, events):
    first = make_run(validates=False)(net, loader, callbacks=[Ear()], **QUIET)
    make_run(validates=False)(net, loader, callbacks=[Ear()], max_epochs=2, resume=str(first.folder), **QUIET)
    assert events(first, "resume")[0]["changed"] == {"run.max_epochs": [None, 2]}


def test_numbers_of_numpy_are_recorded_and_stored(make_run, net, loader):
    run = make_run(validates=False, config={"rate": np.float64(0.5)})

    @run.train_step
    def step(batch, model):
        return {"loss": model(batch[0]).pow(2).mean(), "single": np.float32(0.5), "count": np.int64(3)}

    first = run(net, loader, max_steps=3, **QUIET)
    assert first.metrics["train/single"] == 0.5 and first.metrics["train/count"] == 3.0
    assert run(net, loader, max_steps=6, resume=str(first.folder), **QUIET).step == 6


def test_nan_in_the_open_window_is_seen_before_a_checkpoint(make_run, net, loader):
    run = make_run(validates=False)

    @run.train_step
    def step(batch, model, step):
        return model(batch[0]).pow(2).mean() * (float("nan") if step > 3 else 1.0)

    options = {"max_steps": 6, "checkpoint_every": "2 steps", "keep_last": 1, "keep_best": 0}
    with pytest.raises(NotFiniteError, match="step-00000004 is not written"):
        run(net, loader, **options, **QUIET)
    assert [each.name for each in find_runs()[0].checkpoints] == ["step-00000002"]


def test_checkpoints_that_are_all_damaged_are_put_aside(make_run, net, loader):
    first = make_run(validates=False)(net, loader, max_epochs=3, **QUIET)
    for path in (first.folder / "checkpoints").glob("step-*/model.pt"):
        path.write_bytes(b"")
    with pytest.warns(BlowtorchWarning, match="is damaged"):
        again = make_run(validates=False)(net, loader, max_epochs=1, resume=str(first.folder), **QUIET)
    assert [each.name for each in open_run(again.folder).checkpoints] == ["step-00000008"]
    assert len(list((first.folder / "checkpoints").glob("aside-*"))) == 2


def test_an_evaluation_inside_of_a_training_leaves_log_alone(make_run, net, loader):
    run = make_run()

    @run.train_step
    def step(batch, model):
        run.log({"seen": 1.0})
        return model(batch[0]).pow(2).mean()

    run.on("train_step_end")(lambda model: run.evaluate(model, loader))
    assert run(net, loader, loader, max_steps=2, **QUIET).metrics["train/seen"] == 1.0
    with pytest.raises(ScriptError, match="while nothing is being trained"):
        run.log({"a": 1.0})


def test_a_validation_that_fails_leaves_the_modes_of_the_model(make_run, net, loader):
    run = make_run()
    run.validate_step(lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division"):
        run(net, loader, loader, **QUIET)
    assert net.training


def test_the_best_pointer_goes_back_with_the_run(make_run, net, data):
    losses = iter([2.0, 3.0, 1.0, 4.0])
    batches = list(DataLoader(data, batch_size=8))

    def train(**options):
        run = make_run(validates=False)
        run.validate_epoch(lambda data_loader: {"loss": next(losses)})
        return run(net, batches, batches, keep_last=5, **options, **QUIET)

    first = train(max_epochs=3)
    pointer = first.folder / "checkpoints" / "best"
    assert pointer.read_text().strip() == "step-00000024"
    again = train(max_epochs=3, resume=str(first.folder / "checkpoints" / "step-00000016"))
    assert pointer.read_text().strip() == "step-00000008"
    assert again.best.metric == 2.0


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(make_run, net, loader, events):
    first = make_run(validates=False)(net, loader, max_epochs=2, **QUIET)
    weights_file = first.folder / "checkpoints" / "step-00000016" / "model.pt"
    content = bytearray(weights_file.read_bytes())
    content[len(content) // 2] ^= 1
    weights_file.write_bytes(content)
    with pytest.warns(BlowtorchWarning, match="step-00000016 is damaged .*model.pt"):
        again = make_run(validates=False)(net, loader, max_epochs=2, resume=str(first.folder), **QUIET)
    assert events(again, "resume")[0]["checkpoint"] == "step-00000008"
    assert again.step == 16


def test_a_checkpoint_of_another_model_names_the_first_tensor_that_differs(make_run, net, loader):
    first = make_run(validates=False)(net, loader, **QUIET)
    other = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Dropout(0.0), nn.Linear(9, 1))
    with pytest.raises(CheckpointError, match=r"tensor '0.weight' has shape \(8, 4\) .* and \(9, 4\) in the model"):
        make_run(validates=False)(other, loader, max_epochs=2, resume=str(first.folder), **QUIET)


def test_a_piece_that_the_script_lacks_is_named(make_run, net, loader):
    first = make_run(validates=False)(net, loader, scheduler="cosine", **QUIET)
    with pytest.raises(CheckpointError, match="holds 'schedulers/optimizer', which the script has not"):
        make_run(validates=False)(net, loader, max_epochs=2, resume=str(first.folder), **QUIET)


def test_weights_of_a_checkpoint_can_be_the_start_of_a_new_run(make_run, net, loader):
    first = make_run(validates=False)(net, loader, **QUIET)
    trained = weights(net)
    fresh = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 1))
    run = make_run(validates=False)
    seen = []
    run.init(lambda model: seen.extend(weights(model)))
    second = run(fresh, loader, initialize_from=str(first.folder), **QUIET)
    assert_same(seen, trained)
    assert second.folder != first.folder


def test_objects_that_are_kept_come_back(make_run, net, loader):
    class Counter:
        count = 0

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    counter = Counter()
    run = make_run(validates=False)
    run.keep_state("counter", counter)
    counter.count = 3
    first = run(net, loader, **QUIET)
    other = Counter()
    run = make_run(validates=False)
    run.keep_state("counter", other)
    run(net, loader, max_epochs=2, resume=str(first.folder), **QUIET)
    assert other.count == 3


def test_an_object_whose_state_cannot_be_stored_is_named_before_training(make_run, net, loader):
    class Strange:
        def state_dict(self):
            return {"items": [1, object()]}

        def load_state_dict(self, state):
            pass

    run = make_run(validates=False)
    run.keep_state("strange", Strange())
    with pytest.raises(CheckpointError, match=r"kept/strange\['items'\]\[1\] is a object"):
        run(net, loader, **QUIET)


def test_the_recorded_seed_holds_when_a_run_is_continued(make_run, net, loader):
    first = make_run(validates=False, random_seed=None)(net, loader, **QUIET)
    seed = open_run(first.folder).info["seed"]
    run = make_run("with", f"run.resume={first.folder}", validates=False, random_seed=None)
    assert run.seed == seed
    run = make_run(validates=False, random_seed=seed + 1)
    with pytest.warns(BlowtorchWarning, match=f"has the seed {seed}, which holds"):
        run(net, loader, max_epochs=2, resume=str(first.folder), **QUIET)


def test_help_tells_the_meaning_of_every_option():
    text = inspect.getdoc(RunOptions)
    for option in dataclasses.fields(RunOptions):
        assert f"{option.name} = {option.default!r}: {option.metadata['meaning']}." in text


class OnlyAtTheEnd:
    @hookimpl
    def run_end(self, state):
        pass


class OnlyAtTheEndToo(OnlyAtTheEnd):
    pass


def test_hooks_that_nobody_implements_add_nothing_to_a_step(make_run, net, loader):
    counts = []
    for callbacks in ([], [OnlyAtTheEnd(), OnlyAtTheEndToo()]):
        run, calls, steps = make_run(validates=False), [], []

        @run.train_step
        def step(batch, model, steps=steps, calls=calls):
            steps.append(model)
            if len(steps) == 3:
                sys.setprofile(lambda frame, event, argument: calls.append(frame.f_code.co_name))
            elif len(steps) == 7:
                sys.setprofile(None)
            return model(batch[0]).square().mean()

        try:
            run(net, loader, max_epochs=1, callbacks=callbacks, log_every="1 epoch", progress=False)
        finally:
            sys.setprofile(None)
        counts.append(calls)
    assert counts[0] == counts[1]
    assert len(counts[0]) > 100


def test_an_anomaly_names_the_operation_whose_gradient_is_nan_and_is_looked_for_in_no_later_run(make_run, net, loader):
    run = make_run(validates=False)
    run.train_step(lambda batch, model: (model(batch[0]).mean() * 0).sqrt())
    options = {"detect_anomalies": True, "progress": False}
    with pytest.warns(UserWarning, match="forward call"), pytest.raises(RuntimeError, match="MulBackward0.*nan"):
        run(net, loader, **options)
    assert not torch.is_anomaly_enabled()
    with pytest.warns(UserWarning, match="forward call"), pytest.raises(RuntimeError, match="MulBackward0.*nan"):
        run(net, loader, dry_run=True, **options)


def test_a_metric_that_training_logs_with_a_reduction_is_averaged_in_a_validation_that_returns_it(
    make_run, net, loader
):
    run = make_run(validates=False)

    @run.train_step
    def train_step(batch, model, log):
        log({"samples": len(batch[0])}, reduce="sum")
        return model(batch[0]).square().mean()

    run.validate_step(lambda batch, model: {"samples": float(len(batch[0]))})
    result = run(net, loader, loader, progress=False)
    assert (result.metrics["train_epoch/samples"], result.metrics["val/samples"]) == (64, 8)


def test_what_is_logged_at_a_moment_is_no_fault_of_the_step(make_run, net, loader):
    run = make_run(validates=False)
    run.on("epoch_start")(lambda log: log({"name": "text"}))
    with pytest.raises(ScriptError, match="what takes part in epoch_start returned 'name' as a str"):
        run(net, loader, **QUIET)


def test_functions_for_epochs_tell_of_checkpoints_and_log_like_steps(net, loader, events):
    run = Run(random_seed=0, command_line=[])

    @run.train_epoch
    def train_epoch(data_loader, model, optimizers):
        for x, _ in data_loader:
            optimizers["optimizer"].zero_grad()
            model(x).square().mean().backward()
            optimizers["optimizer"].step()

    run.on("train_step_end")(lambda log: log({"steps": 1.0}, reduce="sum"))
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    result = run(net, loader, log_every="4 steps", **QUIET)
    recorded = [event["metrics"].get("train/steps") for event in events(result, "metrics")]
    assert recorded[:2] == [4.0, 4.0]
    assert result.metrics["train_epoch/steps"] == 8.0


def test_what_is_logged_does_not_take_the_place_of_what_is_returned(net, loader):
    run = Run(random_seed=0, command_line=[])

    @run.train_step
    def step(batch, model, log):
        loss = model(batch[0]).square().mean()
        log({"loss": -loss})
        return loss

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ScriptError, match="step returns 'loss' and logs it too; give one of them another name"):
        run(net, loader, **QUIET)


def test_a_function_for_epochs_may_not_return_what_it_logs(net, loader):
    run = Run(random_seed=0, command_line=[])

    @run.train_epoch
    def train_epoch(data_loader, model, log):
        for x, _ in data_loader:
            log({"loss": model(x).square().mean().detach()})
        return {"loss": 1.0}

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ScriptError, match="train_epoch returns 'loss' and logs it too"):
        run(net, loader, log_every="3 steps", **QUIET)


@pytest.mark.parametrize(
    "options", [{"max_steps": 16}, {"max_samples": 128}, {"max_steps": 10, "validate_every": "5 steps"}]
)
def test_a_validation_cut_at_the_very_last_step_is_done_when_the_run_goes_on(net, loader, make_run, events, options):
    def train(interrupts, **more):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
        run, ended = make_run(), []

        @run.validate_step
        def validate(batch, model, state):
            if interrupts and state.step == options.get("max_steps", 16):
                state.interruption = "asked to"
            return nn.functional.mse_loss(model(batch[0]), batch[1])

        run.on("epoch_end")(lambda state: ended.append(state.epoch))
        return run(net, loader, loader, **options, **more, **QUIET), ended

    straight, _ = train(False)
    stopped, before = train(True, run_name="cut")
    continued, after = train(False, run_name="cut", resume="auto")
    assert (stopped.status, continued.status) == ("stopped", "finished")
    assert continued.metrics == straight.metrics
    assert continued.best.step == straight.best.step
    assert before + after == ([1, 2] if straight.step == 16 else [1])


def test_a_decision_to_end_outlives_a_stop_at_the_same_moment(net, loader, make_run):
    def train(interrupts):
        run = make_run()

        @run.on("epoch_end")
        def decide(state):
            if state.epoch == 2 and interrupts:
                state.stop_reason, state.interruption = "enough", "asked to"

        return run(net, loader, loader, max_epochs=5, run_name="a", resume="auto", **QUIET)

    assert train(True).status == "stopped"
    continued = train(False)
    assert (continued.status, continued.step) == ("finished", 16)
