"""Schedules over whole runs: the weights and rates of the same loop by hand with those of torch, bit for bit."""

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from blowtorch import BlowtorchWarning, CheckpointError, OptionError, Run, Schedule, ScriptError, hookimpl

EPOCHS, PER_EPOCH = 4, 6
TOTAL = EPOCHS * PER_EPOCH
QUIET = {"progress": False, "log_every": "1 steps"}


class Halving:
    """A user's extension."""

    def __init__(self, after=5):
        self.after = after

    @hookimpl
    def scheduler_build(self, optimizer):
        return StepLR(optimizer, self.after, 0.5)


def rise(length, factor=lambda step: 1.0):
    """The factor of a step: a warm-up, and then another factor."""
    return lambda step: 0.01 + 0.99 * step / length if step < length else factor(step)


def down(done, floor=0.0):
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def stable(shape, length=5):
    """The factor of a step: 1, and then a shape over the last steps."""
    return lambda step: 1.0 if step < TOTAL - length else 0.1 + 0.9 * shape((step - TOTAL + length) / length)


def by(kind, *arguments, **keywords):
    return lambda optimizer: kind(optimizer, *arguments, **keywords)


def one_after_the_other(milestones, *parts):
    return lambda optimizer: SequentialLR(optimizer, [part(optimizer) for part in parts], milestones)


WARMUP = {"warmup": {"warmup": "4 steps"}, "for": "4 steps"}
# What the option says; the same of torch; when that is stepped.
CASES = {
    "cosine": ("cosine", by(CosineAnnealingLR, TOTAL), "step"),
    "cosine with options": (
        {"cosine": {"warmup": "4 steps", "floor": 0.1}},
        by(LambdaLR, rise(4, lambda step: 0.1 + 0.9 * down((step - 4) / 20))),
        "step",
    ),
    "linear": ("linear", by(LinearLR, 1.0, 0.0, TOTAL), "step"),
    "linear with a floor": ({"linear": {"floor": 0.1}}, by(LinearLR, 1.0, 0.1, TOTAL), "step"),
    "linear with a warm-up": (
        {"linear": {"warmup": "1 epoch"}},
        by(LambdaLR, rise(6, lambda step: 1 - (step - 6) / 18)),
        "step",
    ),
    "warmup": ({"warmup": {"warmup": "7 steps"}}, by(LambdaLR, rise(7)), "step"),
    "one_cycle": ("one_cycle", by(OneCycleLR, 0.1, total_steps=TOTAL), "step"),
    "polynomial": ("polynomial", by(PolynomialLR, TOTAL), "step"),
    "polynomial with a power": ({"polynomial": {"power": 0.9}}, by(PolynomialLR, TOTAL, 0.9), "step"),
    "polynomial with options": (
        {"polynomial": {"power": 2, "warmup": "4 steps", "floor": 0.1}},
        by(LambdaLR, rise(4, lambda step: 0.1 + 0.9 * (1 - (step - 4) / 20) ** 2)),
        "step",
    ),
    "warmup_stable_decay": (
        {"warmup_stable_decay": {"warmup": "4 steps", "decay": "5 steps", "floor": 0.1}},
        by(LambdaLR, rise(4, stable(lambda done: 1 - done))),
        "step",
    ),
    "warmup_stable_decay with a cosine": (
        {"warmup_stable_decay": {"decay": 0.2, "shape": "cosine", "floor": 0.1}},
        by(LambdaLR, stable(down)),
        "step",
    ),
    "warmup_stable_decay with a root": (
        {"warmup_stable_decay": {"decay": "1 epoch", "shape": "square_root", "floor": 0.1}},
        by(LambdaLR, stable(lambda done: 1 - math.sqrt(done), 6)),
        "step",
    ),
    "exponential": ({"exponential": {"factor": 0.8}}, by(ExponentialLR, 0.8), "epoch"),
    "exponential by steps": ({"exponential": {"factor": 0.9, "every": "1 step"}}, by(ExponentialLR, 0.9), "step"),
    "step": ({"step": {"every": "2 epochs"}}, by(StepLR, 2), "epoch"),
    "step by steps": ({"step": {"every": "5 steps", "factor": 0.5}}, by(StepLR, 5, 0.5), "step"),
    "milestones": ({"milestones": {"at": ["1 epoch", "3 epochs"]}}, by(MultiStepLR, [1, 3]), "epoch"),
    "milestones by steps": (
        {"milestones": {"at": ["4 steps", "15 steps"], "factor": 0.3}},
        by(MultiStepLR, [4, 15], 0.3),
        "step",
    ),
    "plateau": (
        {"plateau": {"patience": 0, "factor": 0.5, "smaller_is_better": False}},
        by(ReduceLROnPlateau, mode="max", patience=0, factor=0.5),
        "validation",
    ),
    "an object": (Halving(5), by(StepLR, 5, 0.5), "step"),
    "a class by its place": ({f"{__name__}:Halving": {"after": 7}}, by(StepLR, 7, 0.5), "step"),
    "warmup, then cosine": (
        [WARMUP, "cosine"],
        one_after_the_other([4], by(LambdaLR, rise(4)), by(CosineAnnealingLR, 20)),
        "step",
    ),
    "four in a row": (
        [
            WARMUP,
            {"exponential": {"factor": 0.9, "every": "1 step"}, "for": "1 epoch"},
            {"scheduler": Halving(2), "for": "5 steps"},
            {"polynomial": {"power": 2}},
        ],
        one_after_the_other(
            [4, 10, 15], by(LambdaLR, rise(4)), by(ExponentialLR, 0.9), by(StepLR, 2, 0.5), by(PolynomialLR, 9, 2)
        ),
        "step",
    ),
    "warmup, then by epochs": (
        [{"warmup": {"warmup": "1 epoch"}, "for": "1 epoch"}, {"step": {"every": "1 epoch"}}],
        one_after_the_other([6], by(LambdaLR, rise(6)), by(StepLR, 6)),
        "step",
    ),
}


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(8, 4, generator=generator) for _ in range(PER_EPOCH)]
    return [(x, x.sum(dim=1, keepdim=True)) for x in inputs]


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def loss_of(batch, model):
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def train_by_hand(batches, make_scheduler, stepped):
    """The loop as torch's documentation has it: the weights, and the rate of each step."""
    model, rates = make_net(), {}
    optimizer = make_optimizer(model)
    scheduler = make_scheduler(optimizer)
    for _ in range(EPOCHS):
        for batch in batches:
            optimizer.zero_grad()
            loss_of(batch, model).backward()
            rates[len(rates) + 1] = optimizer.param_groups[0]["lr"]
            optimizer.step()
            if stepped == "step":
                scheduler.step()
        if stepped == "epoch":
            scheduler.step()
        elif stepped == "validation":
            with torch.no_grad():
                scheduler.step(loss_of(batches[0], model).item())
    return model.state_dict(), rates


