import pickle
import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from blowtorch import CheckpointError, ScriptError

QUIET = {"progress": False}


class Output(NamedTuple):
    value: torch.Tensor
    name: str


@pytest.fixture
def inputs():
    return torch.randn(20, 4, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def predicting(make_run):
    run = make_run()

    @run.predict_step
    def predict(batch, model):
        return model(batch)

    return run


def by_hand(model, inputs):
    model.eval()
    with torch.no_grad():
        return model(inputs)


def streams():
    return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()


# ---------------------------------------------------------------- predictions


def test_predictions_come_one_batch_at_a_time_when_they_are_asked_for(predicting, net, inputs):
    taken = []

    def batches():
        for batch in inputs.split(8):
            taken.append(len(batch))
            yield batch

    outputs = predicting.predict(net, batches())
    assert taken == []
    first = next(outputs)
    assert taken == [8]
    assert torch.equal(first, by_hand(net, inputs[:8]))
    assert [len(each) for each in outputs] == [8, 4]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_gathered_predictions_are_those_of_a_loop_by_hand_in_the_order_of_the_data(
    predicting, net, inputs, num_workers
):
    loader = DataLoader(inputs, 3, num_workers=num_workers)
    outputs = predicting.predict(net, loader, gather=True)
    assert outputs.shape == (20, 1)
    assert not outputs.requires_grad
    assert torch.equal(outputs, torch.cat([by_hand(net, batch) for batch in inputs.split(3)]))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda x: {"a": x, "b": (x * 2,)}, lambda x: {"a": x, "b": (x * 2,)}),
        (lambda x: Output(x, "a"), lambda x: Output(x, ["a", "a"])),
        (lambda x: x.sum(), lambda x: torch.stack([x[:2].sum(), x[2:].sum()])),
        (lambda x: x.tolist(), lambda x: x.tolist()),
        (lambda x: len(x), lambda x: [2, 1]),
    ],
    ids=["mappings and tuples", "named tuples", "scalars", "lists", "numbers"],
)
def test_whatever_a_step_returns_is_gathered(predicting, net, make, expected):
    data = torch.arange(3.0)
    predicting.predict_step(lambda batch: make(batch))
    gathered, wanted = predicting.predict(net, data.split(2), gather=True), expected(data)
    assert str(gathered) == str(wanted)
    assert type(gathered) is type(wanted)


def test_between_two_predictions_everything_is_as_the_caller_left_it(predicting, inputs):
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    net[1].eval()  # a mode of its own, which comes back
    seen = []
    predicting.predict_step(lambda batch, model: (seen.append(model.training), torch.rand(1), model(batch))[2])
    before = streams()
    for _ in predicting.predict(net, inputs.split(8)):
        assert torch.is_grad_enabled()
        assert (net.training, net[1].training) == (True, False)
    assert seen == [False, False, False]
    assert streams() == before


def test_what_is_random_in_predictions_is_the_same_each_time(predicting, net, inputs):
    predicting.predict_step(lambda batch: torch.rand(len(batch)))
    first = predicting.predict(net, DataLoader(inputs, 8, shuffle=True), gather=True)
    torch.rand(5)
    assert torch.equal(first, predicting.predict(net, DataLoader(inputs, 8, shuffle=True), gather=True))
    assert len(set(first.tolist())) == 20


def test_data_may_come_with_the_decorator(make_run, net, inputs):
    run = make_run(validates=False)
    run.predict_step(inputs.split(8))(lambda batch, model: model(batch))
    assert len(run.predict(net, gather=True)) == 20


def test_precision_holds_for_predictions(predicting, net, inputs):
    assert predicting.predict(net, inputs.split(8), gather=True, precision="bf16").dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["predict", "evaluate"])
def test_what_is_missing_is_said_before_anything_is_asked_for(make_run, net, method):
    run = make_run(validates=False)
    with pytest.raises(ScriptError, match=f"run.{method} needs a function decorated with @run"):
        getattr(run, method)(net, [1])
    run.predict_step(lambda batch: batch)
    run.validate_step(lambda batch: {"loss": batch})
    decorator = "predict_step" if method == "predict" else "validate_step"
    with pytest.raises(ScriptError, match=rf"run.{method} has no data; .*@run.{decorator}\(loader\)"):
        getattr(run, method)(net)


# ---------------------------------------------------------------- weights of checkpoints


