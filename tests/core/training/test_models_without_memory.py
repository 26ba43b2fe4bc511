"""Models that were built on the device `meta` are given memory, and named where nothing fills it."""

import pytest
import torch
from torch import nn

from blowtorch import Run, RunFolderError, ScriptError
from blowtorch.parallel.world import World
from blowtorch.training.claim import refuse_unreached


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.device("meta"):
            self.embedding = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.register_buffer("positions", torch.arange(3), persistent=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens) + self.get_buffer("positions")[: tokens.shape[1], None])


@pytest.fixture
def make_run():
    def make(*names):
        run = Run(random_seed=1, command_line=[])

        @run.init
        def fill(model):
            if "embedding" in names:
                model.embedding.reset_parameters()
            if "positions" in names:
                model.positions.copy_(torch.arange(3))

        @run.train_step
        def train_step(batch, model):
            return nn.functional.cross_entropy(model(batch).flatten(0, 1), batch.flatten())

        @run.configure_optimizers
        def configure_optimizers(model):
            return torch.optim.SGD(model.parameters(), lr=0.1)

        return run

    return make


def train(run, model, folder):
    return run(model, [torch.tensor([[1, 2, 3], [4, 5, 6]])], save_path=str(folder), progress=False)


def test_tied_parameters_stay_one(make_run, tmp_path):
    model = Tied()
    assert train(make_run("embedding", "positions"), model, tmp_path).status == "finished"
    assert model.head.weight is model.embedding.weight and model.head.weight.isfinite().all()


@pytest.mark.parametrize(("filled", "name"), [("positions", "embedding.weight"), ("embedding", "positions")])
def test_what_nothing_has_filled_is_named(make_run, tmp_path, filled, name):
    with pytest.raises(ScriptError, match=rf"nothing has filled \'{name}\'; do it in a function with @run\.init"):
        train(make_run(filled), Tied(), tmp_path)


class OneIsElsewhere(World):
    """Two processes, the second of which does not see what the first does."""

    def gather(self, value):
        return [value, False]


def test_a_folder_that_one_process_does_not_reach_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"process 1 does not reach .* set run\.save_path to a folder that all"):
        refuse_unreached(OneIsElsewhere(), tmp_path)
    refuse_unreached(World(), tmp_path)
