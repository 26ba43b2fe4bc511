import collections
import functools
import itertools
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from blowtorch.data.order import EpochOrder, SeededIndex, indices_from

DATA = list(range(50))


class Shuffled(Sampler):
    """Draws from the stream it is told to: 'python', 'numpy', 'torch', or a generator of its own."""

    def __init__(self, draws, num_samples=50):
        self.draws = draws
        self.num_samples = num_samples
        self.own_python, self.own_numpy = random.Random(0), np.random.default_rng(0)
        self.own_legacy, self.own_torch = np.random.RandomState(0), torch.Generator()

    def __iter__(self):
        draw = {
            "python": lambda: random.randrange(50),
            "numpy": lambda: int(np.random.randint(50)),
            "torch": lambda: int(torch.randint(50, ())),
            "own python": lambda: self.own_python.randrange(50),
            "own numpy": lambda: int(self.own_numpy.integers(50)),
            "own legacy": lambda: int(self.own_legacy.randint(50)),
            "own torch": lambda: int(torch.randint(50, (), generator=self.own_torch)),
        }[self.draws]
        for _ in range(self.num_samples):
            yield draw()

    def __len__(self):
        return self.num_samples


class Endless(Sampler):
    def __iter__(self):
        while True:
            yield random.randrange(50)


class Told(Sampler):
    epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter([self.epoch] * 4)


class Pairs(Sampler):
    """A batch sampler that is not torch's."""

    def __iter__(self):
        places = random.sample(DATA, 50)
        return (places[place : place + 2] for place in range(0, 50, 2))


STREAMS = ["python", "numpy", "torch", "own python", "own numpy", "own legacy", "own torch"]
SAMPLERS: dict[str, Any] = {
    "sequential": lambda: SequentialSampler(DATA),
    "random": lambda: RandomSampler(DATA),
    "random with more samples": lambda: RandomSampler(DATA, num_samples=120),
    "random with fewer samples": lambda: RandomSampler(DATA, num_samples=20),
    "random with replacement": lambda: RandomSampler(DATA, replacement=True, num_samples=3000),
    "subset": lambda: SubsetRandomSampler(range(10, 40)),
    "weighted": lambda: WeightedRandomSampler([1.0] * 25 + [0.0] * 25, 100),
    "weighted without replacement": lambda: WeightedRandomSampler([1.0] * 50, 50, replacement=False),
    "batches": lambda: BatchSampler(RandomSampler(DATA), 8, drop_last=False),
    "whole batches": lambda: BatchSampler(RandomSampler(DATA), 8, drop_last=True),
    "batches of a custom sampler": lambda: BatchSampler(Shuffled("python"), 8, drop_last=False),
    "custom batches": Pairs,
    **{f"custom, drawing from {stream}": functools.partial(Shuffled, stream, 2500) for stream in STREAMS},
}


@pytest.fixture(params=SAMPLERS)
def make_sampler(request):
    return SAMPLERS[request.param]


def streams():
    return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state()


def same_streams(before, after):
    equal_numpy = all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    return before[0] == after[0] and equal_numpy and torch.equal(before[2], after[2])


def order(sampler=None, seed=1, epoch=1, position=0, **settings):
    """The order of a loader without workers."""
    loader = DataLoader(DATA, sampler=sampler, batch_size=None, **settings)
    made = EpochOrder(loader, seed)
    made.set(epoch, position)
    return list(made)


def test_every_position_continues_the_whole_order(make_sampler):
    whole = list(indices_from(make_sampler(), 7, 0))
    assert len(whole) > 2
    for start in {0, 1, 2, len(whole) // 2, 1023, 1024, 1025, 2048, len(whole) - 1, len(whole)}:
        assert list(indices_from(make_sampler(), 7, start)) == whole[start:]


def test_the_global_streams_are_neither_moved_nor_read(make_sampler):
    before = streams()
    first = list(indices_from(make_sampler(), 7, 1))
    assert same_streams(before, streams())
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    assert list(indices_from(make_sampler(), 7, 1)) == first


def test_a_sampler_used_before_gives_the_same(make_sampler):
    """A generator of its own has then moved on, or would have."""
    sampler = make_sampler()
    first = list(indices_from(sampler, 7, 0))
    list(indices_from(sampler, 8, 0))
    assert list(indices_from(sampler, 7, 0)) == first


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "sequential"])
def test_another_seed_gives_another_order(name):
    assert list(indices_from(SAMPLERS[name](), 7, 0)) != list(indices_from(SAMPLERS[name](), 8, 0))


