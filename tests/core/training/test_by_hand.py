"""Each feature against the same thing written by hand in plain torch: after 50 steps and more, not one bit differs.

`PAIRS` is the table: what a pair is called, the options of the run, and the loop by hand. A loop is given a model and
the batches, and trains the model in place, with random streams that stand where those of the run stand.
"""

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from blowtorch import Run

EPOCHS = 5
SEED = 123
EAGER: Any = {"backend": "aot_eager"}  # needs no compiler on the machine


def make_batches(sizes, spoiled=None):
    """Of these sizes; `spoiled` says at which places there is what in the place of a number."""
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(n, 4, generator=generator), torch.randn(n, 1, generator=generator)) for n in sizes]
    for place, value in (spoiled or {}).items():
        batches[place][1][0] = value
    return batches


def make_net():
    """With running statistics, and randomness of its own."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))


def make_adversaries():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    discriminator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
    return nn.ModuleDict({"generator": generator, "discriminator": discriminator})


def loss_of(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def judge(logits, is_real):
    return nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(is_real)))


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def two_optimizers(model):
    return {
        "first": torch.optim.SGD(model[0].parameters(), lr=0.05, momentum=0.9),
        "rest": torch.optim.Adam(model[1:].parameters(), lr=0.01),
    }


def adversaries(model):
    return {name: torch.optim.Adam(model[name].parameters(), lr=0.01) for name in ("generator", "discriminator")}


# ---------------------------------------------------------------- loops by hand


def plain(configure=adam, prepare=lambda model: None, compile=lambda model: model):
    """The plainest loop; `prepare` is what stands between backward and step."""

    def loop(model, batches):
        optimizers = configure(model)
        optimizers = list(optimizers.values()) if isinstance(optimizers, dict) else [optimizers]
        compiled = compile(model)
        for _ in range(EPOCHS):
            for batch in batches:
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss_of(compiled, batch).backward()
                prepare(model)
                for optimizer in optimizers:
                    optimizer.step()

    return loop


def clip_norm(model):
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def clip_value(model):
    nn.utils.clip_grad_value_(model.parameters(), 0.05)


def clip_both(model):
    clip_value(model)
    clip_norm(model)


def accumulated(every, precision=None, prepare=lambda model: None):
    """Gradients of so many batches for one step; those that are left over at the end of an epoch make one too."""

    def loop(model, batches):
        optimizer = adam(model)
        for _ in range(EPOCHS):
            for group in in_groups(batches, every):
                optimizer.zero_grad()
                for batch in group:
                    with precision or contextlib.nullcontext():
                        loss = loss_of(model, batch)
                    (loss / len(group)).backward()
                prepare(model)
                optimizer.step()

    return loop


def in_groups(batches, every):
    return [batches[start : start + every] for start in range(0, len(batches), every)]


def scaled(prepare=None, every=1):
    """As torch's own examples of automatic mixed precision do it."""

    def loop(model, batches):
        optimizer, scaler = adam(model), torch.amp.GradScaler("cpu")
        for _ in range(EPOCHS):
            for group in in_groups(batches, every):
                optimizer.zero_grad()
                for batch in group:
                    with torch.autocast("cpu", dtype=torch.float16):
                        loss = loss_of(model, batch)
                    scaler.scale(loss / len(group)).backward()
                if prepare is not None:
                    scaler.unscale_(optimizer)
                    prepare(model)
                scaler.step(optimizer)
                scaler.update()

    return loop


def leaving_out(prepare=lambda model: None):
    """Steps whose gradient is not finite are not made, and running statistics do not remember their batches."""

    def loop(model, batches):
        optimizer = adam(model)
        for _ in range(EPOCHS):
            for batch in batches:
                before = {name: buffer.clone() for name, buffer in model.named_buffers()}
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                if all(parameter.grad.isfinite().all() for parameter in model.parameters()):
                    prepare(model)
                    optimizer.step()
                else:
                    model.load_state_dict(before, strict=False)

    return loop


