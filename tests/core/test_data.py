import dataclasses
import itertools
import random
import weakref
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from blowtorch import ScriptError
from blowtorch.data.batches import Batches
from blowtorch.data.transfer import one_ahead
from blowtorch.errors import BlowtorchWarning
from blowtorch.record.metrics import count_samples
from blowtorch.streams import random_state, restore_random_state

CPU = torch.device("cpu")
META = torch.device("meta")  # moves without an accelerator
SIZE = 22
PLACES = (0, 1, 3, 5)
AGAIN = "drawn again"


class Augmented(Dataset):
    """Every sample holds its index and a draw from each of the three random streams."""

    def __init__(self, size=SIZE):
        self.size = size
        self.seen = []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if get_worker_info() is None:
            self.seen.append(index)
        draws = [torch.rand(1, dtype=torch.double).item(), np.random.rand(), random.random()]
        return torch.tensor([index, *draws], dtype=torch.double)


class Plain(Augmented):
    """The same without randomness."""

    def __getitem__(self, index):
        self.seen.append(index)
        return torch.tensor([index])


class WithEpoch(Augmented):
    """Gives the epoch that it was told."""

    epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        return torch.tensor([index, self.epoch])


class Stream(IterableDataset):
    """Gives its epoch and draws from each of the three global streams."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for _ in range(12):
            yield torch.tensor([self.epoch, random.random(), np.random.rand(), torch.rand(())], dtype=torch.double)


class Shuffling:
    """A loader of somebody's own: it shuffles and augments from the global streams."""

    def __iter__(self):
        order = list(range(8))
        random.shuffle(order)
        for index in order:
            yield torch.tensor([index, np.random.rand(), torch.rand(())], dtype=torch.double)


class PythonSampler(Sampler):
    """Draws from the global stream of Python, one index at a time."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        return (random.randrange(self.size) for _ in range(self.size))

    def __len__(self):
        return self.size


class Pairs(Sampler):
    """A batch sampler without an end or a length, with a generator and an epoch of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        while True:
            yield torch.randint(SIZE, (2,), generator=self.generator).tolist()


class OwnLoader(DataLoader):
    """A subclass with arguments of its own, which changes what it yields."""

    def __init__(self, size, factor):
        super().__init__(Plain(size), batch_size=4, shuffle=True)
        self.factor = factor

    def __iter__(self):
        for batch in super().__iter__():
            yield batch * self.factor


def batches_of(loader, seed=7, **keywords):
    return Batches(loader, seed, CPU, **keywords)


def epoch_of(batches, epoch, position=0):
    return [batch.clone() for batch in batches.start(epoch, position)]


def epochs_of(make_loader, seed=7, **keywords):
    batches = batches_of(make_loader(), seed, **keywords)
    found = [epoch_of(batches, epoch) for epoch in (1, 2, 3)]
    batches.close()
    return found


def same(left, right):
    return len(left) == len(right) and all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def assert_restarts(make_loader, places=PLACES, **keywords):
    """Three straight epochs are what fresh loaders give from any position; returns them."""
    whole = epochs_of(make_loader, **keywords)
    for epoch, place in itertools.product((1, 2, 3), places):
        fresh = batches_of(make_loader(), **keywords)
        assert same(epoch_of(fresh, epoch, place), whole[epoch - 1][place:])
        fresh.close()
    return whole


def streams():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()


SAMPLERS = {
    "sequential": lambda data: DataLoader(data, batch_size=4),
    "shuffled": lambda data: DataLoader(data, batch_size=4, shuffle=True),
    "drop_last": lambda data: DataLoader(data, batch_size=4, shuffle=True, drop_last=True),
    "generator": lambda data: DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5)),
    "replacement": lambda data: DataLoader(data, 4, sampler=RandomSampler(data, replacement=True, num_samples=30)),
    "fewer": lambda data: DataLoader(data, batch_size=2, sampler=RandomSampler(data, num_samples=15)),
    "more": lambda data: DataLoader(data, batch_size=4, sampler=RandomSampler(data, num_samples=50)),
    "weighted": lambda data: DataLoader(data, batch_size=4, sampler=WeightedRandomSampler(range(1, SIZE + 1), 30)),
    "subset": lambda data: DataLoader(data, batch_size=2, sampler=SubsetRandomSampler(range(3, 17))),
    "python": lambda data: DataLoader(data, batch_size=4, sampler=PythonSampler(SIZE)),
    "batch sampler": lambda data: DataLoader(data, batch_sampler=BatchSampler(PythonSampler(SIZE), 4, False)),
    "unbatched": lambda data: DataLoader(data, batch_size=None, shuffle=True),
    "unbatched lists": lambda data: DataLoader(
        data, batch_size=None, sampler=RandomSampler(data), collate_fn=lambda sample: sample
    ),
    "fixed batches": lambda data: DataLoader(data, batch_sampler=[[index, index + 1] for index in range(0, 20, 2)]),
}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_restart_gives_what_an_uninterrupted_epoch_would(kind):
    def make():
        return SAMPLERS[kind](Plain())

    whole = assert_restarts(make)
    assert same(whole[0], epochs_of(make)[0])
    if kind not in ("sequential", "fixed batches"):
        assert not same(whole[0], whole[1])
        assert not same(whole[0], epochs_of(make, seed=8)[0])
    assert len(whole[0]) == len(make())