def test_the_length_is_that_of_the_sampler(make_sampler):
    sampler = make_sampler()
    if hasattr(sampler, "__len__"):
        assert len(list(indices_from(sampler, 7, 0))) == len(sampler)


def test_a_random_order_holds_each_index_once():
    assert sorted(indices_from(RandomSampler(DATA), 7, 0)) == DATA
    assert sorted(indices_from(SubsetRandomSampler([3, 5, 8]), 7, 0)) == [3, 5, 8]


def test_more_samples_than_data_go_round_by_round():
    drawn = list(indices_from(RandomSampler(DATA, num_samples=120), 7, 0))
    rounds = [drawn[:50], drawn[50:100], drawn[100:]]
    assert sorted(rounds[0]) == sorted(rounds[1]) == DATA
    assert rounds[0] != rounds[1]
    assert len(set(rounds[2])) == 20


def test_draws_with_replacement_repeat_and_reach_everything():
    counts = collections.Counter(indices_from(RandomSampler(DATA, replacement=True, num_samples=3000), 7, 0))
    assert sorted(counts) == DATA
    assert max(counts.values()) < 120  # 60 each on average


def test_weights_are_kept():
    assert max(indices_from(WeightedRandomSampler([1.0] * 25 + [0.0] * 25, 500), 7, 0)) < 25


def test_the_last_batch_is_dropped_only_if_asked():
    kept = list(indices_from(BatchSampler(SequentialSampler(DATA), 8, drop_last=False), 7, 5))
    assert kept == [[40, 41, 42, 43, 44, 45, 46, 47], [48, 49]]
    assert list(indices_from(BatchSampler(SequentialSampler(DATA), 8, drop_last=True), 7, 5)) == kept[:1]


def test_an_endless_sampler_is_begun_anywhere():
    whole = list(itertools.islice(indices_from(Endless(), 7, 0), 3000))
    assert list(itertools.islice(indices_from(Endless(), 7, 2500), 500)) == whole[2500:]


def test_skipping_is_done_before_the_first_index_is_asked_for():
    counted = []

    class Counting(Sampler):
        def __iter__(self):
            return (counted.append(index) or index for index in range(5000))

    rest = indices_from(Counting(), 7, 3000)
    assert len(counted) >= 3000
    assert next(rest) == 3000


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [order(RandomSampler(DATA), seed, epoch) for seed, epoch in itertools.product([1, 2], [1, 2])]
    assert len({tuple(each) for each in orders}) == 4
    assert order(RandomSampler(DATA), 1, 2) == orders[1]


def test_only_what_is_asked_for_an_index_is_a_pass():
    """With workers, torch asks for an iterator that it throws away."""
    made = EpochOrder(DataLoader(DATA, shuffle=True, batch_size=4), 1)
    made.set(3, 2)
    unused = iter(made)
    whole = list(made)
    assert len(whole) == 11 and next(unused) != whole[0]
    made.set(3, 2)
    assert list(made) == whole


@pytest.mark.parametrize("sampler", [RandomSampler(DATA), Shuffled("python")])
def test_each_pass_of_an_epoch_has_an_order_of_its_own_and_is_reached_from_any_position(sampler):
    def passes(position, state=None):
        made = EpochOrder(DataLoader(DATA, sampler=sampler, batch_size=8, drop_last=True), 1)
        if state is not None:
            made.load_state_dict(state)
        made.set(2, position)
        return itertools.chain.from_iterable(made for _ in range(5)), made

    indices, made = passes(0)
    whole = list(itertools.islice(indices, 15))
    assert whole[:6] != whole[6:12]
    state = made.state_dict()
    for position in (13, 14, 15):
        assert list(itertools.islice(passes(position, state)[0], 15 - position)) == whole[position:]


