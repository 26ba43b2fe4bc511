"""Scripts of many fields, as strangers write them, each with its own loop in plain torch beside it.

Each file in `strange` has a part that trains with blowtorch, and a function `by_hand` that does the same without it.
"""

import importlib.util
import random
import time
from pathlib import Path

import pytest
import torch

from tests.integration.forked import finish, start

SCRIPTS = sorted((Path(__file__).parent / "strange").glob("*.py"))
NEEDED = {"bert": "transformers", "gnn": "torch_geometric"}
EVERY = "run.checkpoint_every=4 steps"


@pytest.fixture(params=SCRIPTS, ids=[path.stem for path in SCRIPTS])
def script(request):
    needed = NEEDED.get(request.param.stem)
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    return request.param


def assert_same(weights, expected):
    assert weights.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []


def test_a_script_trains_the_bits_of_its_loop_by_hand_also_killed_and_continued(script, tmp_path):
    folders = [tmp_path / name for name in ("by_hand", "straight", "killed")]
    by_hand, straight, killed = folders
    expected = finish(start(script, by_hand, function="by_hand"), by_hand)

    started = time.monotonic()
    assert_same(finish(start(script, straight, "with", EVERY), straight), expected)
    seconds = time.monotonic() - started

    for _ in range(2):
        process = start(script, killed, "with", EVERY, "run.resume=auto")
        time.sleep(random.uniform(0.2, 0.9) * seconds)
        process.kill()
        process.join()
    assert_same(finish(start(script, killed, "with", EVERY, "run.resume=auto"), killed), expected)
