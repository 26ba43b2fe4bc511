"""Validations as a script asks for them: names, data, clocks, and functions for whole epochs."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from blowtorch import (
    BlowtorchWarning,
)
from tests.core.small_runs import QUIET, assert_same, weights


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


def test_a_metric_that_no_validation_measures_is_said_once(make_run, net, loader):
    run = make_run(validates=False)
    run.validate_step(lambda batch: {"accuracy": 0.5})
    result = run(net, loader, loader, max_epochs=3, **QUIET)
    assert result.best is None
    said = (result.folder / "console.log").read_text()
    assert said.count("no checkpoint is the best one: checkpoint_metric is 'val/loss'") == 1


def test_a_validation_that_fails_leaves_the_modes_of_the_model(make_run, net, loader):
    run = make_run()
    run.validate_step(lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division"):
        run(net, loader, loader, **QUIET)
    assert net.training
