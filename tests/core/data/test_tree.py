"""Every container that a batch or a state can be made of is walked, and keeps its type and what else it holds."""

import collections
import dataclasses
import types
from typing import Any, ClassVar, NamedTuple

import pytest
import torch

from blowtorch import ScriptError
from blowtorch.data.tree import map_leaves, move, walk
from tests.core.accelerators import WithoutDoubles

CPU = torch.device("cpu")
META = torch.device("meta")  # moves without an accelerator


class Point(NamedTuple):
    x: object
    label: str


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: object


@dataclasses.dataclass
class Derived:
    x: Any
    double: Any = dataclasses.field(init=False)

    def __post_init__(self):
        self.double = self.x * 2


class Named(dict):
    """A subclass with an attribute."""

    origin = None


class Moves:
    """Moves itself, as a batch of a library of its own does."""

    device = CPU

    def to(self, device):
        moved = Moves()
        moved.device = device
        return moved


class MovingMapping(collections.UserDict, Moves):
    """A mapping that moves itself whole."""


def double(leaf):
    return leaf * 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 2),
        ([1, [2]], [2, [4]]),
        ((1, (2,)), (2, (4,))),
        (Point(1, "a"), Point(2, "aa")),
        (torch.Size([1, 2]), torch.Size([2, 4])),
        ({"a": 1, "b": {2: 3}}, {"a": 2, "b": {2: 6}}),
        (collections.OrderedDict(b=1, a=2), collections.OrderedDict(b=2, a=4)),
        (collections.defaultdict(list, a=1), collections.defaultdict(list, a=2)),
        (collections.Counter("aab"), collections.Counter(a=4, b=2)),
        (collections.UserDict(a=1), collections.UserDict(a=2)),
        (types.MappingProxyType({"a": 1}), types.MappingProxyType({"a": 2})),
        (Frozen([1]), Frozen([2])),
        ([], []),
        ({}, {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_container_keeps_its_type(value, expected):
    before = repr(value)
    copied = map_leaves(double, value)
    assert copied == expected
    assert type(copied) is type(expected)
    assert repr(value) == before


def test_a_container_keeps_what_else_it_holds():
    default = map_leaves(double, collections.defaultdict(list, a=1))
    assert default["other"] == []
    named: Any = Named(a=1)
    named.origin = "here"
    assert map_leaves(double, named).origin == "here"
    sample = map_leaves(lambda leaf: leaf + 1, Derived(1))
    assert (sample.x, sample.double) == (2, 3)


def test_leaves_come_with_their_places_in_the_order_in_which_they_are_replaced():
    value = {"b": [1, (2,)], "a": Frozen({0: 3}), "empty": []}
    assert list(walk(value)) == [(("b", 0), 1), (("b", 1, 0), 2), (("a", "x", 0), 3)]
    replaced = []
    map_leaves(replaced.append, value)
    assert replaced == [1, 2, 3]


def test_a_container_that_is_said_to_be_a_leaf_stays_whole():
    value = [[1], {"a": [2]}]
    assert [leaf for _, leaf in walk(value, is_leaf=lambda value: isinstance(value, dict))] == [1, {"a": [2]}]
    assert map_leaves(len, value, is_leaf=lambda value: value in ([1], {"a": [2]})) == [1, 1]


def test_a_class_is_a_leaf_also_where_its_objects_are_containers():
    assert [leaf for _, leaf in walk([Frozen, dict])] == [Frozen, dict]


def test_a_nested_batch_moves_whole():
    x = torch.zeros(4)
    default = collections.defaultdict(list, x=x)
    batch: dict[str, Any] = {"tuple": (x, 3), "point": Point(x, "a"), "sample": Derived(x), "default": default}
    moved = move(batch, META)
    tensors = [moved["tuple"][0], moved["point"].x, moved["sample"].x, moved["sample"].double, moved["default"]["x"]]
    assert all(tensor.device == META for tensor in tensors)
    assert moved["tuple"][1] == 3
    assert moved["point"].label == "a"
    assert default["x"].device == CPU
    assert batch["sample"].x.device == CPU


def test_an_object_that_can_move_moves_itself_even_if_it_is_a_container():
    moved = move([Moves(), MovingMapping(a=torch.zeros(1))], META)
    assert [item.device for item in moved] == [META, META]


class Noting(torch.Tensor):
    """A tensor that notes how it is moved, and stays where it is."""

    moves: ClassVar[list[dict[str, Any]]] = []

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        if function is torch.Tensor.to:
            cls.moves.append(keywords or {})
            return arguments[0]
        return super().__torch_function__(function, types, arguments, keywords or {})


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu", "cpu"])
def test_no_device_may_copy_later_when_the_memory_may_hold_something_else(device):
    Noting.moves.clear()
    move({"x": torch.zeros(2).as_subclass(Noting)}, torch.device(device))
    assert Noting.moves == [{}]


def test_a_batch_of_numbers_that_the_device_lacks_says_which_and_what_to_do():
    batch = (torch.zeros(2), {"y": torch.zeros(4, 3, dtype=torch.float64)})
    expected = r"a tensor of torch.float64, of shape \(4, 3\), which cannot be moved to meta: Cannot .* by \.float\(\)"
    with WithoutDoubles(), pytest.raises(ScriptError, match=expected):
        move(batch, META)