def adversarial(dtype=None, prepare=None):
    """A generator and a discriminator that take turns, each under a context of its own."""

    def computing():
        return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)

    def loop(model, batches):
        optimizers, scaler = adversaries(model), torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)

        def finish(name):
            if prepare is not None:
                scaler.unscale_(optimizers[name])
                prepare(model[name])
            scaler.step(optimizers[name])

        for _ in range(EPOCHS):
            for real, _ in batches:
                with computing():
                    fake = model["generator"](torch.randn(len(real), 3))
                    optimizers["discriminator"].zero_grad()
                    loss = judge(model["discriminator"](real), True)
                    loss = loss + judge(model["discriminator"](fake.detach()), False)
                scaler.scale(loss).backward()
                finish("discriminator")
                with computing():
                    optimizers["generator"].zero_grad()
                    loss = judge(model["discriminator"](fake), True)
                scaler.scale(loss).backward()
                finish("generator")
                scaler.update()

    return loop


def on_the_first(number, loop):
    return lambda model, batches: loop(model, batches[:number])


# ---------------------------------------------------------------- the same with blowtorch


def driven_by_the_loop(configure=adam):
    def register(run):
        run.train_step(lambda batch, model: loss_of(model, batch))
        run.configure_optimizers(configure)

    return register


def driving_itself(run):
    @run.train_step
    def step(batch, model, optimizers, backward):
        real, _ = batch
        fake = model["generator"](torch.randn(len(real), 3))
        optimizers["discriminator"].zero_grad()
        discriminator = judge(model["discriminator"](real), True) + judge(model["discriminator"](fake.detach()), False)
        backward(discriminator)
        optimizers["discriminator"].step()
        optimizers["generator"].zero_grad()
        generator = judge(model["discriminator"](fake), True)
        backward(generator)
        optimizers["generator"].step()
        return {"discriminator": discriminator, "generator": generator}

    run.configure_optimizers(adversaries)


def driving_an_epoch(run):
    @run.train_epoch
    def epoch(data_loader, model, optimizers, backward):
        for batch in data_loader:
            optimizers["optimizer"].zero_grad()
            backward(loss_of(model, batch))
            optimizers["optimizer"].step()

    run.configure_optimizers(adam)


def validating(run):
    """Beside what is trained: in the middle of epochs too, with randomness of its own."""
    driven_by_the_loop()(run)
    loader = make_batches([32, 32])

    @run.validate_step(loader, every="7 steps", at_start=True)
    def validate(batch, model):
        return {"loss": loss_of(model, batch), "drawn": torch.rand(())}


class Mean:
    """A metric object of the plainest kind."""

    def __init__(self):
        self.reset()

    def update(self, value):
        self.total += value.detach()
        self.number += 1

    def compute(self):
        return self.total / self.number

    def reset(self):
        self.total, self.number = torch.zeros(()), 0

    def state_dict(self):
        return {"total": self.total, "number": self.number}

    def load_state_dict(self, state):
        self.total, self.number = state["total"], state["number"]


def measuring(run):
    """With a metric object that the validation uses too, and values that are summed up in other ways."""
    metric = Mean()

    @run.train_step
    def step(batch, model, log):
        loss = loss_of(model, batch)
        metric.update(loss)
        for reduce in ("sum", "max", "min", "last"):
            log({reduce: loss}, reduce=reduce)
        return {"loss": loss, "metric": metric}

    run.validate_step(make_batches([32]), every="7 steps")(step)
    run.configure_optimizers(adam)


# ---------------------------------------------------------------- the table


@dataclass
class Pair:
    """What both sides have in common, and each side."""

    name: str
    options: dict
    by_hand: Callable
    register: Callable = field(default_factory=driven_by_the_loop)
    sizes: list = field(default_factory=lambda: [8] * 12)
    spoiled: dict = field(default_factory=dict)
    make: Callable = make_net


