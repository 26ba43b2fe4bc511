"""Loaders that are drawn again after a restart are compared with what they gave before it."""

import random
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from blowtorch import BlowtorchWarning
from blowtorch.data.batches import Batches

AGAIN = "ignore:the loader for 'train' has no position of its own:blowtorch.errors.BlowtorchWarning"
pytestmark = [
    pytest.mark.filterwarnings(AGAIN),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),
]


class Numbers(IterableDataset):
    """Numbers in the order that `shuffle` makes of them."""

    def __init__(self, shuffle=lambda numbers: None):
        self.shuffle = shuffle

    def __iter__(self):
        numbers = list(range(40))
        self.shuffle(numbers)
        for number in numbers:
            yield torch.tensor(number)


def unseeded(numbers):
    random.Random().shuffle(numbers)


def with_another_end(numbers):
    tail = numbers[20:]
    random.Random().shuffle(tail)
    numbers[20:] = tail


class Batched:
    """An iterable of batches that is no loader."""

    def __init__(self, shuffle=lambda numbers: None):
        self.numbers = Numbers(shuffle)

    def __iter__(self):
        batch = []
        for number in self.numbers:
            batch.append(number)
            if len(batch) == 4:
                yield torch.stack(batch)
                batch = []


LOADERS: dict[str, Any] = {
    "no loader": Batched,
    "stream": lambda shuffle: DataLoader(Numbers(shuffle), 4),
    "stream with workers": lambda shuffle: DataLoader(Numbers(shuffle), 4, num_workers=1),
}


def batches_of(loader):
    return Batches(loader, 1, torch.device("cpu"))


def go_on(make, shuffle, stops, epochs=(2, 2)):
    """Stop after so many batches, go on in another process's place, and return the warnings of the second one."""
    first, second = batches_of(LOADERS[make](shuffle)), batches_of(LOADERS[make](shuffle))
    iterator = first.iterate(epochs[0])
    for _ in range(stops):
        next(iterator)
    second.load_state_dict(first.state_dict())
    first.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(list(second.iterate(epochs[1], stops if epochs[0] == epochs[1] else 0))) == (
            10 - stops if epochs[0] == epochs[1] else 10
        )
    second.close()
    return [str(warning.message) for warning in caught if "gives other batches" in str(warning.message)]


@pytest.mark.parametrize("make", LOADERS)
@pytest.mark.parametrize("stops", [1, 4, 7])
def test_another_order_is_named_once(make, stops):
    (warning,) = go_on(make, unseeded, stops)
    assert (
        "the loader for 'train' gives other batches than before the restart: batch 1 of this epoch differs" in warning
    )


@pytest.mark.parametrize("make", LOADERS)
def test_a_stream_that_becomes_another_one_is_named(make):
    assert "batch 9 of this epoch differs" in go_on(make, with_another_end, 9)[0]
    assert go_on(make, with_another_end, 4) == []


@pytest.mark.parametrize("make", LOADERS)
@pytest.mark.parametrize("stops", [0, 1, 2, 3, 8, 10])
@pytest.mark.parametrize("shuffle", [lambda numbers: None, random.shuffle, lambda numbers: numbers.reverse()])
def test_the_same_batches_are_not_spoken_of(make, stops, shuffle):
    assert go_on(make, shuffle, stops) == []


@pytest.mark.parametrize("make", LOADERS)
def test_another_epoch_may_have_another_order(make):
    assert go_on(make, unseeded, 4, epochs=(1, 2)) == []


def test_batches_that_have_no_bytes_to_look_at_are_let_through():
    class Strange(Batched):
        def __iter__(self):
            for _ in range(10):
                yield [torch.empty(2, device="meta"), torch.eye(3).to_sparse(), object(), Closed(), {"text": "a"}]

    LOADERS["strange"] = Strange
    try:
        assert go_on("strange", None, 4) == []
    finally:
        del LOADERS["strange"]


class Sample:
    """Holds a number and what holds it itself; what it cannot say tells nothing."""

    def __init__(self, number):
        self.parts, self.lock, self.whole = {"number": torch.tensor(number)}, threading.Lock(), self

    @property
    def text(self):
        raise KeyError("text")


class Closed:
    """Does not let itself be looked at."""

    @property
    def __dict__(self):
        raise KeyError("closed")


class Picture:
    """Shows its numbers as those of PIL do."""

    __slots__ = ("__array_interface__", "numbers")

    def __init__(self, number):
        self.numbers = np.full((2, 2), number)
        self.__array_interface__ = self.numbers.__array_interface__


def array_of(sample):
    array = np.empty(1, dtype=object)
    array[0] = sample
    return array


def lists_of(number):
    return [[0] * number, [0] * (9 - number)]


KINDS = {
    "an object": Sample,
    "a list of objects": lambda number: [Sample(0), Sample(number)],
    "an array of objects": lambda number: array_of(Sample(number)),
    "a picture": lambda number: Picture(number),
    "a nested tensor": lambda number: torch.nested.nested_tensor(
        [torch.full((2,), number), torch.ones(3, dtype=torch.int64)], layout=torch.jagged
    ),
    "lists of the same numbers": lists_of,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_other", [True, False])
def test_objects_are_told_apart_by_what_they_hold(kind, is_other):
    class Rows:
        def __init__(self, first):
            self.first = first

        def __iter__(self):
            return (KINDS[kind](self.first + number) for number in range(5))

    first, second = batches_of(Rows(1)), batches_of(Rows(2 if is_other else 1))
    iterator = first.iterate(1)
    next(iterator)
    second.load_state_dict(first.state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(list(second.iterate(1, 1))) == 4
    assert any("gives other batches" in str(warning.message) for warning in caught) == is_other


def test_a_run_over_a_stream_that_shuffles_by_itself_says_that_it_does_not_go_on_exactly(make_run, net):
    def loader(shuffle):
        class Pairs(Batched):
            def __iter__(self):
                for numbers in super().__iter__():
                    yield numbers.float().unsqueeze(1).expand(-1, 4) / 40, numbers.float().unsqueeze(1) / 40

        return Pairs(shuffle)

    options = {"progress": False, "max_epochs": 1}
    stopped = make_run(validates=False)(net, loader(unseeded), max_steps=4, **options)
    with pytest.warns(BlowtorchWarning, match="gives other batches than before the restart"):
        make_run(validates=False)(net, loader(unseeded), resume=str(stopped.folder), **options)
    stopped = make_run(validates=False)(net, loader(lambda numbers: None), max_steps=4, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the loader for 'train' gives other batches")
        make_run(validates=False)(net, loader(lambda numbers: None), resume=str(stopped.folder), **options)


class Noisy(IterableDataset):
    """Adds noise from the streams of the process that draws it."""

    def __iter__(self):
        for number in range(40):
            yield torch.tensor(number) + torch.rand(()) + random.random()


def test_noise_from_the_streams_of_training_is_no_other_batch(make_run, net):
    def loader():
        return DataLoader(Noisy(), 4, collate_fn=lambda rows: (torch.stack(rows)[:, None].expand(-1, 4) / 40,) * 2)

    options = {"progress": False, "max_epochs": 1}
    model = torch.nn.Linear(4, 4)
    stopped = make_run(validates=False)(model, loader(), max_steps=7, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the loader for 'train' gives other batches")
        make_run(validates=False)(model, loader(), resume=str(stopped.folder), **options)
