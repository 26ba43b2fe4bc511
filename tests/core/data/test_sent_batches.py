"""Batches on their way to a GPU: what is trained on has arrived, and the host waits for nothing."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from blowtorch.data.batches import Batches
from blowtorch.data.sources import choose_source
from tests.core.data.loaders import CPU, Plain

GPU = torch.device("cuda", 0)
OTHER = torch.device("cuda", 1)
NUM_BATCHES = 6


def batch(number: int) -> Tensor:
    return torch.full((3, 2), float(number))


class FillsOneBuffer(Sequence):
    """A sequence that fills the same memory with each of its batches."""

    def __init__(self, is_pinned: bool) -> None:
        self._buffer = torch.empty(3, 2, pin_memory=is_pinned)

    def __len__(self) -> int:
        return NUM_BATCHES

    def __getitem__(self, index: int) -> Tensor:
        if index >= NUM_BATCHES:
            raise IndexError
        return self._buffer.fill_(index)


class Unsure(Dataset):
    """A dataset of which nobody knows what it draws from."""

    def __len__(self) -> int:
        return NUM_BATCHES

    def __getitem__(self, index: int) -> Tensor:
        return batch(index)


class Unbatched(FillsOneBuffer, Dataset):
    """A dataset whose samples are batches."""


LOADERS: dict[str, Any] = {
    "a list": lambda: [batch(number) for number in range(NUM_BATCHES)],
    "a list of pinned batches": lambda: [batch(number).pin_memory() for number in range(NUM_BATCHES)],
    "one buffer": lambda: FillsOneBuffer(is_pinned=False),
    "one pinned buffer": lambda: FillsOneBuffer(is_pinned=True),
    "an iterable of one pinned buffer": lambda: (batch for batch in FillsOneBuffer(is_pinned=True)),
    "a DataLoader": lambda: DataLoader(Unsure(), batch_size=None),
    "a DataLoader of one pinned buffer": lambda: DataLoader(Unbatched(is_pinned=True), batch_size=None),
    "a DataLoader over tensors": lambda: DataLoader(
        TensorDataset(torch.stack([batch(number) for number in range(NUM_BATCHES)])),
        batch_size=None,
        collate_fn=default_collate,
    ),
    "a DataLoader with a worker": lambda: DataLoader(Unsure(), batch_size=None, num_workers=1),
    "a DataLoader that pins": lambda: DataLoader(Unsure(), batch_size=None, num_workers=1, pin_memory=True),
}


def train_on(batches: Any, device: torch.device) -> Tensor:
    """Do what a step does: compute with a batch for a while, and let go of it."""
    seen = torch.zeros(NUM_BATCHES, device=device)
    for number, received in enumerate(batches):
        tensor = received if isinstance(received, Tensor) else received[0]
        seen[number] = (tensor * 2).sum() / 12
    return seen


@pytest.mark.parametrize("device", [GPU, OTHER], ids=str)
@pytest.mark.parametrize("kind", LOADERS)
def test_what_is_trained_on_has_arrived_and_the_host_waits_for_nothing(gpus, kind, device):
    batches = Batches(LOADERS[kind](), 0, device)
    for epoch in (1, 2) if not kind.startswith("an iterable") else (1,):
        before = gpus.host_waits.total()
        seen = train_on(batches.iterate(epoch), device)
        assert gpus.host_waits.total() == before
        assert seen.tolist() == list(range(NUM_BATCHES))


def test_repeated_batches_arrive_without_waits(gpus):
    batches = Batches((batch(number) for number in range(NUM_BATCHES)), 0, GPU, is_repeated=True)
    for epoch in (1, 2):
        before = gpus.host_waits.total()
        seen = train_on(batches.iterate(epoch), GPU)
        assert gpus.host_waits.total() == before
        assert seen.tolist() == list(range(NUM_BATCHES))


def test_batches_arrive_on_a_stream_of_the_scripts_own(gpus):
    stream = torch.cuda.Stream(GPU)
    with torch.cuda.stream(stream):
        seen = train_on(Batches(LOADERS["a list"](), 0, GPU).iterate(1), GPU)
        assert seen.tolist() == list(range(NUM_BATCHES))


class Point(NamedTuple):
    x: Tensor
    label: str


@dataclasses.dataclass(frozen=True)
class Sample:
    x: Tensor
    label: str = "a"


class Moves:
    """Moves itself, and says that the host need not wait."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def to(self, device: Any, non_blocking: bool = False) -> "Moves":
        return Moves(self.x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Moves":
        return type(self)(self.x.pin_memory())


class MovesPlainly(Moves):
    """Moves itself as it likes."""

    def to(self, device: Any) -> "Moves":  # type: ignore[override]
        return MovesPlainly(self.x.to(device))


class MovingMapping(collections.UserDict):
    """A mapping that moves itself whole, as the batches of some tokenizers do."""

    def to(self, device: Any, *, non_blocking: bool = False) -> "MovingMapping":
        return MovingMapping({name: value.to(device, non_blocking=non_blocking) for name, value in self.items()})


KINDS: dict[str, Any] = {
    "a tensor": (lambda x: x, lambda value: value),
    "a tuple": (lambda x: (x, "a"), lambda value: value[0]),
    "a named tuple": (lambda x: Point(x, "a"), lambda value: value.x),
    "a dataclass": (lambda x: Sample(x), lambda value: value.x),
    "a nested dict": (lambda x: {"a": {"b": [x, 3]}}, lambda value: value["a"]["b"][0]),
    "a defaultdict": (lambda x: collections.defaultdict(list, x=x), lambda value: value["x"]),
    "a packed sequence": (lambda x: pack_sequence([x]), lambda value: value.data),
    "what moves itself": (Moves, lambda value: value.x),
    "a mapping that moves itself": (lambda x: MovingMapping(x=x), lambda value: value["x"]),
    "a transposed tensor": (lambda x: x.t(), lambda value: value.t()),
    "an expanded tensor": (lambda x: x[0].expand(3, 2), lambda value: value),
}


class Own(Dataset):
    """Batches of some kind, each of which lies in memory of its own, or in the same pinned memory."""

    def __init__(self, kind: str, source: Sequence[Tensor]) -> None:
        self._make = KINDS.get(kind, (MovesPlainly,))[0]
        self._source = source

    def __len__(self) -> int:
        return NUM_BATCHES

    def __getitem__(self, index: int) -> Any:
        return self._make(self._source[index])


def values_of(batches: Any, kind: str) -> tuple[Any, list[Any]]:
    read = KINDS.get(kind, (None, lambda value: value.x))[1]
    last, values = None, []
    for last in batches:
        assert read(last).device == GPU
        values.append(read(last) * 1)
    return last, [value.tolist() for value in values]


EXPECTED = [batch(number).tolist() for number in range(NUM_BATCHES)]


@pytest.mark.parametrize("kind", [*KINDS, "what moves itself plainly"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_each_kind_of_batch_arrives_as_it_was(gpus, kind, num_workers):
    dataset = Own(kind, Unsure() if num_workers else FillsOneBuffer(is_pinned=True))  # type: ignore[arg-type]
    loader = DataLoader(dataset, batch_size=None, num_workers=num_workers, collate_fn=lambda value: value)
    last, values = values_of(Batches(loader, 0, GPU).iterate(1), kind)
    assert values == EXPECTED
    assert isinstance(last, type(dataset[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_waits_for_no_kind_of_batch_from_a_worker(gpus, kind):
    loader = DataLoader(Own(kind, Unsure()), batch_size=None, num_workers=1, collate_fn=lambda value: value)  # type: ignore[arg-type]
    values_of_batches = [KINDS[kind][1](received) * 1 for received in Batches(loader, 0, GPU).iterate(1)]
    assert not gpus.host_waits
    assert [value.tolist() for value in values_of_batches] == EXPECTED


class Labelled(Tensor):
    """A tensor with a class of its own."""


@pytest.mark.parametrize("make", [lambda x: x.as_subclass(Labelled), lambda x: x.clone().requires_grad_()])
def test_what_is_more_than_a_plain_tensor_is_moved_as_it_lies(gpus, make):
    moves = [make(tensor) for tensor in LOADERS["a list"]()]
    values = [received.detach() * 1 for received in Batches(moves, 0, GPU).iterate(1)]
    assert gpus.host_waits.total() == NUM_BATCHES  # no other tensor was made of it before
    assert [value.tolist() for value in values] == EXPECTED


def test_one_pinned_buffer_with_a_class_of_its_own_is_read_before_it_is_filled_again(gpus):
    batches = (tensor.as_subclass(Labelled) for tensor in FillsOneBuffer(is_pinned=True))
    values = [received * 1 for received in Batches(batches, 0, GPU).iterate(1)]
    assert [value.tolist() for value in values] == EXPECTED


def test_a_batch_that_is_on_the_device_stays_as_it_is(gpus):
    there = batch(1).to(GPU)
    (received,) = Batches([there], 0, GPU).iterate(1)
    assert received is there


@pytest.mark.parametrize(
    ("make", "may"),
    [
        (lambda: DataLoader(TensorDataset(batch(1))), True),
        (lambda: DataLoader(TensorDataset(batch(1)), shuffle=True), True),
        (lambda: DataLoader(TensorDataset(batch(1)), collate_fn=lambda samples: samples), False),
        (lambda: DataLoader(TensorDataset(batch(1)), sampler=[0, 2]), False),
        (lambda: DataLoader(Plain()), False),
    ],
)
def test_a_loader_over_tensors_may_be_fetched_from_ahead(make, may):
    assert choose_source(make(), "train", 0, CPU).may_look_ahead is may