@pytest.mark.parametrize("where", ["loader", "sampler"])
def test_a_generator_adds_its_seed_and_is_not_advanced(where):
    def given(seed):
        generator = torch.Generator().manual_seed(seed)
        before = generator.get_state()
        if where == "loader":
            made = EpochOrder(DataLoader(DATA, shuffle=True, batch_size=4, generator=generator), 1)
        else:
            made = EpochOrder(DataLoader(DATA, sampler=RandomSampler(DATA, generator=generator), batch_size=4), 1)
        drawn = list(made)
        assert torch.equal(generator.get_state(), before)
        return drawn

    without = list(EpochOrder(DataLoader(DATA, shuffle=True, batch_size=4), 1))
    assert given(5) == given(5)
    assert given(5) != given(6)
    assert given(0) != without


@pytest.mark.parametrize("draws", [stream for stream in STREAMS if stream.startswith("own")])
def test_a_samplers_own_generator_is_lent_another_and_kept(draws):
    sampler = Shuffled(draws, 1500)
    own = dict(vars(sampler))
    states = repr(
        [sampler.own_python.getstate(), sampler.own_numpy.bit_generator.state, sampler.own_legacy.get_state()]
    )
    list(indices_from(sampler, 7, 10))
    assert all(getattr(sampler, name) is value for name, value in own.items())
    after = repr([sampler.own_python.getstate(), sampler.own_numpy.bit_generator.state, sampler.own_legacy.get_state()])
    assert after == states


def test_a_sampler_that_raises_leaves_the_streams_and_its_generator():
    class Broken(Shuffled):
        def __iter__(self):
            raise OSError("no index")
            yield

    sampler = Broken("own torch")
    own, before = sampler.own_torch, streams()
    with pytest.raises(OSError, match="no index"):
        list(indices_from(sampler, 7, 0))
    assert sampler.own_torch is own
    assert same_streams(before, streams())


def test_a_sampler_is_told_the_epoch_counted_from_0():
    assert order(Told(), epoch=1) == [0, 0, 0, 0]
    assert order(Told(), epoch=3) == [2, 2, 2, 2]


def test_the_sampler_inside_of_a_batch_sampler_is_told_too():
    made = EpochOrder(DataLoader(DATA, sampler=Told(), batch_size=2), 1)
    made.set(2, 0)
    assert list(made) == [[1, 1], [1, 1]]


def test_without_workers_the_indices_are_as_the_sampler_gave_them():
    made = EpochOrder(DataLoader(DATA, batch_size=2), 1)
    assert next(iter(made)) == [0, 1]
    assert type(next(iter(made))) is list


def test_with_workers_each_index_carries_its_epoch_and_a_seed_of_its_position():
    loader = DataLoader(DATA, batch_size=10, num_workers=1)
    made = EpochOrder(loader, 1)
    made.set(2, 0)
    whole = list(made)
    assert [each.index for each in whole] == [DATA[place : place + 10] for place in range(0, 50, 10)]
    assert {each.epoch for each in whole} == {2}
    assert len({each.seed for each in whole}) == 5
    made.set(2, 3)
    assert list(made) == whole[3:]
    assert isinstance(whole[0], SeededIndex)


def test_without_batches_any_index_carries_a_seed():
    """Such as a list of indices, which is how a dataset that loads many at once is asked."""
    sampler = BatchSampler(SequentialSampler(DATA), 4, drop_last=False)
    made = EpochOrder(DataLoader(DATA, sampler=sampler, batch_size=None, num_workers=1), 1)
    assert [each.index for each in made][:1] == [[0, 1, 2, 3]]


def test_the_length_of_the_order_is_that_of_the_loader():
    assert len(EpochOrder(DataLoader(DATA, batch_size=8), 1)) == 7
    with pytest.raises(TypeError, match="no len"):
        len(EpochOrder(DataLoader(DATA, sampler=Endless(), batch_size=None), 1))
