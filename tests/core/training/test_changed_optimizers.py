"""Optimizers and models that change while a run goes: what is recorded, said, saved and continued."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from blowtorch import BlowtorchWarning, CheckpointError, Run, Schedule, ScriptError, open_run
from tests.core.small_runs import QUIET, assert_same, weights

BATCHES = [torch.randn(4, 4, generator=torch.Generator().manual_seed(number)) for number in range(10)]
STEPS = 30


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))


def head_alone(model):
    return torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)


def train(change, configure=head_alone, max_steps=STEPS, **options):
    """Train; `change(epoch, model, optimizer)` is called at the start of each epoch."""
    run, rates = Run(random_seed=0, command_line=[]), []

    @run.train_step
    def train_step(batch, model, state):
        rates.append([group["lr"] for group in state.optimizers["optimizer"].param_groups])
        return model(batch).square().mean()

    @run.on("epoch_start")
    def epoch_start(state, epoch, model):
        change(epoch, model, state.optimizers["optimizer"])

    run.configure_optimizers(configure)
    model = make_model()
    options = {"max_epochs": 3, "max_steps": max_steps, "log_every": "1 step", **QUIET, **options}
    return run(model, BATCHES, **options), rates, model


def add_the_body(epoch, model, optimizer):
    if epoch == 2:
        optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.01})


def by_hand(change, make_scheduler=None):
    model, rates = make_model(), []
    optimizer = head_alone(model)
    scheduler = None if make_scheduler is None else make_scheduler(optimizer)
    for step in range(STEPS):
        if step % 10 == 0:
            change(step // 10 + 1, model, optimizer)
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.zero_grad()
        model(BATCHES[step % 10]).square().mean().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return model, rates


def test_a_group_that_is_added_has_a_rate_of_its_own_in_the_record():
    result, rates, model = train(add_the_body)
    expected, expected_rates = by_hand(add_the_body)
    assert_same(weights(model), weights(expected))
    assert rates == expected_rates
    recorded = open_run(result.folder).metrics()
    assert set(recorded["lr"].values) == {0.1}
    assert recorded["lr/optimizer/1"].steps.tolist() == [*range(11, 31)]
    assert set(recorded["lr/optimizer/1"].values) == {0.01}


def unfreeze(epoch, model, optimizer):
    model[0].requires_grad_(epoch == 2)


def add_to_the_group(epoch, model, optimizer):
    if epoch == 2:
        optimizer.param_groups[0]["params"].append(model[0].weight)


def take_a_group_out(epoch, model, optimizer):
    if epoch == 1:
        add_the_body(2, model, optimizer)
    elif epoch == 2:
        for parameter in optimizer.param_groups.pop()["params"]:
            del optimizer.state[parameter]


def all_of_it(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.parametrize("stop", [10, 14, 20, 25])
@pytest.mark.parametrize(
    ("change", "configure"),
    [
        (add_the_body, head_alone),
        (unfreeze, all_of_it),
        (add_to_the_group, head_alone),
        (take_a_group_out, head_alone),
    ],
)
def test_a_run_whose_optimizer_has_changed_is_continued(change, configure, stop):
    straight, rates, model = train(change, configure)
    short, earlier, _ = train(change, configure, stop)
    result, later, again = train(change, configure, resume=str(short.folder))
    assert earlier + later == rates
    assert_same(weights(again), weights(model))
    assert result.metrics == straight.metrics


@pytest.mark.parametrize("frozen", [True, False])
def test_parameters_that_the_script_freezes_otherwise_at_a_restart_are_as_it_says(frozen):
    short = train(unfreeze, all_of_it, 15)[0]

    def configure(model):
        model[2].requires_grad_(not frozen)
        return all_of_it(model)

    model = train(lambda *_: None, configure, resume=str(short.folder))[2]
    assert [each.requires_grad for each in model.parameters()] == [True, True, not frozen, not frozen]


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
        lambda optimizer: lr_scheduler.StepLR(optimizer, 5),
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
        lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS),
    ],
)
@pytest.mark.filterwarnings("ignore:parameter groups were added:blowtorch.BlowtorchWarning")
def test_schedules_that_take_any_group_do_with_a_new_one_what_torch_does(make):
    def configure(model):
        optimizer = head_alone(model)
        return optimizer, Schedule(make(optimizer), every="1 step")

    assert train(add_the_body, configure)[1] == by_hand(add_the_body, make)[1]


@pytest.mark.parametrize(
    "scheduler",
    [
        {"cosine": {"floor": 0.1}},
        "one_cycle",
        {"plateau": {"metric": "train_epoch/loss", "patience": 0}},
        [{"warmup": {"warmup": "5 steps"}, "for": "15 steps"}, "linear"],
    ],
    ids=str,
)
def test_schedules_that_know_their_groups_alone_leave_a_new_one_as_it_is_and_say_so(scheduler):
    with pytest.warns(BlowtorchWarning, match="parameter groups were added to optimizer 'optimizer' during the run"):
        rates = train(add_the_body, scheduler=scheduler)[1]
    straight = train(lambda *_: None, scheduler=scheduler)[1]
    assert [each[0] for each in rates] == [each[0] for each in straight]
    assert [each[1:] for each in rates] == [[]] * 10 + [[0.01]] * 20


def test_a_schedule_without_one_of_its_groups_says_so():
    def configure(model):
        return torch.optim.SGD([{"params": [each]} for each in model.parameters()], lr=0.1)

    def remove(epoch, model, optimizer):
        del optimizer.param_groups[2:]

    with pytest.raises(ScriptError, match="has 2 parameter groups, and its schedule was made for 4; leave groups"):
        train(remove, configure, scheduler="cosine")


def replace_the_head(epoch, model, optimizer):
    replace_by(2, epoch, model, optimizer)


def replace_by_its_like(epoch, model, optimizer):
    replace_by(1, epoch, model, optimizer)


def replace_by(width, epoch, model, optimizer):
    if epoch == 2:
        model[2] = nn.Linear(4, width)
        optimizer.add_param_group({"params": list(model[2].parameters())})


def append_a_layer(epoch, model, optimizer):
    if epoch == 2:
        model.append(nn.Linear(1, 1))
        optimizer.add_param_group({"params": list(model[3].parameters())})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (replace_the_head, "has parameters that are in the model no more when the run started|of shape"),
        (replace_by_its_like, "optimizer 'optimizer' has parameters that are in the model no more"),
        (append_a_layer, r"'3.weight' in the model is of shape \(1, 1\) and was not there when the run started"),
    ],
)
def test_a_run_that_cannot_be_continued_says_so_at_the_first_checkpoint_after_the_change(change, reason):
    with pytest.warns(BlowtorchWarning, match=reason) as warned:
        short = train(change, max_steps=25)[0]
    said = [str(each.message) for each in warned if "cannot go on from checkpoints like this one" in str(each.message)]
    assert len(said) == 1 and "freeze them until they are wanted" in said[0]
    with pytest.raises(CheckpointError):
        train(change, resume=str(short.folder))


@pytest.mark.parametrize("name", ["ema", "swa"])
def test_averages_follow_a_model_that_changes_and_say_so(name):
    options = {"ema": {"decay": 0.5}, "swa": {"start": 0.0, "every": "1 step"}}[name]
    with pytest.warns(BlowtorchWarning) as warned:
        result, _, model = train(replace_the_head, callbacks=[{name: options}])
    said = [str(each.message) for each in warned if "begin anew with step 11" in str(each.message)]
    assert result.status == "finished" and len(said) == 1 and "'2.weight'" in said[0]
    assert model[2].weight.shape == (2, 4)
