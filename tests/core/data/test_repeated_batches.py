"""`overfit_batches`: the batches of the first epoch come again in each, whatever the loader would give."""

import itertools
import random

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from blowtorch.data.batches import Batches
from tests.core.small_runs import QUIET


class Noisy(Dataset[torch.Tensor]):
    """Rows with noise from the streams of the process that loads them."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return torch.tensor([float(index), random.random()]) + torch.rand(2)


class NoisyStream(IterableDataset[torch.Tensor]):
    def __iter__(self):
        return (Noisy()[index] for index in random.sample(range(16), 16))


class Shuffling(Sampler[int]):
    """Shuffles a list of its own in place, so that each epoch depends on those before."""

    def __init__(self):
        self.order = list(range(16))

    def __iter__(self):
        random.shuffle(self.order)
        return iter(list(self.order))

    def __len__(self):
        return 16


class ShufflingWithState(Shuffling):
    def state_dict(self):
        return {"order": list(self.order)}

    def load_state_dict(self, state):
        self.order = list(state["order"])


class Endless:
    def __iter__(self):
        return (torch.rand(4, 2) for _ in itertools.count())


LOADERS = {
    "noise": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "noise in workers": lambda: DataLoader(Noisy(), 4, shuffle=True, num_workers=1),
    "a stream": lambda: DataLoader(NoisyStream(), 4),
    "a sampler that remembers": lambda: DataLoader(Noisy(), 4, sampler=Shuffling()),
    "a sampler with a state": lambda: DataLoader(Noisy(), 4, sampler=ShufflingWithState()),
    "an endless iterable": Endless,
    "a generator": lambda: (torch.rand(4, 2) for _ in range(5)),
    "a list": lambda: [torch.ones(4, 2) * number for number in range(5)],
}
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


def make(kind):
    return Batches(LOADERS[kind](), 7, torch.device("cpu"), limit=3, is_repeated=True)


@pytest.mark.parametrize("kind", LOADERS)
def test_each_epoch_has_the_batches_of_the_first(kind):
    batches = make(kind)
    assert not batches.has_state
    first = [batch.clone() for batch in batches.iterate(1)]
    assert len(first) == 3
    for epoch, position in ((2, 0), (3, 1), (4, 3), (5, 0)):
        torch.rand(3), random.random()  # training draws from the streams meanwhile
        again = list(batches.iterate(epoch, position))
        torch.testing.assert_close(again, first[position:], rtol=0, atol=0)
        for batch in again:
            batch.zero_()  # a step may change its batch in place
    batches.close()


@pytest.mark.parametrize("kind", [kind for kind in LOADERS if kind != "a generator"])
def test_a_run_that_goes_on_overfits_to_the_same_batches(kind, make_run):
    def train(**options):
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        run = make_run(validates=False)
        run.train_step(lambda batch, model: model(batch).square().mean())
        result = run(model, LOADERS[kind](), max_epochs=4, overfit_batches=2, **QUIET, **options)
        return [tensor.clone() for tensor in model.parameters()], result

    whole, _ = train(run_name="whole")
    _, stopped = train(run_name="stopped", max_steps=3)
    continued, _ = train(resume=str(stopped.folder))
    torch.testing.assert_close(continued, whole, rtol=0, atol=0)
