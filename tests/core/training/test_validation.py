"""Validations: any number, each with its own data and clock, without a trace in the training."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from blowtorch import Run

QUIET = {"progress": False}


class Augmented(torch.utils.data.Dataset):
    """Draws from the streams of training when it is loaded in the main process."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        x = torch.full((4,), index / 40) + torch.rand(4)
        return x, x.sum().reshape(1)


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))


def weights(net):
    return list(net.state_dict().values())


def start(*validations):
    """A run with a validation of each name, and the clock that it is given."""
    run = Run(random_seed=123, command_line=["train.py"])

    def step(batch, model):
        return {"loss": nn.functional.mse_loss(model(batch[0]), batch[1])}

    def validate(batch, model, log):
        log({"worst": torch.rand(())}, reduce="max")
        run.log_image("image", torch.zeros(3, 4, 4))
        run.log_text("text", "seen")
        return step(batch, model)

    run.train_step(step)
    run.configure_optimizers(lambda model: torch.optim.Adam(model.parameters(), lr=0.01))
    for name, keywords in validations:
        run.validate_step(DataLoader(Augmented(), 16, shuffle=True), name=name, **keywords)(validate)
    return run


def train_loader():
    return DataLoader(Augmented(), 8, shuffle=True)


THREE = (
    ("first", {"at_start": True}),
    ("second", {"every": "2 steps"}),
    ("third", {"every": "2 epochs"}),
)


def test_each_validation_has_its_clock_before_and_amid_and_after_epochs(events):
    result = start(*THREE)(make_net(), train_loader(), max_epochs=2, **QUIET)
    steps = {name: [] for name, _ in THREE}
    for event in events(result, "metrics"):
        for name in event["metrics"]:
            if name.endswith("/loss") and name.split("/")[0] in steps:
                steps[name.split("/")[0]].append(event["step"])
    assert steps == {"first": [0, 5, 10], "second": [2, 4, 6, 8, 10], "third": [10]}


@pytest.mark.parametrize("options", [{}, {"inference_mode": True}, {"sanity_batches": 1}])
def test_validations_change_nothing_in_the_training(options):
    """The data of the training draws from the global streams, so one draw too many would show."""
    plain, validated = make_net(), make_net()
    start()(plain, train_loader(), max_epochs=2, **QUIET)
    start(*THREE)(validated, train_loader(), max_epochs=2, **QUIET, **options)
    assert all(map(torch.equal, weights(plain), weights(validated)))


def test_a_trial_of_validations_records_nothing_and_sees_few_batches(events):
    seen = []
    run = start(*THREE)
    run.on("train_step_end")(lambda state: seen.append(("step", state.step)))

    @run.validate_step(DataLoader(Augmented(), 4), name="fourth", every="1 epoch")
    def validate(batch, model, step):
        seen.append(("batch", step))
        return {"loss": model(batch[0]).mean()}

    tried = run(make_net(), train_loader(), max_steps=1, sanity_batches=2, **QUIET)
    assert seen == [("batch", 0), ("batch", 0), ("step", 1)]
    without = run(make_net(), train_loader(), max_steps=1, **QUIET)

    def strip(result):
        return [{**event, "time": None, "id": None, "name": None} for event in events(result)]

    assert strip(tried) == strip(without)
    assert sorted(path.name for path in (tried.folder / "media").rglob("*")) == sorted(
        path.name for path in (without.folder / "media").rglob("*")
    )


def test_a_mistake_in_a_validation_shows_before_the_first_step():
    run, steps = start(), []
    run.on("train_step_end")(lambda step: steps.append(step))
    run.validate_step(DataLoader(Augmented(), 4))(lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        run(make_net(), train_loader(), sanity_batches=1, **QUIET)
    assert not steps


@pytest.mark.parametrize("is_on", [False, True])
def test_inference_mode_is_an_option(is_on):
    run, seen = start(), []

    @run.validate_step(DataLoader(Augmented(), 40))
    def validate(batch, model):
        output = model(batch[0])
        seen.append((output.is_inference(), output.requires_grad))
        return {"loss": output.mean()}

    result = run(make_net(), train_loader(), inference_mode=is_on, **QUIET)
    assert seen == [(is_on, False)]
    assert run.evaluate(make_net(), inference_mode=is_on, **QUIET)["val/loss"] is not None
    assert result.metrics["val/loss"] == pytest.approx(result.best.metric)


def test_every_module_is_put_back_into_the_mode_in_which_it_was():
    net, seen = make_net(), []
    run = start(("first", {"every": "1 steps", "at_start": True}))
    run.init(lambda model: model[1].eval() and model[2].requires_grad_(False))

    @run.on("train_step_end")
    def note(model):
        seen.append([module.training for module in model.modules()])

    run.on("validation_end")(note)
    run(net, train_loader(), max_steps=2, sanity_batches=1, **QUIET)
    assert seen == [[True, True, False, True, True]] * len(seen)
    assert len(seen) == 5


@pytest.mark.parametrize("option", ["limit_train_batches", "limit_validate_batches", "overfit_batches"])
def test_limits_hold_for_each_epoch_and_each_validation(option):
    seen, run = {"train": [], "val": []}, start()

    @run.train_step
    def step(batch, model):
        seen["train"].append(batch[0])
        return {"loss": nn.functional.mse_loss(model(batch[0]), batch[1])}

    @run.validate_step(DataLoader(Augmented(), 8))
    def validate(batch, model):
        seen["val"].append(batch[0])
        return {"loss": model(batch[0]).mean()}

    result = run(make_net(), train_loader(), max_epochs=2, **{option: 2}, **QUIET)
    is_validation = option == "limit_validate_batches"
    assert {name: len(batches) for name, batches in seen.items()} == {
        "train": 10 if is_validation else 4,
        "val": 4 if is_validation else 10,
    }
    assert result.step == len(seen["train"])


def test_overfitting_sees_the_same_samples_in_every_epoch_and_may_be_limited_further():
    seen, run = [], start()

    @run.train_step
    def step(batch, model):
        seen.append(batch[1].tolist())
        return {"loss": nn.functional.mse_loss(model(batch[0]), batch[1])}

    fixed = torch.utils.data.TensorDataset(torch.randn(40, 4), torch.arange(40.0).unsqueeze(1))
    run(make_net(), DataLoader(fixed, 8, shuffle=True), max_epochs=3, overfit_batches=2, **QUIET)
    assert seen[:2] == seen[2:4] == seen[4:]
    seen.clear()
    run(make_net(), DataLoader(fixed, 8, shuffle=True), overfit_batches=4, limit_train_batches=3, **QUIET)
    assert len(seen) == 3


def test_a_run_on_a_few_batches_goes_on_in_the_middle_of_them():
    def train(*stops):
        folder, net = {}, None
        for stop in (*stops, None):
            net = make_net()
            options = {"max_epochs": 4, "overfit_batches": 3, "max_steps": stop, **QUIET, **folder}
            folder = {"resume": str(start()(net, train_loader(), **options).folder)}
        return weights(net)

    assert all(map(torch.equal, train(4, 8), train()))
