"""Streams of other libraries whose state does not hold their whole position: drawn forward, and so exact."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from blowtorch.errors import BlowtorchWarning
from tests.core.data.loaders import batches_of


class Numbers(IterableDataset):
    """Gives the numbers below 40, and has no state."""

    def __iter__(self):
        for number in range(40):
            yield torch.tensor([number])


class StatefulNumbers(Numbers):
    """The same, and knows where it stands."""

    def __init__(self):
        self.place = 0

    def __iter__(self):
        while self.place < 40:
            self.place += 1
            yield torch.tensor([self.place - 1])
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def torchdata(dataset, **settings):
    module = pytest.importorskip("torchdata.stateful_dataloader")
    return module.StatefulDataLoader(dataset, batch_size=4, **settings)


def shuffled(**settings):
    datasets = pytest.importorskip("datasets")
    numbers = datasets.Dataset.from_dict({"x": [float(number) for number in range(40)]})
    return numbers.to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=10, **settings).with_format("torch")


LOADERS = {
    "torchdata, without a state": lambda: torchdata(Numbers()),
    "torchdata, without a state, a worker": lambda: torchdata(Numbers(), num_workers=1),
    "datasets, shuffled": lambda: DataLoader(shuffled(), 4),
    "datasets, shuffled and mapped": lambda: DataLoader(shuffled().map(lambda row: {"x": float(row["x"]) + 1}), 4),
    "datasets, shuffled, in torchdata": lambda: torchdata(shuffled()),
    "datasets, without a loader": shuffled,
}


def values(batch):
    return batch["x"].flatten().tolist() if isinstance(batch, dict) else batch.flatten().tolist()


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("stops", [(3,), (3, 4), (2, 5, 6)])
def test_a_stream_stopped_once_and_again_gives_every_batch_once(kind, stops):
    batches = batches_of(LOADERS[kind]())
    straight = [values(batch) for batch in batches.iterate(2)]
    batches.close()
    found, state = [], None
    for first, stop in zip((0, *stops), (*stops, None), strict=True):
        batches = batches_of(LOADERS[kind]())
        if state is not None:
            batches.load_state_dict(state)
        iterator = iter(())
        if first:
            with pytest.warns(BlowtorchWarning, match=f"{first} batches are drawn again"):
                iterator = batches.iterate(2, first)
        else:
            iterator = batches.iterate(2)
        while stop is None or len(found) < stop:
            batch = next(iterator, None)
            if batch is None:
                break
            found.append(values(batch))
        state = copy.deepcopy(batches.state_dict())
        batches.close()
    assert found == straight


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_a_state_that_holds_the_position_is_still_gone_on_from_without_drawing_again():
    for make in (lambda: torchdata(StatefulNumbers()), lambda: DataLoader(StatefulNumbers(), 4)):
        batches = batches_of(make())
        iterator = batches.iterate(1)
        before = [values(next(iterator)) for _ in range(3)]
        state = copy.deepcopy(batches.state_dict())
        again = batches_of(make())
        again.load_state_dict(state)
        assert before + [values(batch) for batch in again.iterate(1, 3)] == [
            list(range(first, first + 4)) for first in range(0, 40, 4)
        ]