@pytest.mark.parametrize("kind", ["shuffled", "replacement", "more", "weighted", "subset", "python", "batch sampler"])
def test_a_restart_loads_no_earlier_sample(kind):
    data = Plain()
    batches = batches_of(SAMPLERS[kind](data))
    whole = epoch_of(batches, 1)
    data.seen.clear()
    rest = epoch_of(batches, 1, 4)
    assert data.seen == [int(index) for batch in rest for index in batch]
    assert same(rest, whole[4:])


def test_starting_loads_nothing_yet():
    data = Plain()
    batches_of(DataLoader(data, batch_size=4, shuffle=True)).start(1, 2)
    assert data.seen == []


def test_a_shuffled_epoch_has_every_sample_once():
    (epoch, *_) = epochs_of(lambda: SAMPLERS["shuffled"](Plain()))
    assert sorted(int(index) for batch in epoch for index in batch) == list(range(SIZE))


def test_a_sampler_of_more_than_the_dataset_has_every_sample_in_each_round():
    (epoch, *_) = epochs_of(lambda: SAMPLERS["more"](Plain()))
    indices = [int(index) for batch in epoch for index in batch]
    assert len(indices) == 50
    assert sorted(indices[:SIZE]) == sorted(indices[SIZE : 2 * SIZE]) == list(range(SIZE))
    assert indices[:SIZE] != indices[SIZE : 2 * SIZE]


def test_draws_with_replacement_restart_deep_in_an_epoch():
    data = range(1000)
    whole = torch.cat(epoch_of(batches_of(DataLoader(data, 50, sampler=RandomSampler(data, True, 5000))), 1))
    late = torch.cat(epoch_of(batches_of(DataLoader(data, 50, sampler=RandomSampler(data, True, 5000))), 1, 90))
    assert torch.equal(late, whole[4500:])
    assert whole[:1000].unique().numel() < 1000


def test_a_generator_of_the_user_changes_the_order_and_is_not_advanced():
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    data = Plain()
    given = epoch_of(batches_of(DataLoader(data, batch_size=4, shuffle=True, generator=generator)), 1)
    other = epoch_of(batches_of(DataLoader(data, 4, shuffle=True, generator=torch.Generator().manual_seed(6))), 1)
    assert torch.equal(generator.get_state(), before)
    assert not same(given, other)
    assert not same(given, epoch_of(batches_of(DataLoader(data, batch_size=4, shuffle=True)), 1))


def test_loaders_with_different_names_have_different_orders():
    assert not same(*(epoch_of(batches_of(SAMPLERS["shuffled"](Plain()), name=name), 1) for name in ("train", "val")))


def test_the_loader_that_was_given_stays_as_it_was():
    loader = DataLoader(Augmented(), batch_size=4, shuffle=True)
    before = dict(vars(loader))
    epoch_of(batches_of(loader), 1)
    assert vars(loader) == before


@pytest.mark.parametrize("limit", [None, 5])
def test_an_endless_batch_sampler_is_drawn_on_and_told_its_epoch(limit):
    sampler = Pairs()
    before = sampler.generator.get_state()
    batches = batches_of(DataLoader(Plain(), batch_sampler=sampler), limit=limit)
    assert batches.num_batches is None
    whole = list(itertools.islice(batches.start(2), 5))
    assert same(list(itertools.islice(batches.start(2, 3), 2)), whole[3:])
    assert not same(list(itertools.islice(batches.start(3), 5)), whole)
    assert sampler.epochs == [1, 1, 2]
    assert torch.equal(sampler.generator.get_state(), before)


def test_a_subclass_of_the_data_loader_keeps_what_it_does():
    whole = assert_restarts(lambda: OwnLoader(SIZE, 100))
    assert sorted(int(index) for batch in whole[0] for index in batch) == list(range(0, 100 * SIZE, 100))


