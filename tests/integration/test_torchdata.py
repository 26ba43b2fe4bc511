"""Loaders of torchdata, stopped in the middle of epochs and continued."""

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from blowtorch import Run

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


class Stream(IterableDataset):
    """Samples in an order of their own, with a position."""

    def __init__(self):
        self.place = 0

    def __iter__(self):
        order = torch.randperm(48, generator=torch.Generator().manual_seed(5)).tolist()
        while self.place < 48:
            self.place += 1
            yield torch.full((4,), order[self.place - 1] / 48), torch.tensor([order[self.place - 1] / 10])
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def pairs():
    x = torch.randn(48, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x.sum(dim=1, keepdim=True))


LOADERS = {
    "iterable": lambda: StatefulDataLoader(Stream(), batch_size=8),
    "iterable with a worker": lambda: StatefulDataLoader(Stream(), batch_size=8, num_workers=1),
    "map": lambda: StatefulDataLoader(pairs(), batch_size=8, shuffle=True),
    "map with workers": lambda: StatefulDataLoader(pairs(), batch_size=8, shuffle=True, num_workers=2),
}


def train(kind, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    run = Run(random_seed=3, command_line=[])

    @run.train_step
    def step(batch, model):
        x, y = batch
        return nn.functional.mse_loss(model(x), y)

    @run.configure_optimizers
    def configure_optimizers(model):
        return torch.optim.Adam(model.parameters(), lr=0.01)

    result = run(net, LOADERS[kind](), max_epochs=3, progress=False, **options)
    return result, torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@pytest.mark.parametrize("kind", LOADERS)
def test_a_stateful_loader_goes_on_where_it_was(tmp_path, kind):
    straight, expected = train(kind, save_path=tmp_path / "straight")
    folder = {}
    for steps in (2, 4, 9, 12, None):
        result, weights = train(kind, save_path=tmp_path / "parts", max_steps=steps, **folder)
        folder = {"resume": str(result.folder)}
    assert result.step == straight.step == 18
    assert torch.equal(weights, expected)
