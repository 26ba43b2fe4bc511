import contextlib
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import blowtorch
from blowtorch import BlowtorchError, BlowtorchWarning, MissingKeyError
from blowtorch.errors import nearest, warn

ERRORS = [name for name in blowtorch.__all__ if name.endswith("Error")]


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_has_one_root_and_survives_another_process(name):
    error = getattr(blowtorch, name)("expected this, got 'that'")
    assert isinstance(error, BlowtorchError)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == "expected this, got 'that'"


def test_a_missing_key_is_a_key_error_that_reads_as_a_sentence():
    with pytest.raises(KeyError, match=r"^no source has 'a'$") as caught:
        raise MissingKeyError("no source has 'a'")
    assert str(caught.value) == "no source has 'a'"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("max_epoch", " Did you mean 'max_epochs'?"),
        ("max_stpes", " Did you mean 'max_steps'?"),
        ("max_steps", " Did you mean 'max_steps'?"),
        ("colour", ""),
        ("", ""),
    ],
)
def test_the_nearest_name_is_a_sentence_or_nothing(name, expected):
    assert nearest(name, ["max_epochs", "max_steps"]) == expected
    assert nearest(name, iter(["max_epochs", "max_steps"])) == expected


def test_nothing_is_near_where_there_is_nothing():
    assert nearest("a", []) == ""


def test_a_warning_points_at_the_line_that_called():
    with pytest.warns(BlowtorchWarning, match="careful") as caught:
        warn("careful")
    assert caught[0].filename == __file__


def test_a_warning_from_inside_points_at_the_line_outside():
    """Also where a user's file bears a name that begins like the package's."""
    folder = Path(blowtorch.__file__).parent
    inside = compile("def inner():\n    warn('careful')\n", str(folder / "somewhere" / "deep.py"), "exec")
    outside = compile("def outer():\n    inner()\n", f"{folder}_experiment.py", "exec")
    names: dict[str, Any] = {"warn": warn}
    exec(inside, names)
    exec(outside, names)
    with pytest.warns(BlowtorchWarning, match="careful") as caught:
        names["outer"]()
    assert caught[0].filename == f"{folder}_experiment.py" and caught[0].lineno == 2


def test_a_warning_from_inside_that_comes_by_way_of_a_context_manager_points_outside_too():
    names: dict[str, Any] = {"warn": warn}
    text = "def inner():\n    warn('careful')\n    yield\n"
    exec(compile(text, str(Path(blowtorch.__file__).parent / "deep.py"), "exec"), names)
    with pytest.warns(BlowtorchWarning, match="careful") as caught:
        contextlib.contextmanager(names["inner"])().__enter__()
    assert caught[0].filename == __file__


def test_a_warning_can_be_made_an_error_by_its_class():
    with warnings.catch_warnings():
        warnings.simplefilter("error", BlowtorchWarning)
        with pytest.raises(BlowtorchWarning, match="careful"):
            warn("careful")


def test_a_script_sees_each_place_it_warns_from_once(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("from blowtorch.errors import warn\nfor _ in range(3):\n    warn('careful')\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stderr.count("BlowtorchWarning: careful") == 1 and f"{script}:3:" in done.stderr