@pytest.mark.parametrize(("persistent", "kind"), [(False, "shuffled"), (True, "python")])
def test_workers_make_no_difference_however_many(persistent, kind):
    def make(workers):
        loader = SAMPLERS[kind](Augmented())
        keywords = {"num_workers": workers, "persistent_workers": persistent, "prefetch_factor": 3}
        return DataLoader(loader.dataset, batch_size=4, sampler=loader.sampler, **keywords)

    one = assert_restarts(lambda: make(1), places=(0, 3))
    two = assert_restarts(lambda: make(2), places=(1,))
    assert all(same(left, right) for left, right in zip(one, two, strict=True))
    draws = torch.cat([batch[:, 1:] for epoch in one for batch in epoch]).flatten()
    assert draws.unique().numel() == draws.numel()  # no draw comes twice


@pytest.mark.parametrize("kind", ["unbatched", "unbatched lists"])
def test_workers_without_batching_are_seeded_too(kind):
    def make(workers):
        loader = SAMPLERS[kind](Augmented(6))
        return DataLoader(loader.dataset, batch_size=None, sampler=loader.sampler, num_workers=workers)

    whole = epoch_of(batches_of(make(1)), 2)
    assert same(epoch_of(batches_of(make(2)), 2, 2), whole[2:])


def test_workers_are_seeded_for_a_sampler_of_batches_in_the_place_of_indices():
    class Many(Augmented):
        def __getitem__(self, indices):
            return torch.stack([Augmented.__getitem__(self, index) for index in indices])

    data = Many(12)

    def make(workers):
        return DataLoader(
            data, batch_size=None, sampler=BatchSampler(RandomSampler(data), 4, False), num_workers=workers
        )

    whole = epoch_of(batches_of(make(1)), 1)
    assert [len(batch) for batch in whole] == [4, 4, 4]
    assert same(epoch_of(batches_of(make(2)), 1, 1), whole[1:])


def note_the_dataset(worker):
    get_worker_info().dataset.size = 1000 + worker


class ShowsSize(Augmented):
    def __getitem__(self, index):
        return torch.tensor([self.size, index])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_users_worker_init_fn_sees_the_users_dataset(method):
    loader = DataLoader(ShowsSize(8), 2, num_workers=1, worker_init_fn=note_the_dataset, multiprocessing_context=method)
    batches = epoch_of(batches_of(loader), 1, 1)
    assert torch.cat(batches).tolist() == [[1000, index] for index in range(2, 8)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_is_told_the_epoch_also_in_workers_that_stay(workers):
    loader = DataLoader(WithEpoch(4), batch_size=4, num_workers=workers, persistent_workers=workers > 0)
    batches = batches_of(loader)
    assert [epoch_of(batches, epoch)[0][0, 1].item() for epoch in (1, 2, 4)] == [0, 1, 3]
    batches.close()


def test_persistent_workers_are_reused_and_ended():
    loader = DataLoader(Augmented(), batch_size=4, num_workers=1, persistent_workers=True)
    batches = batches_of(loader)
    epoch_of(batches, 1)
    (first,) = batches._source._iterator._workers
    epoch_of(batches, 2, 3)
    assert batches._source._iterator._workers == [first]
    batches.close()
    assert not first.is_alive()


def test_closing_ends_workers_in_the_middle_of_an_epoch():
    batches = batches_of(DataLoader(Augmented(), batch_size=4, num_workers=1))
    running = batches.start(1)
    next(running)
    (worker,) = batches._running()._workers
    batches.close()
    assert not worker.is_alive()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["sequential", "shuffled", "weighted", "python"])
def test_iterating_leaves_the_global_streams_alone(kind, workers):
    loader = SAMPLERS[kind](Plain())
    loader = DataLoader(loader.dataset, batch_size=4, sampler=loader.sampler, num_workers=workers)
    before = streams()
    epoch_of(batches_of(loader), 1, 2)
    assert streams() == before


def test_without_workers_the_dataset_draws_from_the_global_streams_as_by_hand():
    batches = batches_of(DataLoader(Augmented(), batch_size=4)).start(1, 2)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    given = next(batches)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert torch.equal(given, torch.stack([Augmented()[index] for index in range(8, 12)]))


