"""What each of several processes logs: scalars of all count, and an image and the like is kept once, whoever has it."""

import json

import pytest

from tests.core.parallel.processes import finish, fork

SCRIPT = ["-m", "tests.core.parallel.logged"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run in three processes, and the events of its record."""
    folder = tmp_path_factory.mktemp("logged")
    for code, _, problem in finish(fork([*SCRIPT, folder], 3)):
        assert code == 0, problem
    (run,) = (folder / "runs").iterdir()
    return run, [json.loads(line) for line in (run / "record.jsonl").read_text().splitlines()]


def named(run, event, name):
    return [each for each in run[1] if (each["event"], each.get("name")) == (event, name)]


def test_what_all_log_under_one_name_is_kept_once_as_the_first_has_it(run):
    assert [each["step"] for each in named(run, "histogram", "inputs")] == [2]
    (picture,) = named(run, "image", "picture")
    assert picture["step"] == 2
    assert [path.name for path in (run[0] / "media" / "picture").iterdir()] == ["step-00000002.png"]
    assert [each["text"] for each in named(run, "text", "all")] == ["epoch 1", "epoch 2"]
    assert [each["text"] for each in named(run, "text", "first alone")] == ["once", "once"]


def test_what_another_process_alone_logs_is_kept_as_that_one_has_it(run):
    (text,) = named(run, "text", "of the last")
    assert (text["step"], text["epoch"], text["text"]) == (3, 1, "from 2")
    (image,) = named(run, "image", "of the last")
    assert (run[0] / image["path"]).read_bytes().startswith(b"\x89PNG")
    assert [each["text"] for each in named(run, "text", "first")] == ["from 0"] * 2
    assert [each["text"] for each in named(run, "text", "others")] == ["from 1"] * 2


def test_what_is_logged_of_the_only_sample_of_a_batch_is_not_lost(run):
    samples = named(run, "file", "sample")
    assert [each["step"] for each in samples] == [9, 18]
    assert [(run[0] / each["path"]).read_text() for each in samples] == ["sample at 9", "sample at 18"]


def test_what_each_logs_at_a_moment_of_the_loop_is_brought_together(run):
    metrics = {}
    for event in run[1]:
        metrics |= event.get("metrics", {})
    assert (metrics["rank"], metrics["ranks"], metrics["of_others"]) == (1.0, 3.0, 7.0)
