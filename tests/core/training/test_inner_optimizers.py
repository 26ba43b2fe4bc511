"""Optimizers inside of others, such as that of SAM: their state is kept, or it is named as not kept."""

import warnings

import pytest
import torch
from torch import nn

from blowtorch import BlowtorchWarning, Run
from tests.core.small_runs import QUIET

BATCHES = [torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


class Sharp(torch.optim.Optimizer):
    """Steps with another optimizer, as SAM does; torch's own `state_dict` knows nothing of that."""

    def __init__(self, parameters):
        super().__init__(parameters, {})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1, momentum=0.9)
        self.param_groups = self.base.param_groups

    def step(self, closure=None):
        return self.base.step()


class Telling(Sharp):
    """The same, with a `state_dict` that holds all of it."""

    def state_dict(self):
        return {"base": self.base.state_dict()}

    def load_state_dict(self, state):
        self.base.load_state_dict(state["base"])


class Plain(Sharp):
    """The same with an optimizer that remembers nothing."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.base.param_groups[0]["momentum"] = 0


def train(kind, is_kept=False, **options):
    torch.manual_seed(0)
    model, run = nn.Linear(4, 4), Run(random_seed=0, command_line=[])
    run.train_step(lambda batch, model: model(batch).square().mean())

    @run.configure_optimizers
    def configure_optimizers(model):
        optimizer = kind(model.parameters())
        if is_kept:
            run.keep_state("base", optimizer.base)
        return optimizer

    return model, run(model, BATCHES, max_epochs=3, **QUIET, **options)


def test_a_state_that_is_left_out_is_named_with_what_keeps_it():
    with pytest.warns(BlowtorchWarning, match=r"'optimizer', a Sharp, leaves out .* 'base'.*run\.keep_state\('base', "):
        train(Sharp)


@pytest.mark.parametrize(("kind", "is_kept"), [(Sharp, True), (Telling, False), (Plain, False)])
def test_a_state_that_is_kept_goes_on_to_the_bit(kind, is_kept):
    with warnings.catch_warnings():
        warnings.simplefilter("error", BlowtorchWarning)
        whole, _ = train(kind, is_kept, run_name="whole")
        _, stopped = train(kind, is_kept, run_name="stopped", max_steps=5)
        continued, _ = train(kind, is_kept, resume=str(stopped.folder))
    assert all(map(torch.equal, whole.parameters(), continued.parameters()))
