"""Whatever of a run is spoiled at whatever moment, no checkpoint that it publishes shows it, and the run can go on.

`BLOWTORCH_SOAK_POISONS` says how often in all; `tox run -e soak` does it 200 times.
"""

import contextlib
import math
import os
import random

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from blowtorch import CheckpointError, NotFiniteError, Run, find_runs, hookimpl
from blowtorch.builtin.local import LocalBackend

POISONS = int(os.environ.get("BLOWTORCH_SOAK_POISONS", "20"))
SEED = int(os.environ.get("BLOWTORCH_SOAK_SEED", "1"))
MOMENTS = ("run_start", "epoch_start", "train_step_end", "validation_end", "epoch_end", "checkpoint_saved")
FINE = {"mask/2": -math.inf, "mask/4": -math.inf, "fixed/0": -math.inf}  # what was not finite before training


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
        self.register_buffer("mask", torch.zeros(6).index_fill(0, torch.tensor([2, 4]), -math.inf))
        self.fixed = nn.Parameter(torch.tensor([-math.inf, 0.0, 1.0]), requires_grad=False)

    def forward(self, x):
        hidden = self.net[1](self.net[0](x))
        return self.net[2](hidden * (hidden + self.mask).softmax(1)) + self.fixed.softmax(0)[1]


def not_finite(state, place=""):
    """Every number of a state that is not finite, by its place."""
    if isinstance(state, torch.Tensor):
        state = dict(enumerate(state.flatten().tolist()))
    if isinstance(state, dict | list):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {inner: value for key, item in items for inner, value in not_finite(item, f"{place}/{key}").items()}
    return {place.strip("/"): state} if isinstance(state, float) and not math.isfinite(state) else {}


class Watching(LocalBackend):
    """Looks at each checkpoint that is published, also at those that are deleted later."""

    def __init__(self):
        self.spoiled = []

    @hookimpl
    def checkpoint_publish(self, name, directory):
        model, training = (torch.load(directory / file, weights_only=True) for file in ("model.pt", "training.pt"))
        parts = training["parts"]
        looks = [
            not_finite(model),
            not_finite(training.get("weights", model)),
            not_finite(parts["optimizers/optimizer"]),
        ]
        looks.append(
            {place.removeprefix("module."): value for place, value in not_finite(parts["kept/average"]).items()}
        )
        if looks != [FINE, FINE, {}, FINE]:
            self.spoiled.append((name, looks))
        super().checkpoint_publish(name, directory)


class Poison:
    """Spoils one number of the run, once."""

    def __init__(self, dice):
        self.step, self.moment = dice.randint(0, 24), dice.choice([*MOMENTS, "train_step", "validate_step"])
        self.dice = dice
        self.target = ""

    def reach(self, moment, state, average):
        if moment == self.moment and state.step >= self.step and not self.target:
            states = [state.model.state_dict(), average.state_dict(), state.averaged or {}]
            states += state.optimizers["optimizer"].state.values()
            tensors = [item for mapping in states for item in mapping.items() if item[1].is_floating_point()]
            self.target, tensor = self.dice.choice(tensors)
            place, value = self.dice.randrange(tensor.numel()), self.dice.choice([math.nan, math.inf, -math.inf])
            with torch.no_grad():
                tensor.view(-1)[place] = value


def train(poison, **options):
    torch.manual_seed(0)
    batches = [(torch.randn(8, 6), torch.randn(8, 1)) for _ in range(6)]
    net, run = Net(), Run(random_seed=0, command_line=[])
    average = AveragedModel(net, avg_fn=lambda mean, own, count: torch.where(own.isinf(), own, mean + (own - mean) / 2))
    run.keep_state("average", average)

    @run.configure_optimizers
    def configure_optimizers(model):
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=0.01)

    def reach(moment, state):
        if poison is not None:
            poison.reach(moment, state, average)

    @run.train_step
    def step(batch, model, state):
        reach("train_step", state)
        average.update_parameters(model)
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    @run.validate_step
    def validate(batch, model, state):
        reach("validate_step", state)
        return {"loss": (model(batch[0]) > batch[1]).float().mean()}  # which is a number whatever the model is

    for moment in MOMENTS:
        run.on(moment)(lambda state, moment=moment: reach(moment, state))
    run(net, batches, batches, max_epochs=4, progress=False, **options)
    return net


@pytest.mark.filterwarnings("ignore::blowtorch.BlowtorchWarning", "ignore:This overload of addc:UserWarning")
@pytest.mark.parametrize("number", range(POISONS))
def test_whatever_is_spoiled_every_published_checkpoint_is_as_clean_as_the_one_before(tmp_path, number):
    dice = random.Random(1000 * SEED + number)
    options = {
        "checkpoint_every": dice.choice(["1 epoch", "1 steps", "2 steps", "5 steps", None]),
        "checkpoint_async": dice.choice([True, False]),
        "keep_last": dice.choice([1, 2]),
        "keep_best": dice.choice([0, 1]),
        "log_every": dice.choice(["1 steps", "4 steps", "50 steps"]),
        "on_nan": dice.choice(["stop", "warn", "skip", "ignore"]),
        "callbacks": dice.choice([[], ["ema"], [{"swa": {"start": "6 steps", "every": "2 steps"}}]]),
        "checkpoint_backend": Watching(),
        "save_path": tmp_path,
    }
    poison = Poison(dice)
    with contextlib.suppress(NotFiniteError, CheckpointError):  # by the option `on_nan`
        train(poison, **options)
    (view,) = find_runs(tmp_path)
    assert view.status in ("failed", "finished")
    assert options["checkpoint_backend"].spoiled == []
    for checkpoint in view.checkpoints:
        assert not_finite(torch.load(checkpoint.path / "model.pt", weights_only=True)) == FINE
    if poison.moment != "run_start":  # else there is nothing good to go on from
        mended = train(None, **{**options, "resume": str(view.path)})
        assert options["checkpoint_backend"].spoiled == []
        assert not_finite(dict(mended.state_dict())) == FINE, f"{poison.target} at {poison.moment}"