@pytest.mark.parametrize(
    "make", [Shuffling, lambda: DataLoader(Stream(), batch_size=2), lambda: (loader for loader in Shuffling())]
)
def test_what_has_no_position_is_drawn_forward_to_the_same_batches(make):
    """Although it draws from the global streams, which training moves on between two batches."""
    whole = []
    for batch in batches_of(make()).start(1):
        whole.append(batch)
        torch.rand(3), random.random()
        if len(whole) == 3:
            checkpoint = random_state()
    torch.manual_seed(99)
    with pytest.warns(BlowtorchWarning, match="no position of its own: 3 batches are drawn again"):
        batches = batches_of(make()).start(1, 3)
    restore_random_state(checkpoint)
    rest = []
    for batch in batches:
        rest.append(batch)
        torch.rand(3), random.random()
    assert same(rest, whole[3:])


@pytest.mark.filterwarnings(f"ignore:.*{AGAIN}")
@pytest.mark.parametrize("persistent", [False, True])
def test_an_iterable_dataset_in_workers_is_seeded_by_epoch_and_worker(persistent):
    def make():
        return DataLoader(Stream(), batch_size=3, num_workers=2, persistent_workers=persistent)

    whole = assert_restarts(make, places=(0, 3))
    assert [epoch[0][0, 0].item() for epoch in whole] == [0, 1, 2]  # set_epoch reaches the workers
    draws = torch.cat([torch.cat(epoch)[:, 1] for epoch in whole])
    assert draws.unique().numel() == draws.numel()


def test_a_list_of_batches_begins_at_an_index():
    class Counting(list):
        asked = 0

        def __getitem__(self, index):
            self.asked += 1
            return super().__getitem__(index)

    source = Counting(range(100))
    batches = batches_of(source)
    assert batches.num_batches == 100
    assert list(batches.start(1, 97)) == [97, 98, 99]
    assert source.asked == 3
    assert list(batches.start(2)) == list(range(100))
    assert list(batches.start(2, 100)) == []


def test_a_limit_holds_for_the_epoch_and_not_for_a_restart():
    loader = DataLoader(Plain(), batch_size=4)
    for source in (loader, list(loader)):
        batches = batches_of(source, limit=3)
        assert batches.num_batches == 3
        assert len(epoch_of(batches, 1)) == 3
        assert same(epoch_of(batches, 1, 2), epoch_of(batches, 1)[2:])
        assert epoch_of(batches, 1, 3) == []
    assert batches_of(loader, limit=50).num_batches == len(loader)


@pytest.mark.parametrize("loader", [[], DataLoader(Plain(3), batch_size=4, drop_last=True)])
def test_an_empty_loader_is_an_error_at_once(loader):
    with pytest.raises(ScriptError, match=r"'train' gave no batch; is drop_last set"):
        batches_of(loader)


def test_a_loader_that_turns_out_empty_is_an_error_at_its_first_batch():
    batches = batches_of(iter([])).start(1)
    with pytest.raises(ScriptError, match="gave no batch"):
        next(batches)


@pytest.mark.parametrize("limit", [None, 2])
def test_a_generator_cannot_have_a_second_epoch(limit):
    batches = batches_of((number for number in range(3)), limit=limit)
    assert list(batches.start(1)) == [0, 1, 2][:limit]
    with pytest.raises(ScriptError, match="can be iterated only once; give a list"):
        batches.start(2)


def test_an_iterator_that_can_begin_again_may():
    class Again:
        def __iter__(self):
            self.left = 3
            return self

        def __next__(self):
            if not self.left:
                raise StopIteration
            self.left -= 1
            return self.left

    batches = batches_of(Again())
    assert [list(batches.start(epoch)) for epoch in (1, 2)] == [[2, 1, 0]] * 2


@pytest.mark.parametrize(("thing", "hint"), [(7, "got 7"), (Plain(), "wrap it in a DataLoader")])
def test_what_is_no_iterable_is_an_error(thing, hint):
    with pytest.raises(ScriptError, match=f"expected a loader for 'train'.*{hint}"):
        batches_of(thing)


def test_a_loader_out_of_order_warns_that_its_order_is_not_exact():
    with pytest.warns(BlowtorchWarning, match="in_order=False"):
        batches_of(DataLoader(Plain(), num_workers=1, in_order=False))


class Point(NamedTuple):
    x: torch.Tensor
    label: str


@dataclasses.dataclass(frozen=True)
class Sample:
    x: torch.Tensor
    double: torch.Tensor = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "double", self.x * 2)


class Moves:
    device = CPU

    def to(self, device):
        self.device = device
        return self


