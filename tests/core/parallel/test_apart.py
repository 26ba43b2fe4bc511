"""Loaders that shard themselves: each process trains on its own batches, and all of them do one run."""

import json

import pytest
import torch

from tests.core.parallel.processes import finish, fork, read

SCRIPT = ["-m", "tests.core.parallel.apart"]
CLOSE = 1e-6


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folders = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("two")
    started = [process for size, folder in enumerate(folders, 1) for process in fork([*SCRIPT, folder], size)]
    for code, _, problem in finish(started):
        assert code == 0, problem
        started.append(problem)
    return (*folders, started[3:])


@pytest.mark.parametrize("name", ["as_shared", "unequal", "interrupted"])
def test_batches_of_ones_own_make_the_run_of_their_sum(both, name):
    expected, expected_weights = read(both[0], name)
    for rank in (0, 1):
        told, weights = read(both[1], name, rank)
        assert (told["status"], told["step"]) == (expected["status"], expected["step"])
        assert told["metrics"] == pytest.approx(expected["metrics"], rel=CLOSE)
        for place, value in weights.items():
            scale = expected_weights[place].abs().max()
            assert (value - expected_weights[place]).abs().max() <= CLOSE * scale, place
    first, other = read(both[1], name, 0), read(both[1], name, 1)
    assert first[0] == other[0] and all(torch.equal(value, other[1][place]) for place, value in first[1].items())


def test_a_process_with_fewer_batches_is_named_and_waited_for(both):
    assert "the loader for 'train' gives fewer batches on process 0 than on others" in both[2][1]


def test_what_is_ones_own_is_validated_together_and_predicted_by_each(both):
    (expected, _), *told = read(both[0], "judged"), *(read(both[1], "judged", rank)[0] for rank in (0, 1))
    assert [each["metrics"]["val/loss"] for each in told] == pytest.approx([expected["metrics"]["val/loss"]] * 2)
    rows = [each["metrics"]["rows"] for each in told]
    assert sum(rows) == expected["metrics"]["rows"] == 103 and max(rows) < 60


def test_a_split_that_is_none_is_refused(both):
    for rank in (0, 1):
        first, second = json.loads((both[1] / "refused" / f"problems-{rank}.json").read_text())
        assert "expected 'auto', 'never' or a mapping of loaders to these, got 'sometimes'" in first
        assert "there is no loader 'trian'. Did you mean 'train'?" in second
