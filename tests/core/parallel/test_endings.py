"""Which process shows the error that ends them."""

import json

import pytest

from tests.core.parallel.processes import finish, fork

ALIKE = {
    "option": "OptionError: unknown option 'max_epoch' in run(...). Did you mean 'max_epochs'?",
    "loss": "ScriptError: train_step returned 'first', 'second', of which 'first', 'second' carry a gradient",
    "optimizers": "ValueError: no such rate",
}


def end(folder, which, size):
    """Return what the processes of a run wrote to standard error, and what is noted for torchrun by the last."""
    note = folder / "note.json"
    processes = fork(["-m", "tests.core.parallel.endings", folder, which], size, TORCHELASTIC_ERROR_FILE=note)
    ended = finish(processes)
    assert [code for code, *_ in ended] == [1] * size
    return [problem for *_, problem in ended], json.loads(note.read_text())["message"]["message"]


@pytest.mark.parametrize("which", ALIKE)
def test_an_error_that_ends_all_processes_is_shown_once_by_the_first(tmp_path, which):
    (first, second), noted = end(tmp_path, which, 2)
    assert first.count(ALIKE[which]) == 1
    assert second == ""
    assert noted.startswith(ALIKE[which])


def test_a_process_that_goes_on_after_an_error_keeps_nobody_waiting(tmp_path):
    (first, second), _ = end(tmp_path, "in a step", 2)
    assert "ProcessError: process 1 of 2 has failed: ValueError: bad luck" in first
    assert "ValueError: bad luck" in second and "AssertionError" not in second


def test_an_error_of_one_process_is_shown_by_that_one_and_told_by_the_first(tmp_path):
    """It is raised outside of a run, which the others are in."""
    (first, second, third), _ = end(tmp_path, "before", 3)
    assert "ProcessError: process 1 of 3 has failed: ValueError: bad luck" in first
    assert "endings.py" in second and "ValueError: bad luck" in second
    assert third == ""
