"""Random generators of the script's own: kept in checkpoints where it says so, and named where it does not."""

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from blowtorch import BlowtorchWarning, Run, ScriptError
from tests.core.small_runs import QUIET

BATCHES = [torch.ones(4, 4) * number for number in range(4)]
DRAWS: dict[str, Any] = {
    "torch": (lambda: torch.Generator().manual_seed(3), lambda stream: torch.rand((), generator=stream)),
    "numpy": (lambda: np.random.default_rng(3), lambda stream: stream.normal()),
    "philox": (lambda: np.random.Generator(np.random.Philox(3)), lambda stream: stream.random()),
    "the old numpy": (lambda: np.random.RandomState(3), lambda stream: stream.randn()),
    "python": (lambda: random.Random(3), lambda stream: stream.gauss(0, 1)),
}


class Noisy(nn.Module):
    """Draws noise from a generator of its own."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 4))
        make, self.draw = DRAWS[kind]
        self.layers[0].stream = make()

    def forward(self, batch):
        return self.layers(batch + float(self.draw(self.layers[0].stream)))


def train(kind, is_kept=True, **options):
    model, run = Noisy(kind), Run(random_seed=0, command_line=[])
    run.train_step(lambda batch, model: model(batch).square().mean())
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.01))
    if is_kept:
        run.keep_state("noise", model.layers[0].stream)
    return model, run(model, BATCHES, max_epochs=3, **QUIET, **options)


@pytest.mark.parametrize("kind", DRAWS)
def test_a_generator_that_is_kept_goes_on_where_it_stood(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error", BlowtorchWarning)
        whole, _ = train(kind, run_name="whole")
        _, stopped = train(kind, run_name="stopped", max_steps=5)
        continued, _ = train(kind, resume=str(stopped.folder))
    assert all(map(torch.equal, whole.parameters(), continued.parameters()))


@pytest.mark.parametrize("kind", DRAWS)
def test_a_generator_in_the_model_that_is_not_kept_is_named(kind):
    with pytest.warns(BlowtorchWarning, match=r"generator in the model.*: layers\.0\.stream; run\.keep_state"):
        train(kind, is_kept=False)


@pytest.mark.parametrize("kind", DRAWS)
def test_a_dry_run_puts_a_generator_back(kind):
    model, run = Noisy(kind), Run(random_seed=0, command_line=[])
    run.train_step(lambda batch, model: model(batch).square().mean())
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.01))
    run.keep_state("noise", model.layers[0].stream)
    run(model, BATCHES, dry_run=True, **QUIET)
    make, draw = DRAWS[kind]
    assert float(draw(model.layers[0].stream)) == float(draw(make()))


def test_what_is_neither_an_object_with_a_state_nor_a_generator_is_refused():
    with pytest.raises(
        ScriptError, match="expects an object with state_dict and load_state_dict, or a random generator"
    ):
        Run(random_seed=0, command_line=[]).keep_state("noise", 3)
