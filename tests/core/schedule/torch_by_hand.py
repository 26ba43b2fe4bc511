"""What the option `scheduler` says, and the same loop with torch's schedulers by hand."""

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    ConstantLR,
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

from blowtorch import Run, hookimpl

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
    "constant, then cosine": (
        [{"constant": None, "for": "1 epoch"}, "cosine"],
        one_after_the_other([6], by(ConstantLR, 1.0), by(CosineAnnealingLR, TOTAL - 6)),
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


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def loss_of(batch, model):
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


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
