"""What a script sets otherwise when a run goes on: it holds from there on, under schedules too, and is said."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from blowtorch import CheckpointError, Run, Schedule, open_run
from tests.core.small_runs import QUIET, assert_same, weights

BATCHES = [torch.randn(4, 4, generator=torch.Generator().manual_seed(number)) for number in range(10)]
STEPS, STOP = 30, 13


def loss_of(model, batch):
    return model(batch).square().mean()


def train(configure, max_steps=STEPS, setup=None, model=None, **options):
    """Train, and return the result, the rate of each parameter group in each step, and the model."""
    run, rates = Run(random_seed=0, command_line=[]), []

    @run.train_step
    def train_step(batch, model, state):
        rates.append([float(group["lr"]) for each in state.optimizers.values() for group in each.param_groups])
        return loss_of(model, batch)

    run.configure_optimizers(configure)
    if setup is not None:
        setup(run)
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    options = {"max_epochs": 3, "max_steps": max_steps, "log_every": "1 step", **QUIET, **options}
    return run(model, BATCHES, **options), rates, model


def sgd(rate, make=None, every="1 step", **options):
    """Return what makes an optimizer, and a scheduler for it."""

    def configure(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, **options)
        return optimizer if make is None else (optimizer, Schedule(make(optimizer, rate), every=every))

    return configure


def continued(before, after, first=None, then=None, **options):
    """Train until a stop by one script, and from there by another; return what the second process did."""
    short = train(before, STOP, **(first or {}), **options)[0]
    return train(after, resume=str(short.folder), **(then or {}), **options)


def console(result):
    return (result.folder / "console.log").read_text()


SCHEDULERS = {
    "step": lambda optimizer, rate: lr_scheduler.StepLR(optimizer, 4, 0.5),
    "milestones": lambda optimizer, rate: lr_scheduler.MultiStepLR(optimizer, [5, 20], 0.5),
    "exponential": lambda optimizer, rate: lr_scheduler.ExponentialLR(optimizer, 0.9),
    "multiplied": lambda optimizer, rate: lr_scheduler.MultiplicativeLR(optimizer, lambda step: 0.9),
    "cosine": lambda optimizer, rate: lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
    "cosine with a floor": lambda optimizer, rate: lr_scheduler.CosineAnnealingLR(optimizer, STEPS, 0.01),
    "linear": lambda optimizer, rate: lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 20),
    "constant": lambda optimizer, rate: lr_scheduler.ConstantLR(optimizer, 0.1, 20),
    "polynomial": lambda optimizer, rate: lr_scheduler.PolynomialLR(optimizer, STEPS, 2.0),
    "a function": lambda optimizer, rate: lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
    "one cycle": lambda optimizer, rate: lr_scheduler.OneCycleLR(optimizer, rate, total_steps=40),
    "cyclic": lambda optimizer, rate: lr_scheduler.CyclicLR(optimizer, rate / 10, rate, step_size_up=4),
    "restarts": lambda optimizer, rate: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 4, 2, 0.01),
    "a sequence": lambda optimizer, rate: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 5), lr_scheduler.CosineAnnealingLR(optimizer, 25)],
        [5],
    ),
    "a chain": lambda optimizer, rate: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer, 0.1, 4), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    ),
}


def rates_by_hand(make, rate):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=rate, momentum=0.9)
    scheduler, rates = make(optimizer, rate), []
    for _ in range(STEPS):
        rates.append([optimizer.param_groups[0]["lr"]])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", SCHEDULERS)
def test_another_rate_holds_under_torchs_schedulers_as_if_it_had_been_there_from_the_start(name):
    make = SCHEDULERS[name]
    result, rates, _ = continued(sgd(0.1, make, momentum=0.9), sgd(0.05, make, momentum=0.9))
    by_hand = rates_by_hand(make, 0.05)[STOP:]
    assert rates == [pytest.approx(rate) for rate in by_hand]
    recorded = open_run(result.folder).metrics()["lr"]
    assert dict(zip(*recorded, strict=True))[STEPS] == pytest.approx(by_hand[-1][0])
    assert "as configure_optimizers says now; the schedule goes on with" in console(result)


NAMED = [
    "cosine",
    {"cosine": {"warmup": "5 steps", "floor": 0.1}},
    "linear",
    {"polynomial": {"power": 2.0}},
    "warmup_stable_decay",
    "one_cycle",
    {"warmup": {"warmup": "12 steps"}},
    {"exponential": {"factor": 0.9, "every": "1 step"}},
    {"step": {"every": "4 steps"}},
    {"milestones": {"at": ["5 steps", "20 steps"]}},
    [{"warmup": {"warmup": "5 steps"}, "for": "5 steps"}, "cosine"],
    [{"warmup": {"warmup": "5 steps"}, "for": "5 steps"}, {"step": {"every": "4 steps"}}],
]


@pytest.mark.parametrize("scheduler", NAMED, ids=str)
def test_another_rate_holds_under_schedulers_by_name_as_if_it_had_been_there_from_the_start(scheduler):
    expected = train(sgd(0.05), scheduler=scheduler)[1][STOP:]
    assert continued(sgd(0.1), sgd(0.05), scheduler=scheduler)[1] == [pytest.approx(rate) for rate in expected]


def test_another_rate_without_a_schedule_is_that_of_a_loop_by_hand():
    result, rates, model = continued(sgd(0.1, momentum=0.9), sgd(0.05, momentum=0.9))
    torch.manual_seed(0)
    by_hand = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        if step == STOP:
            optimizer.param_groups[0]["lr"] = 0.05
        optimizer.zero_grad()
        loss_of(by_hand, BATCHES[step % 10]).backward()
        optimizer.step()
    assert_same(weights(model), weights(by_hand))
    assert rates == [[0.05]] * (STEPS - STOP)
    assert result.metrics["lr"] == 0.05
    assert "learning rate of optimizer 0.1 → 0.05, as configure_optimizers says now\n" in console(result)


def test_a_second_resume_with_the_same_script_says_nothing_and_goes_on_with_the_new_rate():
    short = train(sgd(0.1), STOP)[0]
    longer = train(sgd(0.05), 20, resume=str(short.folder))[0]
    assert train(sgd(0.05), resume=str(longer.folder))[1] == [[0.05]] * 10
    assert console(longer).count("learning rate of optimizer") == 1


def test_a_rate_that_a_callback_has_changed_stays_if_the_script_sets_it_as_before():
    def halve(run):
        @run.on("epoch_end")
        def lower(state, epoch):
            for group in state.optimizers["optimizer"].param_groups:
                group["lr"] = 0.1 / 2**epoch

    straight = train(sgd(0.1), setup=halve)[1]
    result, rates, _ = continued(sgd(0.1), sgd(0.1), setup=halve)
    assert rates == straight[STOP:]
    assert "→" not in console(result)


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        (torch.optim.SGD, {"weight_decay": 0.0, "momentum": 0.9}, {"weight_decay": 0.1, "momentum": 0.5}),
        (torch.optim.SGD, {"nesterov": False, "momentum": 0.9}, {"nesterov": True, "momentum": 0.9}),
        (torch.optim.Adam, {"betas": (0.9, 0.999), "eps": 1e-8}, {"betas": (0.8, 0.99), "eps": 1e-6}),
        (torch.optim.AdamW, {"lr": torch.tensor(0.01)}, {"lr": torch.tensor(0.02)}),
        (torch.optim.Adam, {"amsgrad": False}, {"amsgrad": True}),
        (torch.optim.AdamW, {"amsgrad": True}, {"amsgrad": False}),
        (torch.optim.RMSprop, {"momentum": 0, "centered": False}, {"momentum": 0.9, "centered": True}),
        (torch.optim.SGD, {"momentum": 0, "dampening": 0.5}, {"momentum": 0.9, "dampening": 0.5}),
    ],
)
def test_any_option_of_an_optimizer_that_is_set_otherwise_holds_from_there_on(kind, before, after):
    def configure(options):
        options = {
            "lr": 0.01,
            **{name: torch.clone(value) if name == "lr" else value for name, value in options.items()},
        }
        return lambda model: kind(model.parameters(), **options)

    result, _, model = continued(configure(before), configure(after))
    torch.manual_seed(0)
    by_hand = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = configure(before)(by_hand)
    for step in range(STEPS):
        if step == STOP:
            optimizer.param_groups[0].update(after)
            for parameter in by_hand.parameters() if kind is not torch.optim.SGD else ():  # which makes it when missing
                for name in ("max_exp_avg_sq", "momentum_buffer", "grad_avg"):
                    optimizer.state[parameter].setdefault(name, torch.zeros_like(parameter, requires_grad=False))
        optimizer.zero_grad()
        loss_of(by_hand, BATCHES[step % 10]).backward()
        optimizer.step()
    assert_same(weights(model), weights(by_hand))
    for name in after:
        if after[name] != before[name]:
            label = "learning rate" if name == "lr" else name
            assert f"{label} of optimizer" in console(result)


def test_only_the_group_that_is_set_otherwise_changes_and_is_named():
    def configure(*rates):
        return lambda model: torch.optim.SGD(
            [{"params": model[0].parameters(), "lr": rates[0]}, {"params": model[2].parameters(), "lr": rates[1]}]
        )

    result, rates, _ = continued(configure(0.1, 0.2), configure(0.1, 0.4), scheduler={"exponential": {"factor": 0.5}})
    assert rates[0] == pytest.approx([0.05, 0.2])
    assert "learning rate of optimizer, group 1 0.2 → 0.4" in console(result)
    assert "group 0" not in console(result)


def test_options_of_torchs_schedulers_that_are_set_otherwise_hold_too():
    def cosine(length):
        return sgd(0.1, lambda optimizer, rate: lr_scheduler.CosineAnnealingLR(optimizer, length))

    expected = rates_by_hand(lambda optimizer, rate: lr_scheduler.CosineAnnealingLR(optimizer, 60), 0.1)[STOP:]
    result, rates, _ = continued(cosine(STEPS), cosine(60))
    assert rates == [pytest.approx(rate) for rate in expected]
    assert "T_max of scheduler 'scheduler' 30 → 60, as configure_optimizers says now" in console(result)


def test_a_scheduler_that_drops_goes_on_from_its_rate_with_another_factor():
    def exponential(factor):
        return sgd(1.0, lambda optimizer, rate: lr_scheduler.ExponentialLR(optimizer, factor), "1 epoch")

    rates = continued(exponential(0.5), exponential(0.1))[1]
    assert [rates[0], rates[-1]] == [[0.5], [pytest.approx(0.05)]]


def test_a_plateau_keeps_what_it_has_seen_and_scales_its_rate():
    def plateau(rate):
        def configure(model):
            optimizer = torch.optim.SGD(model.parameters(), lr=rate)
            scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
            return optimizer, Schedule(scheduler, metric="train_epoch/noise")

        return configure

    def constant(run):
        @run.train_step
        def train_step(batch, model):
            return {"loss": loss_of(model, batch), "noise": 1.0}

        @run.on("run_end")
        def tell(state):
            seen.append(state.optimizers["optimizer"].param_groups[0]["lr"])

    seen = []
    continued(plateau(0.1), plateau(0.2), setup=constant)
    assert seen == pytest.approx([0.1, 0.05])


def test_a_checkpoint_that_does_not_tell_what_was_set_goes_on_as_it_is_and_says_so():
    short = train(sgd(0.1), STOP)[0]
    forget_settings(short.folder / "checkpoints" / f"step-{STOP:08}")
    result, rates, _ = train(sgd(0.05), resume=str(short.folder))
    assert rates == [[0.1]] * (STEPS - STOP)
    assert "learning rate of optimizer stays 0.1, as the checkpoint has it, and configure_optimizers says 0.05" in (
        console(result)
    )


def forget_settings(checkpoint):
    from blowtorch.folder.manifest import read_manifest, write_manifest

    content = torch.load(checkpoint / "training.pt", weights_only=True)
    del content["configured"]
    torch.save(content, checkpoint / "training.pt")
    manifest = read_manifest(checkpoint)
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint, manifest.step, manifest.epoch, manifest.metrics)


def test_another_kind_of_optimizer_is_refused_by_name_and_may_be_begun_anew():
    def adam(model):
        return torch.optim.Adam(model.parameters(), lr=0.01)

    with pytest.raises(CheckpointError, match="optimizers/optimizer was SGD in checkpoint .* and is Adam now"):
        continued(sgd(0.1), adam)
    rates = continued(sgd(0.1), adam, then={"resume_without": ["optimizers/optimizer"]}, scheduler="linear")[1]
    assert rates == [pytest.approx([0.01 * (1 - step / STEPS)]) for step in range(STOP, STEPS)]


def test_adam_may_become_adamw_since_the_state_is_the_same():
    def configure(kind):
        return lambda model: kind(model.parameters(), lr=0.01, weight_decay=0.1)

    result = continued(configure(torch.optim.Adam), configure(torch.optim.AdamW))[0]
    assert "decoupled_weight_decay of optimizer False → True" in console(result)


def in_order(*names):
    """Return what makes an optimizer with momentum, whose parameters come in another order or in other groups."""

    def configure(model):
        groups: list[dict[str, Any]] = [
            {"params": [model.get_parameter(name) for name in group.split()]} for group in names
        ]
        for number, group in enumerate(groups):
            group["lr"] = 0.2 if "bias" in names[number] else 0.1
        return torch.optim.SGD(groups, momentum=0.9)

    return configure


def test_groups_and_parameters_in_another_order_find_their_states_by_name():
    before = in_order("0.weight 2.weight", "0.bias 2.bias")
    straight = train(before)[2]
    again = continued(before, in_order("2.bias 0.bias", "2.weight 0.weight"))[2]
    assert_same(weights(again), weights(straight))


def test_names_that_an_optimizer_was_given_stay_with_their_parameters_in_another_order():
    optimizers: list[torch.optim.Optimizer] = []

    def make(is_reversed):
        def configure(model):
            named = list(model.named_parameters())
            optimizers.append(torch.optim.SGD(named[::-1] if is_reversed else named, lr=0.1, momentum=0.9))
            return optimizers[-1]

        return configure

    model = continued(make(False), make(True))[2]
    (group,) = optimizers[-1].param_groups
    assert [id(model.get_parameter(name)) for name in group["param_names"]] == list(map(id, group["params"]))


@pytest.mark.parametrize(
    ("after", "match"),
    [
        (in_order("0.weight 2.weight", "0.bias"), "trained '2.bias' when it was saved and does not now"),
        (in_order("0.weight 2.weight 0.bias 2.bias"), "has 1 parameter groups now and had 2 when it was saved"),
        (in_order("0.weight", "0.bias 2.bias 2.weight"), "'0.weight' and '2.weight' are in the same group in one"),
    ],
)
def test_other_groups_are_refused_by_the_names_of_their_parameters(after, match):
    with pytest.raises(CheckpointError, match=match):
        continued(in_order("0.weight 2.weight", "0.bias 2.bias"), after)


def test_a_parameter_that_the_optimizer_had_not_is_refused_by_name():
    with pytest.raises(CheckpointError, match="optimizers/optimizer trains '2.bias' now and did not"):
        continued(in_order("0.weight 2.weight", "0.bias"), in_order("0.weight 2.weight", "0.bias 2.bias"))


def test_another_kind_of_scheduler_is_refused_by_name():
    after = sgd(0.1, SCHEDULERS["cosine"])
    with pytest.raises(CheckpointError, match="schedulers/scheduler was StepLR in checkpoint .* CosineAnnealingLR now"):
        continued(sgd(0.1, SCHEDULERS["step"]), after)
    rates = continued(sgd(0.1, SCHEDULERS["step"]), after, then={"resume_without": ["schedulers/scheduler"]})[1]
    assert rates == [pytest.approx(rate) for rate in rates_by_hand(SCHEDULERS["cosine"], 0.1)[: STEPS - STOP]]