def make_run(configure=make_optimizer, fails_at=None):
    run = Run(command_line=["train.py"], random_seed=0)

    @run.train_step
    @run.validate_step
    def step(batch, model):
        return {"loss": loss_of(batch, model)}

    @run.on("train_step_end")
    def fail(state):
        if state.step == fails_at:
            raise RuntimeError("the power is gone")

    run.configure_optimizers(configure)
    return run


def train(batches, scheduler=None, *, configure=make_optimizer, **options):
    model = make_net()
    options = {"max_epochs": EPOCHS, **QUIET, **options}
    result = make_run(configure)(model, batches, batches[:1], scheduler=scheduler, **options)
    return model.state_dict(), result


def train_with_a_crash(batches, scheduler=None, *, configure=make_optimizer, crash, **options):
    """Fails after a step, and continues from the checkpoint before."""
    options = {"max_epochs": EPOCHS, "checkpoint_every": "4 steps", **QUIET, **options}
    run = make_run(configure, fails_at=crash)
    with pytest.raises(RuntimeError, match="the power is gone"):
        run(make_net(), batches, batches[:1], scheduler=scheduler, run_name="crash", **options)
    return train(batches, scheduler, configure=configure, run_name="crash", resume="auto", **options)


def are_equal(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture
def rates(events):
    """The recorded rates of a run by step; of one optimizer, or of the one named."""

    def read(result, name="lr"):
        recorded = [(event["step"], event["metrics"]) for event in events(result, "metrics")]
        return {step: metrics[name] for step, metrics in recorded if name in metrics}

    return read


# ---------------------------------------------------------------- one optimizer


@pytest.mark.parametrize("name", CASES)
def test_a_run_has_the_weights_and_rates_of_torch_by_hand(name, batches, rates):
    scheduler, make_scheduler, stepped = CASES[name]
    expected_weights, expected_rates = train_by_hand(batches, make_scheduler, stepped)
    weights, result = train(batches, scheduler)
    assert rates(result) == expected_rates
    assert len(set(expected_rates.values())) > 1
    assert are_equal(weights, expected_weights)


@pytest.mark.parametrize("crash", [7, 18])
@pytest.mark.parametrize("name", CASES)
def test_a_run_that_fails_and_is_continued_has_them_too(name, crash, batches, rates):
    scheduler, make_scheduler, stepped = CASES[name]
    expected_weights, expected_rates = train_by_hand(batches, make_scheduler, stepped)
    weights, result = train_with_a_crash(batches, scheduler, crash=crash)
    assert rates(result) == expected_rates
    assert are_equal(weights, expected_weights)


@pytest.mark.parametrize("max_steps", [9, 12])
@pytest.mark.parametrize(
    "name",
    ["polynomial", "linear", "one_cycle", "warmup_stable_decay", "step", "milestones by steps", "warmup, then cosine"],
)
def test_a_run_that_becomes_longer_goes_over_to_the_rates_of_the_new_length(name, max_steps, batches, rates):
    scheduler = CASES[name][0]
    whole, (_, short) = train(batches, scheduler)[1], train(batches, scheduler, max_epochs=None, max_steps=max_steps)
    longer = train(batches, scheduler, resume=str(short.folder))[1]
    assert list(rates(longer)) == list(rates(whole))
    for step in range(max_steps + 1, TOTAL + 1):
        assert rates(longer)[step] == pytest.approx(rates(whole)[step], rel=1e-9, abs=1e-12)


def test_a_sequence_is_described_where_its_length_changes(batches):
    short = train(batches, [WARMUP, "cosine"], max_epochs=2)[1]
    longer = train(batches, [WARMUP, "cosine"], resume=str(short.folder))[1]
    said = (longer.folder / "console.log").read_text()
    assert "the run has 24 steps now and had 12 before: scheduler 'warmup'" in said
    assert "and then scheduler 'cosine'" in said


def test_a_part_that_became_longer_goes_on_until_its_new_end(batches, rates):
    def parts(length):
        return [{"exponential": {"factor": 0.9, "every": "1 step"}, "for": length}, "linear"]

    whole = train(batches, parts("8 steps"))[1]
    with pytest.warns(BlowtorchWarning, match="its last scheduler, 'linear', after 6 steps, and the run has only 3"):
        short = train(batches, parts("6 steps"), max_epochs=None, max_steps=3)[1]
    longer = train(batches, parts("8 steps"), resume=str(short.folder))[1]
    assert rates(longer) == rates(whole)


def test_a_sequence_with_another_number_of_parts_is_not_continued(batches):
    short = train(batches, [WARMUP, "cosine"], max_epochs=2)[1]
    parts = [WARMUP, {"exponential": {"factor": 0.9}, "for": "1 epoch"}, "cosine"]
    with pytest.raises(CheckpointError, match="the sequence has 3 parts now and had 2 then; .* run.resume_without="):
        train(batches, parts, resume=str(short.folder))


# ---------------------------------------------------------------- several optimizers


def configure_two(model):
    """Two optimizers, for the first and the last layer, with rates of their own."""
    return {
        "first": torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9),
        "last": torch.optim.Adam(model[2].parameters(), lr=0.02),
    }