X = torch.zeros(5, 2)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (X, 5),
        ((X, torch.zeros(3)), 5),
        ([X], 5),
        ({"x": X, "y": torch.zeros(3)}, 5),
        (({"text": ["a", "b"]}, [X]), 5),
        (Point(X, "a"), 5),
        (Sample(X), 5),
        (np.zeros((4, 2)), 4),
        (("name", np.zeros(4)), 4),
        (torch.tensor(3.0), 1),
        (torch.zeros(0, 3), 0),
        ("text", 1),
        ([], 1),
        ({}, 1),
        (None, 1),
    ],
)
def test_a_batch_has_the_size_of_its_first_tensor(batch, size):
    assert count_samples(batch) == size


def test_on_the_cpu_a_batch_is_not_walked():
    batch = {"x": [X]}
    assert next(Batches([batch], 0, CPU).start(1)) is batch


def test_the_next_batch_is_on_its_way_while_one_is_trained_on():
    done = []

    def fetch():
        for number in range(4):
            done.append(f"fetch {number}")
            yield number

    for number in one_ahead(fetch(), lambda batch: done.append(f"begin {batch}") or batch, lambda begun: begun):
        done.append(f"train {number}")
    assert done == [
        *("fetch 0", "begin 0", "fetch 1", "begin 1", "train 0", "fetch 2", "begin 2", "train 1"),
        *("fetch 3", "begin 3", "train 2", "train 3"),
    ]


def test_no_more_than_two_batches_are_held():
    alive, most = weakref.WeakSet(), 0
    for batch in one_ahead((Moves() for _ in range(4)), lambda batch: batch, lambda begun: begun):
        alive.add(batch)
        most = max(most, len(alive))
    assert most <= 2


@pytest.mark.parametrize(
    ("make", "may"),
    [
        (lambda: [(X, X)], True),
        (lambda: DataLoader(Plain(), num_workers=1), True),
        (lambda: DataLoader(Plain()), False),  # its dataset may draw from the streams of training
        (lambda: iter([(X, X)]), False),
        (lambda: DataLoader(CountedStream()), False),  # its position is that of what was fetched
    ],
)
def test_nothing_is_fetched_ahead_where_that_could_be_noticed(make, may):
    assert Batches(make(), 0, CPU)._may_look_ahead() is may


def test_batches_arrive_on_the_device():
    (batch,) = Batches([(X, "a")], 7, META).start(1)
    assert batch[0].device == META


class Counted:
    """Batches without an index, which know where they stand."""

    def __init__(self):
        self.place = 0
        self.given = []

    def __iter__(self):
        while self.place < 6:
            self.place += 1
            self.given.append(self.place)
            yield torch.tensor([self.place])
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class CountedStream(IterableDataset):
    """The same, sample by sample, in a dataset."""

    def __init__(self):
        self.source = Counted()

    def __iter__(self):
        return iter(self.source)

    def state_dict(self):
        return self.source.state_dict()

    def load_state_dict(self, state):
        self.source.load_state_dict(state)


@pytest.mark.parametrize("make", [Counted, lambda: DataLoader(CountedStream(), batch_size=2)])
def test_what_has_a_state_goes_on_from_it_without_drawing_again(make):
    batches = Batches(make(), 3, CPU)
    epoch = batches.start(1)
    before = [next(epoch), next(epoch)]
    state = batches.state_dict()
    expected = [batch.tolist() for batch in epoch]
    assert batches.state_dict() == {}  # at the end of an epoch it begins like new
    loader = make()
    again = Batches(loader, 3, CPU)
    again.load_state_dict(state)
    assert [batch.tolist() for batch in again.start(1, 2)] == expected
    source = loader if isinstance(loader, Counted) else loader.dataset.source
    assert source.given[0] == 1 + sum(len(batch) for batch in before)
    assert len(list(again.start(2))) == 2 + len(expected)


def test_a_state_of_workers_is_out_of_reach_and_they_are_drawn_forward():
    batches = Batches(DataLoader(CountedStream(), batch_size=2, num_workers=1), 3, CPU)
    assert batches.stateful is None
    with pytest.warns(BlowtorchWarning, match="2 batches are drawn again"):
        assert [batch.tolist() for batch in batches.start(1, 2)] == [[[5], [6]]]
    batches.close()


def test_the_indices_of_a_batch_are_kept_if_somebody_asks():
    batches = Batches(DataLoader(Plain(), batch_size=8, shuffle=True, num_workers=2), 3, CPU)
    batches.note_indices()
    for position, batch in enumerate(batches.start(1, 1), 1):
        indices = batches.indices_at(position)
        assert len(indices) == len(batch[0] if isinstance(batch, list) else batch)
        assert batches.indices_at(position) is None  # they are not kept any longer
    batches.close()
