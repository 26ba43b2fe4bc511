"""What the options of a run do in several processes: the same as in one, and the same in all."""

import json

import pytest
import torch

from tests.core.parallel.processes import finish, fork, read

SCRIPT = ["-m", "tests.core.parallel.options"]
CLOSE = 1e-6  # what another order of additions makes of weights and metrics here, with room
BY_THE_CLOCK = ["out_of_time", "recorded_by_the_clock"]
ROUNDED = ["bf16", "fp16"]
EXACT = """by_samples changed_by_a_late_hook clipped_by_value compiled computed_again limited looking_for_anomalies
    overfitted saved_at_once saved_by_the_clock seldom_used sent_early stepped_in_ones_own_epoch stepped_now_and_then
    swapped traced tried_before""".split()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folders of the same jobs in one process and in two."""
    folders = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("two")
    started = [process for size, folder in enumerate(folders, 1) for process in fork([*SCRIPT, folder], size)]
    for code, _, problem in finish(started):
        assert code == 0, problem
    return folders


def problem_of(folder, name, rank=0):
    return json.loads((folder / name / f"problem-{rank}.json").read_text())


def warnings_of(folder, name):
    (path,) = (folder / name / "runs").glob("*/record.jsonl")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return [event["text"] for event in events if event["event"] == "warning"]


@pytest.mark.parametrize("name", [*EXACT, *ROUNDED, "spoiled_skip"])
def test_an_option_makes_the_run_that_it_makes_in_one_process(both, name):
    (expected, expected_weights), (told, weights) = read(both[0], name), read(both[1], name)
    close = 0.01 if name in ROUNDED else CLOSE
    assert (told["status"], told["step"]) == (expected["status"], expected["step"])
    assert told["metrics"].keys() == expected["metrics"].keys()
    for metric, value in told["metrics"].items():
        if name != "spoiled_skip" or not metric.startswith("train_epoch/"):
            assert value == pytest.approx(expected["metrics"][metric], rel=close), metric
    for place, value in weights.items():
        scale = expected_weights[place].abs().max()
        assert (value - expected_weights[place]).abs().max() <= close * scale, place


@pytest.mark.parametrize("name", [*EXACT, *ROUNDED, *BY_THE_CLOCK, "spoiled_skip", "spoiled_fp16"])
def test_all_processes_come_to_the_same_bits(both, name):
    (told, weights), (other, other_weights) = read(both[1], name), read(both[1], name, rank=1)
    assert json.dumps(told) == json.dumps(other)  # which takes NaN for the same as NaN
    assert all(torch.equal(value, other_weights[place]) for place, value in weights.items())


@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_are_sent_while_the_backward_makes_more_of_them(both, rank):
    happened = json.loads((both[1] / "sent_early" / f"happened-{rank}.json").read_text())
    num_batches, num_parameters = 16, 4
    before_ends = " ".join(happened).split("ended")[:num_batches]
    sent = [words.count("sent") for words in before_ends]
    assert sent[1::2] == [0] + [num_parameters - 1] * 7, "in the second batch of each group, once it is known how many"


def test_the_clock_of_the_first_stops_all(both):
    assert read(both[1], "out_of_time")[0]["status"] == "stopped"


def test_a_step_whose_loss_is_not_finite_on_one_process_is_left_out_by_all(both):
    (told,) = [text for text in warnings_of(both[1], "spoiled_skip") if "is left out" in text]
    assert "step 3 is left out, since its gradient is not finite on process 1;" in told


@pytest.mark.parametrize("name", ["spoiled_warn", "spoiled_fp16"])
def test_a_loss_that_is_not_finite_on_one_process_is_told_with_that_process(both, name):
    assert any("train/loss is nan at step 3 on process 1, and" in text for text in warnings_of(both[1], name))


def test_a_loss_that_is_not_finite_on_one_process_stops_all_with_the_same_words(both):
    told, other = problem_of(both[1], "spoiled_stop"), problem_of(both[1], "spoiled_stop", rank=1)
    assert told == other
    assert told.startswith("NotFiniteError: train/loss is nan at step 3 on process 1, and so is '0.weight'")


@pytest.mark.parametrize("name", ["spoiled_warn", "spoiled_ignore", "spoiled_stop"])
def test_after_a_run_that_all_end_with_an_error_they_can_do_another(both, name):
    """Each of these jobs comes after one that has ended so."""
    for rank in (0, 1):
        kind, _, text = problem_of(both[1], name, rank).partition(": ")
        assert kind == problem_of(both[0], name).partition(": ")[0]
        assert "parted" not in text