def train_two_by_hand(batches, make_schedulers, stepped):
    """The weights, and the rates of each step by the names under which they are recorded."""
    model = make_net()
    optimizers = configure_two(model)
    schedulers = {name: make(optimizers[name]) for name, make in make_schedulers.items()}
    rates = {f"lr/{name}/0": {} for name in optimizers}
    for _ in range(EPOCHS):
        for batch in batches:
            for optimizer in optimizers.values():
                optimizer.zero_grad()
            loss_of(batch, model).backward()
            for name, optimizer in optimizers.items():
                found = rates[f"lr/{name}/0"]
                found[len(found) + 1] = optimizer.param_groups[0]["lr"]
                optimizer.step()
            for name, scheduler in schedulers.items():
                if stepped[name] == "step":
                    scheduler.step()
        for name, scheduler in schedulers.items():
            if stepped[name] == "epoch":
                scheduler.step()
    return model.state_dict(), rates


TWO = {
    "the same for both": ("cosine", dict.fromkeys(("first", "last"), CASES["cosine"])),
    "one each": ({"first": "cosine", "last": {"linear": {"floor": 0.1}}}, {
        "first": CASES["cosine"], "last": CASES["linear with a floor"],
    }),
    "by step and by epoch": ({"first": CASES["exponential"][0], "last": CASES["step by steps"][0]}, {
        "first": CASES["exponential"], "last": CASES["step by steps"],
    }),
    "one alone": ({"last": "cosine"}, {"last": CASES["cosine"]}),
    "one and none": ({"first": None, "last": {"cosine": None}}, {"last": CASES["cosine"]}),
    "one of several parts": ({"first": CASES["warmup, then by epochs"][0], "last": Halving(5)}, {
        "first": CASES["warmup, then by epochs"], "last": CASES["step by steps"],
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", TWO)
def test_several_optimizers_have_the_weights_and_rates_of_torch_by_hand(name, batches, rates):
    scheduler, cases = TWO[name]
    make_schedulers, stepped = (
        {each: case[1] for each, case in cases.items()},
        {k: case[2] for k, case in cases.items()},
    )
    expected_weights, expected_rates = train_two_by_hand(batches, make_schedulers, stepped)
    straight, result = train(batches, scheduler, configure=configure_two)
    continued, other = train_with_a_crash(batches, scheduler, configure=configure_two, crash=15)
    for optimizer, expected in expected_rates.items():
        assert rates(result, optimizer) == rates(other, optimizer) == expected
    assert are_equal(straight, expected_weights)
    assert are_equal(continued, expected_weights)


@pytest.mark.parametrize("is_list", [False, True], ids=["by name", "as a list"])
def test_bare_schedulers_of_several_optimizers_are_stepped_as_by_hand(is_list, batches, rates):
    """The first by epoch, as a bare one is, the second by step, as it says."""

    def configure(model):
        optimizers = configure_two(model)
        bare = CosineAnnealingLR(optimizers["first"], EPOCHS)
        said = Schedule(OneCycleLR(optimizers["last"], 0.02, total_steps=TOTAL), every="1 steps")
        return optimizers, [bare, said] if is_list else {"first": bare, "last": said}

    make_schedulers = {"first": by(CosineAnnealingLR, EPOCHS), "last": by(OneCycleLR, 0.02, total_steps=TOTAL)}
    stepped = {"first": "epoch", "last": "step"}
    expected_weights, expected_rates = train_two_by_hand(batches, make_schedulers, stepped)
    straight, result = train(batches, configure=configure)
    continued, other = train_with_a_crash(batches, configure=configure, crash=15)
    for optimizer, expected in expected_rates.items():
        assert rates(result, optimizer) == rates(other, optimizer) == expected
    assert are_equal(straight, expected_weights)
    assert are_equal(continued, expected_weights)


def test_two_schedulers_of_one_optimizer_are_both_stepped_and_both_continued(batches, rates):
    def configure(model):
        optimizer = make_optimizer(model)
        return optimizer, [Schedule(ExponentialLR(optimizer, 0.95), every="1 steps"), MultiStepLR(optimizer, [2])]

    straight, result = train(batches, configure=configure)
    continued, other = train_with_a_crash(batches, configure=configure, crash=15)
    model = make_net()
    optimizer = make_optimizer(model)
    by_step, by_epoch = ExponentialLR(optimizer, 0.95), MultiStepLR(optimizer, [2])
    expected = []
    for _ in range(EPOCHS):
        for batch in batches:
            optimizer.zero_grad()
            loss_of(batch, model).backward()
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            by_step.step()
        by_epoch.step()
    assert list(rates(result).values()) == list(rates(other).values()) == expected
    assert are_equal(straight, model.state_dict())
    assert are_equal(continued, model.state_dict())


def test_a_step_that_drives_its_optimizers_has_a_schedule_for_each(batches, rates):
    scheduler = {
        "first": {"exponential": {"factor": 0.5, "every": "12 steps"}},
        "last": {"step": {"every": "1 epoch", "factor": 0.5}},
    }

    def run(**options):
        run = Run(command_line=["train.py"], random_seed=0)

        @run.train_step
        def step(batch, model, optimizers, backward):
            for optimizer in optimizers.values():
                optimizer.zero_grad()
                loss = loss_of(batch, model)
                backward(loss)
                optimizer.step()
            return {"loss": loss.detach()}

        run.configure_optimizers(configure_two)
        model = make_net()
        result = run(model, batches, scheduler=scheduler, **options, **QUIET)
        return model.state_dict(), result

    straight, result = run(max_epochs=EPOCHS)
    assert list(rates(result, "lr/last/0").values()) == [0.02 * 0.5 ** (step // PER_EPOCH) for step in range(TOTAL)]
    assert list(rates(result, "lr/first/0").values()) == [0.1] * 12 + [0.05] * 12
    _, short = run(max_epochs=2)
    continued, _ = run(max_epochs=EPOCHS, resume=str(short.folder))
    assert are_equal(continued, straight)


# ---------------------------------------------------------------- refusals that need the optimizers


def test_an_optimizer_that_there_is_not_is_named_with_the_nearest(batches):
    said = r"no optimizer is called 'frist'. Did you mean 'first'\? configure_optimizers returns 'first', 'last'"
    with pytest.raises(OptionError, match=said):
        train(batches, {"frist": "cosine"}, configure=configure_two)


def test_an_optimizer_that_is_to_have_none_must_be_there_too(batches):
    with pytest.raises(OptionError, match="no optimizer is called 'frist'"):
        train(batches, {"frist": None, "last": "cosine"}, configure=configure_two)


def test_one_optimizer_alone_is_called_optimizer(batches, rates):
    assert rates(train(batches, {"optimizer": "cosine"})[1]) == rates(train(batches, "cosine")[1])


def test_schedulers_are_those_of_the_script_or_those_of_the_option(batches):
    def configure(model):
        optimizer = make_optimizer(model)
        return optimizer, StepLR(optimizer, 1)

    with pytest.raises(ScriptError, match="the option scheduler names another; keep one of them"):
        train(batches, {"optimizer": "cosine"}, configure=configure)
