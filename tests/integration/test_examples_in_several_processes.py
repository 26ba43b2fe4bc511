"""The scripts in `examples/` in two processes: the record is that of one, and so are its numbers, but for chance.

What differs with the number of processes is said in docs/processes.md: what a model draws, and BatchNorm, which takes
the mean over a slice. `WITHOUT_CHANCE` takes that out of the examples, and nothing else.
"""

import json
import shutil

import pytest
import torch

from blowtorch import find_runs
from tests.core.parallel.processes import finish, fork
from tests.integration.short_examples import EXAMPLES, WORDS

CLOSE = 1e-6  # what another order of additions makes of weights and metrics, with room
OFTEN = ["run.log_every=2 steps", "run.progress=false"]
FINE_TUNED = ["fine_tune.yaml", "run.initialize_from=../fine_tuning/train_logs/*", *WORDS["fine_tuning"]]
ALL = {**WORDS, "fine_tuned": FINE_TUNED}
BY_CHANCE = ["digits", "gan", "own_epoch"]  # the others are the same without
WITHOUT_CHANCE = {
    "nn.BatchNorm2d(": "nn.GroupNorm(1, ",
    "nn.Dropout(0.3)": "nn.Identity()",
    'torch.randn(len(real), run["noise"], device=real.device)': "real.flatten(1)[:, 8:24]",
}
EXACTLY = {  # words that do the same, and with which the rounding of bf16 is left out
    "digits": ["model.dropout=0"],
    "gpt": ["run.precision=fp32"],
    "own_epoch": ["replay=0"],  # else each process looks for what is hardest among what it has seen
}
# Adam divides gradients by their size, so with fp32 the rounding of small ones moves weights by up to 1e-4 of theirs.
DOUBLE = ["digits", "fine_tuning", "fine_tuned", "gan", "gpt"]
WITH_DOUBLE = {
    "torch.float32": "torch.float64",
    "from blowtorch import Run\n": "from blowtorch import Run\ntorch.set_default_dtype(torch.float64)\n",
}


def copy(folder, name, changes):
    """Copy an example with changes of its text; return its new place."""
    place = shutil.copytree(EXAMPLES / name.replace("tuned", "tuning"), folder / name)
    source = (place / "train.py").read_text()
    for text, other in changes.items():
        source = source.replace(text, other)
    (place / "train.py").write_text(source)
    return str(place)


def lay_out(folder, by_chance):
    """Copy all examples without chance, and some as they are; return the folder and the words of each."""
    jobs = [[copy(folder / "by chance", name, {}), "with", *WORDS[name], *OFTEN] for name in by_chance]
    for name in sorted(ALL, key=DOUBLE.__contains__):  # those last, after which double stays the type of the process
        changes = {**WITHOUT_CHANCE, **(WITH_DOUBLE if name in DOUBLE else {})}
        jobs.append([copy(folder / "exact", name, changes), "with", *ALL[name], *OFTEN, *EXACTLY.get(name, [])])
    return jobs


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folders with the runs of the examples, in one process and in two."""
    pytest.importorskip("sklearn")
    folders = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("two")
    started = []
    for size, folder, by_chance in zip((1, 2), folders, (["own_epoch"], BY_CHANCE), strict=True):
        started += fork(["-m", "tests.integration.scripts_in_turn", json.dumps(lay_out(folder, by_chance))], size)
    for code, _, problem in finish(started, 300):
        assert (code, problem) == (0, "")
    return folders


def only_run(folder):
    (view,) = find_runs(folder / "train_logs")
    return view


def metric_lines(view):
    return [event for event in view.events() if event["event"] == "metrics"]


def outline(view):
    """What a record tells besides numbers; when a checkpoint is published is chance."""
    told = [event for event in view.events() if event["event"] != "checkpoint"]
    return [(each["event"], each["step"], each["epoch"], [*each.get("metrics", {})]) for each in told]


@pytest.mark.parametrize(
    ("kind", "name"), [*(("exact", name) for name in ALL), *(("by chance", name) for name in BY_CHANCE)]
)
def test_an_example_in_two_processes_records_what_it_does_in_one(both, kind, name):
    same = kind if name == "own_epoch" else "exact"  # since it records more where it looks for what is hardest
    alone, two = only_run(both[0] / same / name), only_run(both[1] / kind / name)
    assert outline(two) == outline(alone)
    assert sum(event["event"] == "start" for event in two.events()) == 1
    assert (two.status, alone.status) == ("finished", "finished")
    assert [each.step for each in two.checkpoints] == [each.step for each in alone.checkpoints]


@pytest.mark.parametrize("name", ALL)
def test_an_example_without_chance_comes_to_the_numbers_of_one_process(both, name):
    alone, two = (only_run(folder / "exact" / name) for folder in both)
    for told, expected in zip(metric_lines(two), metric_lines(alone), strict=True):
        for metric, value in told["metrics"].items():
            assert value == pytest.approx(expected["metrics"][metric], rel=CLOSE), metric
    weights, expected_weights = (
        torch.load(view.checkpoint("latest").path / "model.pt", weights_only=True) for view in (two, alone)
    )
    assert weights.keys() == expected_weights.keys()
    for place, value in weights.items():
        scale = expected_weights[place].abs().max()
        assert (value - expected_weights[place]).abs().max() <= CLOSE * scale, place


def test_the_gpt_of_two_processes_writes_what_that_of_one_does(both):
    views = [only_run(folder / "exact" / "gpt") for folder in both]
    told, expected = ([each["text"] for each in view.events() if each["event"] == "text"] for view in views)
    assert told == expected
    assert len(set(told)) > 1
