"""The same run on any number of processes: steps, weights, metrics, and what a lone process would have written."""

import functools
import json

import pytest
import torch

from tests.core.parallel.processes import read, run_scenarios

EXACT = """accumulated averaged batches_in_a_list clipped distributed_sampler iterable judged_alone left_out
    metric_objects moments plain plateau several_validations small_batches sparse_gradients summed two_networks
    unused_parameter weighted whole_epochs whole_validations with_closure
    with_workers""".split()
SPECIAL = ["dropped_out", "tried"]
NAMES = {  # more than two processes do what the sizes of their slices make a difference to
    2: EXACT,
    3: ["judged_alone", "plain", "small_batches"],
    4: "iterable judged_alone left_out metric_objects moments plain small_batches weighted whole_validations".split(),
}
SIZES = [2, 4]  # in which the special ones are done too
CASES = [(size, name) for size, names in NAMES.items() for name in names]
CLOSE = 1e-6  # what another order of additions makes of weights and metrics here, with room


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    return run_scenarios(tmp_path_factory.mktemp("alone"), 1)


@pytest.fixture(scope="session")
def several(tmp_path_factory):
    @functools.cache
    def do(size):
        names = NAMES[size] + SPECIAL * (size in SIZES)
        return run_scenarios(tmp_path_factory.mktemp("several"), size, *names)

    return do


def only_run(folder, name):
    (run,) = (folder / name / "runs").iterdir()
    return run


def events_of(run):
    return [json.loads(line) for line in (run / "record.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("size", "name"), CASES)
def test_weights_and_metrics_are_those_of_one_process(alone, several, size, name):
    folder = several(size)
    expected, expected_weights = read(alone, name, 0)
    for rank in range(size):
        told, weights = read(folder, name, rank)
        assert (told["status"], told["step"]) == (expected["status"], expected["step"])
        assert told["metrics"].keys() == expected["metrics"].keys()
        for metric, value in told["metrics"].items():
            assert value == pytest.approx(expected["metrics"][metric], rel=CLOSE), metric
        for place, value in weights.items():
            scale = expected_weights[place].abs().max()
            assert (value - expected_weights[place]).abs().max() <= CLOSE * scale, place


@pytest.mark.parametrize(("size", "name"), [*CASES, *((size, "dropped_out") for size in SIZES)])
def test_all_processes_come_to_the_same_bits(several, size, name):
    folder = several(size)
    first, first_weights = read(folder, name, 0)
    for rank in range(1, size):
        told, weights = read(folder, name, rank)
        assert told == first
        assert all(torch.equal(value, first_weights[place]) for place, value in weights.items())


@pytest.mark.parametrize("size", SIZES)
def test_there_is_one_run_folder_whose_record_tells_what_that_of_one_process_does(alone, several, size):
    folder = several(size)
    expected, told = (events_of(only_run(where, "plain")) for where in (alone, folder))

    def outline(events):  # when a checkpoint is published is chance
        return [(event["event"], event["step"], event["epoch"]) for event in events if event["event"] != "checkpoint"]

    assert outline(told) == outline(expected)
    assert sum(event["event"] == "start" for event in told) == 1


@pytest.mark.parametrize("size", SIZES)
def test_processes_draw_from_streams_of_their_own(several, size):
    folder = several(size)
    run = only_run(folder, "dropped_out")
    training = torch.load(run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip() / "training.pt")
    states = [of_one["random"]["torch"] for of_one, _ in training["processes"]]
    assert len({tuple(state.tolist()) for state in states}) == len(states) == size


@pytest.mark.parametrize("size", SIZES)
def test_each_process_traces_its_own_steps(several, size):
    folder = several(size)
    names = ["trace.jsonl", *(f"trace-{rank}.jsonl" for rank in range(1, size))]
    run = only_run(folder, "dropped_out")
    assert {path.name for path in run.glob("trace*")} == set(names)
    first, *others = ([json.loads(line) for line in (run / name).read_text().splitlines()] for name in names)
    assert len(first) == 17 and "1.running_mean" in first[1]["weights"]
    for start, *lines in others:
        assert start == first[0]
        for line, of_first in zip(lines, first[1:], strict=True):
            for same in ("step", "epoch", "indices"):
                assert line[same] == of_first[same]
            for own in ("batch", "random", "metrics"):
                assert line[own] != of_first[own]
            buffers = of_first["weights"].keys() - line["weights"].keys()
            assert buffers == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
            assert line["weights"].items() <= of_first["weights"].items()


@pytest.mark.parametrize("size", SIZES)
def test_a_function_for_the_first_process_is_called_there_alone(several, size):
    folder = several(size)
    heard = [json.loads((folder / "moments" / f"heard-{rank}.json").read_text()) for rank in range(size)]
    assert heard[0] == [["all", 0, size], ["first", 0, True]] * 3
    assert heard[1:] == [[["all", rank, size]] * 3 for rank in range(1, size)]


@pytest.mark.parametrize("size", SIZES)
def test_what_is_only_tried_leaves_nothing_and_tells_all_the_same(alone, several, size):
    folder = several(size)
    expected = read(alone, "tried", 0)[0]
    for rank in range(size):
        told = read(folder, "tried", rank)[0]
        assert told["step"] == expected["step"] and told["metrics"].keys() == expected["metrics"].keys()
        assert told["metrics"]["val/loss"] == pytest.approx(expected["metrics"]["val/loss"], rel=CLOSE)
        assert told["metrics"]["size"] in range(48 - size, 49)