def test_the_best_weights_of_the_last_run_are_loaded(predicting, net, loader, inputs):
    values = iter([0.5, 0.1, 0.3])
    predicting.validate_epoch(lambda data_loader: {"loss": next(values)})
    kept = {}
    predicting.on("epoch_end")(
        lambda state: kept.__setitem__(state.epoch, [p.clone() for p in state.model.parameters()])
    )
    result = predicting(net, loader, loader, max_epochs=3, **QUIET)
    assert result.best.step == 16
    outputs = predicting.predict(net, inputs.split(8), checkpoint="best", gather=True)
    assert all(torch.equal(mine, best) for mine, best in zip(net.parameters(), kept[2], strict=True))
    assert torch.equal(outputs, torch.cat([by_hand(net, batch) for batch in inputs.split(8)]))
    predicting.predict(net, inputs.split(8), checkpoint="latest")
    assert all(torch.equal(mine, last) for mine, last in zip(net.parameters(), kept[3], strict=True))


def test_a_process_of_its_own_finds_the_newest_run_of_the_name(make_run, net, loader):
    result = make_run()(net, loader, loader, max_epochs=2, run_name="a", **QUIET)
    fresh = nn.Sequential(
        *(type(layer)(4, 8) if isinstance(layer, nn.Linear) else layer for layer in net[:3]), nn.Linear(8, 1)
    )
    measured = make_run().evaluate(fresh, loader, checkpoint="best", run_name="a")
    assert measured == {"val/loss": pytest.approx(result.best.metric, rel=1e-6)}


@pytest.mark.parametrize("place", ["folder", "folder/checkpoints/best", "folder/checkpoints/step-00000008"])
def test_a_checkpoint_is_named_by_any_of_its_paths(make_run, net, loader, place):
    result = make_run()(net, loader, loader, max_epochs=1, **QUIET)
    expected = [parameter.clone() for parameter in net.parameters()]
    nn.init.zeros_(net[0].weight)
    make_run().evaluate(net, loader, checkpoint=place.replace("folder", str(result.folder)))
    assert all(torch.equal(mine, saved) for mine, saved in zip(net.parameters(), expected, strict=True))


def test_a_checkpoint_that_is_not_there_or_not_of_this_model_is_an_error(make_run, net, loader):
    run = make_run()
    with pytest.raises(CheckpointError, match="checkpoint='best' is of the last run, and in 'train_logs' no run"):
        run.evaluate(net, loader, checkpoint="best", run_name="a")
    with pytest.raises(
        CheckpointError, match="checkpoint='elsewhere' is no good checkpoint: it holds no manifest.json"
    ):
        run.evaluate(net, loader, checkpoint="elsewhere")
    run(net, loader, loader, max_steps=1, **QUIET)
    with pytest.raises(CheckpointError, match="checkpoint=.* is no good checkpoint: .*another model or configuration"):
        run.evaluate(nn.Linear(4, 1), loader, checkpoint="latest")


# ---------------------------------------------------------------- evaluations


def test_an_evaluation_is_that_of_a_loop_by_hand(make_run, net, data):
    loader = DataLoader(data, 24)  # batches of unequal size
    measured = make_run().evaluate(net, loader)
    x, y = data.tensors
    sums = [
        nn.functional.mse_loss(by_hand(net, a), b).item() * len(a)
        for a, b in zip(x.split(24), y.split(24), strict=True)
    ]
    assert measured == {"val/loss": sum(sums) / 64}


def test_an_evaluation_amid_a_training_does_not_move_it(make_run, loader):
    def train(evaluates):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        run = make_run()
        if evaluates:
            run.on("train_step_end")(lambda model: run.evaluate(model, loader))
            run.predict_step(lambda batch, model: model(batch[0]))
            run.on("train_step_end")(lambda model: run.predict(model, loader, gather=True))
        run(net, loader, loader, max_steps=6, **QUIET)
        return list(net.parameters())

    assert all(torch.equal(one, other) for one, other in zip(train(True), train(False), strict=True))


def test_an_average_that_was_saved_is_what_is_evaluated(make_run, net, loader):
    run = make_run()
    result = run(net, loader, loader, max_epochs=2, callbacks=[{"ema": {"decay": 0.9}}], **QUIET)
    nn.init.zeros_(net[0].weight)
    measured = run.evaluate(net, loader, checkpoint=result.best.path)
    assert measured["val/loss"] == pytest.approx(result.best.metric, rel=1e-6)


def test_the_data_of_a_named_validation_is_used_where_there_is_only_that(make_run, net, loader):
    run = make_run(validates=False)
    run.validate_step(loader, name="ood")(lambda batch, model: model(batch[0]).mean())
    assert list(run.evaluate(net)) == ["ood/loss"]