NOT_FINITE = {3: math.nan, 7: math.inf}
TOO_LARGE = {3: 3e4, 4: 3e4}  # for the gradients of fp16
BF16 = torch.autocast("cpu", dtype=torch.bfloat16)
LARGE = [8] * 36  # twelve groups of three
PARTIAL = [8] * 35  # two are left over
PAIRS = [
    Pair("plain", {}, plain()),
    Pair("clip_grad_norm", {"clip_grad_norm": 0.1}, plain(prepare=clip_norm)),
    Pair("clip_grad_value", {"clip_grad_value": 0.05}, plain(prepare=clip_value)),
    Pair("both clipped", {"clip_grad_norm": 0.1, "clip_grad_value": 0.05}, plain(prepare=clip_both)),
    Pair("accumulate", {"accumulate": 3}, accumulated(3), sizes=LARGE),
    Pair("accumulate, a last group in part", {"accumulate": 3}, accumulated(3), sizes=PARTIAL),
    Pair(
        "accumulate, clipped",
        {"accumulate": 3, "clip_grad_norm": 0.1},
        accumulated(3, prepare=clip_norm),
        sizes=PARTIAL,
    ),
    Pair("bf16", {"precision": "bf16"}, accumulated(1, BF16)),
    Pair("bf16, accumulate", {"precision": "bf16", "accumulate": 3}, accumulated(3, BF16), sizes=PARTIAL),
    Pair("fp16", {"precision": "fp16"}, scaled()),
    Pair("fp16, overflowing", {"precision": "fp16"}, scaled(), spoiled=TOO_LARGE),
    Pair(
        "fp16, clipped",
        {"precision": "fp16", "clip_grad_norm": 0.1, "clip_grad_value": 0.05},
        scaled(clip_both),
        spoiled=TOO_LARGE,
    ),
    Pair("fp16, accumulate", {"precision": "fp16", "accumulate": 3}, scaled(every=3), sizes=PARTIAL),
    Pair("compile", {"compile": EAGER}, plain(compile=lambda model: torch.compile(model, **EAGER))),
    Pair("two optimizers", {}, plain(two_optimizers), register=driven_by_the_loop(two_optimizers)),
    Pair("a step that drives itself", {}, adversarial(), register=driving_itself, make=make_adversaries),
    Pair(
        "a step that drives itself, bf16",
        {"precision": "bf16"},
        adversarial(torch.bfloat16),
        register=driving_itself,
        make=make_adversaries,
    ),
    Pair(
        "a step that drives itself, fp16, clipped",
        {"precision": "fp16", "clip_grad_norm": 0.1},
        adversarial(torch.float16, clip_norm),
        register=driving_itself,
        make=make_adversaries,
    ),
    Pair("an epoch that drives itself, fp16", {"precision": "fp16"}, scaled(), register=driving_an_epoch),
    Pair("on_nan='skip'", {"on_nan": "skip"}, leaving_out(), spoiled=NOT_FINITE),
    Pair(
        "on_nan='skip', clipped",
        {"on_nan": "skip", "clip_grad_norm": 0.1, "clip_grad_value": 0.05},
        leaving_out(clip_both),
        spoiled=NOT_FINITE,
    ),
    Pair("detect_anomalies", {"detect_anomalies": True}, plain()),
    Pair("validations", {"sanity_batches": 1}, plain(), register=validating),
    Pair("inference_mode", {"inference_mode": True}, plain(), register=validating),
    Pair("metric objects", {"log_every": "3 steps"}, plain(), register=measuring),
    Pair("limit_train_batches", {"limit_train_batches": 11}, on_the_first(11, plain())),
    Pair("overfit_batches", {"overfit_batches": 10}, on_the_first(10, plain())),
]


def train(pair, batches):
    """The model that blowtorch trains, and how often it was stepped."""
    model = pair.make()
    run = Run(random_seed=SEED, command_line=["train.py"])
    pair.register(run)
    options = {"max_epochs": EPOCHS, "progress": False, "checkpoint_every": None} | pair.options
    return model, run(model, batches, **options)


@pytest.mark.filterwarnings("ignore:step .* is left out:blowtorch.errors.BlowtorchWarning")
@pytest.mark.parametrize("pair", PAIRS, ids=[pair.name for pair in PAIRS])
def test_not_one_bit_differs_from_the_same_by_hand(pair):
    batches = make_batches(pair.sizes, pair.spoiled)
    model, result = train(pair, copy.deepcopy(batches))
    expected = pair.make()
    torch.manual_seed(SEED)
    pair.by_hand(expected, batches)
    assert result.step >= 50
    untouched = pair.make().state_dict()
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
        assert not torch.equal(untouched[name], value), name
