"""Scripts of many fields, as strangers write them, each with its own loop in plain torch beside it.

Each file in `strange` has a part that trains with blowtorch, and a function `by_hand` that does the same without it.
"""

import importlib.util
import random
import time
from pathlib import Path

import pytest
import torch

from tests.forked import Forked

SCRIPTS = sorted((Path(__file__).parent / "strange").glob("*.py"))
NEEDED = {"bert": "transformers", "gnn": "torch_geometric"}
BY_HAND = Path(__file__).with_name("by_hand.py")
EVERY = "run.checkpoint_every=4 steps"


@pytest.fixture(params=SCRIPTS, ids=[path.stem for path in SCRIPTS])
def script(request):
    needed = NEEDED.get(request.param.stem)
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    return request.param


def start(folder, *words):
    folder.mkdir(exist_ok=True)
    return Forked(*words, folder=folder)


def finish(process, folder):
    """Wait for the end, which has to be a good one, and return the weights that were saved."""
    problem = process.communicate(timeout=120)[1]
    assert process.returncode == 0, problem[-3000:]
    return torch.load(folder / "weights.pt", weights_only=True)


def assert_same(weights, expected):
    assert weights.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []


def test_a_script_trains_the_bits_of_its_loop_by_hand_also_killed_and_continued(script, tmp_path):
    folders = [tmp_path / name for name in ("by_hand", "straight", "killed")]
    by_hand, straight, killed = folders
    expected = finish(start(by_hand, BY_HAND, script), by_hand)

    started = time.monotonic()
    assert_same(finish(start(straight, script, "with", EVERY), straight), expected)
    seconds = time.monotonic() - started

    for _ in range(2):
        process = start(killed, script, "with", EVERY, "run.resume=auto")
        time.sleep(random.uniform(0.2, 0.9) * seconds)
        process.kill()
        process.wait()
    assert_same(finish(start(killed, script, "with", EVERY, "run.resume=auto"), killed), expected)
