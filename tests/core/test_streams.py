"""Seeds and random streams."""

import io
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from blowtorch import ScriptError
from blowtorch.streams import (
    derive_seed,
    draw_seed,
    isolated_random,
    random_state,
    restore_random_state,
    seed_everything,
)


def draw():
    """Something from each stream; of the normal distributions an odd number, since they keep a half of a pair."""
    return (
        [random.random(), random.gauss(0, 1)],
        [np.random.rand(), np.random.randn(), int(np.random.randint(1000))],
        torch.rand(3).tolist() + torch.randn(1).tolist(),
    )


def test_the_same_seed_gives_the_same_numbers():
    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first
    seed_everything(8)
    assert all(one != other for one, other in zip(draw(), first, strict=True))


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_smallest_and_largest_seed_are_seeds(seed):
    seed_everything(seed)
    first = draw()
    seed_everything(seed)
    assert draw() == first


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "1", True, None])
def test_anything_else_is_no_seed(seed):
    with pytest.raises(ScriptError, match=r"expected a random seed from 0 to 2\*\*32 - 1, got "):
        seed_everything(seed)


def test_drawn_seeds_differ_and_leave_the_streams_alone():
    seed_everything(1)
    first = draw()
    seed_everything(1)
    seeds = {draw_seed() for _ in range(100)}
    assert len(seeds) > 95 and all(0 <= seed < 2**31 for seed in seeds)
    assert draw() == first


def test_derived_seeds_are_the_same_in_every_process():
    """The builtin `hash` would differ from one to the next."""
    code = "from blowtorch.streams import derive_seed; print(derive_seed(123, 'train', 4))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == derive_seed(123, "train", 4) == 3386626131814124024


def test_derived_seeds_depend_on_every_part_and_on_where_it_stands():
    parts = [(1, 2), (2, 1), (12,), (1, "2"), ("1", 2), (1, 2, 0), ("a", "b"), ("ab",), ("ab", "")]
    assert len({derive_seed(*each) for each in parts}) == len(parts)
    assert all(0 <= derive_seed(index) < 2**63 for index in range(100))


def test_streams_go_on_where_they_stood_after_a_round_trip_through_a_file():
    seed_everything(3)
    draw()
    file = io.BytesIO()
    torch.save(random_state(), file)
    expected = draw(), draw()
    seed_everything(99)
    draw()
    file.seek(0)
    restore_random_state(torch.load(file, weights_only=True))
    assert (draw(), draw()) == expected


def test_a_state_does_not_move_with_the_stream_it_was_taken_of():
    state = random_state()
    first = draw()
    restore_random_state(state)
    assert draw() == first
    restore_random_state(state)
    assert draw() == first


@pytest.mark.parametrize("stream", ["python", "numpy", "torch"])
def test_one_stream_may_be_put_back_alone(stream):
    seed_everything(3)
    state, (first, second) = random_state(), (draw(), draw())
    assert first != second
    restore_random_state({stream: state[stream]})
    drawn = draw()
    position = ["python", "numpy", "torch"].index(stream)
    assert drawn[position] == first[position]
    assert all(drawn[other] != first[other] for other in range(3) if other != position)


def test_what_is_drawn_in_isolation_depends_on_its_seed_and_changes_nothing_outside():
    seed_everything(3)
    expected = draw()
    seed_everything(3)
    with isolated_random(derive_seed(1)):
        first = draw()
    assert draw() == expected
    with isolated_random(derive_seed(1)):
        assert draw() == first
    with isolated_random(derive_seed(2)):
        assert draw() != first


def test_streams_are_put_back_after_an_exception():
    seed_everything(3)
    expected = draw()
    seed_everything(3)

    def fail():
        with isolated_random(5):
            draw()
            raise ZeroDivisionError("on purpose")

    with pytest.raises(ZeroDivisionError, match="on purpose"):
        fail()
    assert draw() == expected


def test_isolation_can_be_nested():
    with isolated_random(1):
        draw()
        before = draw()
    with isolated_random(1):
        draw()
        with isolated_random(2):
            draw()
        assert draw() == before


def stand_in_for_xpu(monkeypatch, number):
    """Have torch find so many devices of an accelerator that is none of NVIDIA's; return what each has of a state."""
    states = [torch.tensor([index]) for index in range(number)]
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("xpu"))
    monkeypatch.setattr(torch.xpu, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: number)
    monkeypatch.setattr(torch.xpu, "get_rng_state_all", lambda: list(states))
    monkeypatch.setattr(torch.xpu, "set_rng_state_all", lambda given: states.__setitem__(slice(None), given))
    return states


def test_the_streams_of_any_accelerator_are_among_the_others_once_it_is_in_use(monkeypatch):
    stand_in_for_xpu(monkeypatch, 2)
    assert random_state()["xpu"] == [torch.tensor([0]), torch.tensor([1])]
    monkeypatch.setattr(torch.xpu, "is_initialized", lambda: False)
    assert "xpu" not in random_state()


def test_a_machine_with_fewer_devices_takes_the_streams_of_those_that_it_has(monkeypatch):
    stand_in_for_xpu(monkeypatch, 3)
    state = random_state()
    states = stand_in_for_xpu(monkeypatch, 1)
    states[0] = torch.tensor([9])
    restore_random_state(state)
    assert states == [torch.tensor([0])]
