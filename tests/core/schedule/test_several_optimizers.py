"""Schedulers of several optimizers over whole runs, and what is refused."""

import pytest
import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    MultiStepLR,
    OneCycleLR,
    StepLR,
)

from blowtorch import OptionError, Run, Schedule, ScriptError
from tests.core.schedule.torch_by_hand import (
    CASES,
    EPOCHS,
    PER_EPOCH,
    QUIET,
    TOTAL,
    Halving,
    are_equal,
    by,
    loss_of,
    make_net,
    make_optimizer,
    train,
    train_with_a_crash,
)


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
