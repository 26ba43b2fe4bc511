"""Values beyond tensors and plain ones, as checkpoints hold them."""

import random
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from typing import NamedTuple

import numpy as np
import pytest
import torch

from blowtorch import CheckpointError
from blowtorch.checkpoint.plain import find_unplain, make_original, make_plain
from blowtorch.checkpoint.tensors import WarmCopies, read_tensors, write_tensors
from tests.core.small_runs import QUIET

Transition = namedtuple("Transition", ["state", "action"])


class Games:
    class Move(NamedTuple):
        """It is defined within a class."""

        piece: str
        to: int = 3


VALUES = {
    "array": np.arange(6.0).reshape(2, 3),
    "a view": np.arange(12)[::-2],
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "no dimension": np.array(3, dtype=np.int16),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "booleans": np.array([True, False]),
    "half": np.array([1.5, -2.0], dtype=np.float16),
    "other order of bytes": np.array([1.5, 2.5], dtype=">f8"),
    "words": np.array(["a", "bcd"]),
    "times": np.array(["2026-01-01", "NaT"], dtype="datetime64[D]"),
    "records": np.array([(1, 2.5)], dtype=[("count", "i4"), ("mean", "f8")]),
    "numbers": [np.float64(0.1), np.float32(0.1), np.int64(-3), np.uint8(255), np.bool_(True), np.complex64(1j)],
    "deque": deque([(1, torch.ones(2)), (2, np.zeros(2))], maxlen=4),
    "sets": [{1, 2}, frozenset({"a"}), set()],
    "defaultdicts": [defaultdict(int, a=1), defaultdict(list, {("a", 1): [np.int64(1)]}), defaultdict(None, b=2)],
    "nested": deque([deque([{"x": {np.float64(1.0)}}], maxlen=1)]),
    "plain": OrderedDict(a=Counter(x=2), b=(1, [2, (3,)]), c=None),
    "tuples": ((np.float64(1.0), (np.int8(1), "a")), ()),
    "named tuples": deque([Transition(torch.ones(2), np.int64(1)), Games.Move("queen")], maxlen=3),
    "tuples of tuples": OrderedDict({((0, 1), (1, 0)): 0.5, (): 1.0}),
    "words and times": [
        np.str_("é"),
        np.str_(""),
        np.bytes_(b"x"),
        np.datetime64("2026-01-01"),
        np.timedelta64(3, "s"),
    ],
    "one record": np.array([(1, 2.5)], dtype=[("count", "i4"), ("mean", "f8")])[0],
    "a long float": np.longdouble(1) / 3,
    "a generator": np.random.default_rng(3).bit_generator.state,
    "python": random.Random(1).getstate(),
}


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
        assert other.flags.writeable
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        assert getattr(one, "default_factory", 0) == getattr(other, "default_factory", 0)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple | deque):
        assert len(one) == len(other)
        assert getattr(one, "maxlen", None) == getattr(other, "maxlen", None)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    else:
        assert one == other


@pytest.mark.parametrize("name", VALUES)
def test_what_is_stored_comes_back_with_its_type_and_its_bits(name, tmp_path):
    state, originals = make_plain(VALUES[name])
    assert find_unplain([state, originals], name) is None
    write_tensors(WarmCopies().take([state, originals]), tmp_path / "state.pt")
    assert_same(VALUES[name], make_original(*read_tensors(tmp_path / "state.pt")))


KEYS = [np.int64(3), np.float32(0.1), np.bool_(True), np.str_("a"), (np.int64(1), (np.str_("b"), 2))]


@pytest.mark.parametrize("key", KEYS, ids=repr)
@pytest.mark.parametrize("kind", [dict, OrderedDict, Counter, lambda items: defaultdict(int, items)])
def test_keys_of_numpy_come_back_as_the_plain_ones_that_are_equal_to_them(key, kind):
    value = kind({key: np.int64(1)})
    state, originals = make_plain([value])
    assert find_unplain([state, originals], "state") is None
    (other,) = make_original(state, originals)
    assert_same(value, other)
    assert other[key] == 1 and type(other[key]) is np.int64


def test_an_array_that_cannot_be_written_to_is_stored_without_a_warning():
    array = np.arange(3.0)
    array.flags.writeable = False
    state, originals = make_plain({"mean": array})
    assert_same({"mean": np.arange(3.0)}, make_original(state, originals))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([object()]), r"state is a ndarray"),
        (namedtuple("Hidden", "x")(1), r"state is a Hidden"),
        (defaultdict(lambda: 3), r"state is a defaultdict"),
        ({print: 1}, r"has a builtin_function_or_method as key"),
        ({(1, object): 1, np.int64(1): 2}, r"has a tuple as key"),
        ({np.datetime64("2026-01-01"): 1}, r"has a datetime64 as key"),
        (deque([print]), r"state\[0\] is a builtin_function_or_method"),
    ],
)
def test_what_cannot_be_stored_is_named_with_its_place(value, message):
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(find_unplain(make_plain(value)[0], "state"))


def test_a_class_of_named_tuples_that_is_gone_is_named(monkeypatch):
    state, originals = make_plain({"last": Transition(1, 2)})
    monkeypatch.setattr(f"{__name__}.Transition", namedtuple("Transition", ["state", "action", "reward"]))
    with pytest.raises(CheckpointError, match=r"named tuple 'Transition' of the module 'tests\..* with 2 fields"):
        make_original(state, originals)


class RunningStatistics:
    """What scripts of reinforcement learning keep of what they have seen."""

    def __init__(self):
        self.mean, self.count, self.last = np.zeros(2), np.int64(0), deque(maxlen=3)
        self.seen, self.visits, self.memory = set(), defaultdict(int), deque(maxlen=4)

    def add(self, step):
        self.count += 1
        self.mean += (np.array([step, step**2]) - self.mean) / self.count
        self.last.append(np.float32(step))
        self.seen.add(step % 5)
        self.visits[np.int64(step % 2)] += 1
        self.memory.append(Transition(torch.ones(step), np.float32(step)))

    def state_dict(self):
        return vars(self)

    def load_state_dict(self, state):
        vars(self).update(state)


@pytest.mark.parametrize("is_asynchronous", [True, False])
def test_running_statistics_go_on_as_if_nothing_had_stopped(is_asynchronous, make_run, net, loader):
    def train(max_steps, **options):
        statistics = RunningStatistics()
        run = make_run(validates=False)
        run.keep_state("statistics", statistics)
        run.on("train_step_end")(lambda step: statistics.add(step))
        result = run(net, loader, max_steps=max_steps, checkpoint_async=is_asynchronous, **QUIET, **options)
        return statistics, result

    whole, _ = train(9, run_name="whole")
    _, stopped = train(4, run_name="stopped")
    continued, _ = train(9, resume=str(stopped.folder))
    assert_same(vars(whole), vars(continued))


def test_a_state_that_cannot_be_stored_says_what_can(make_run, net, loader):
    class Strange(RunningStatistics):
        def state_dict(self):
            return {"visits": defaultdict(lambda: 1)}

    run = make_run(validates=False)
    run.keep_state("strange", Strange())
    with pytest.raises(CheckpointError, match=r"kept/strange\['visits'\] is a defaultdict; what can be stored is "):
        run(net, loader, **QUIET)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_a_nested_tensor_that_torch_cannot_save_is_named():
    rows = [torch.ones(2), torch.ones(3)]
    assert find_unplain([torch.nested.nested_tensor(rows, layout=torch.jagged)], "state") is None
    found = find_unplain([torch.nested.nested_tensor(rows)], "state")
    assert found == "state[0] is a nested tensor whose layout is not torch.jagged"
