"""What ends several processes ends all of them alike, and they go on, with another number of them too."""

import json
import re
import signal

import pytest
import torch

from tests.core.parallel.processes import finish, fork, run_scenarios, start_by_torchrun

SCRIPT = ["-m", "tests.core.parallel.restarts"]
CLOSE = 1e-6


def run(folder, size, *happening, dropout=0.3):
    """Run in so many processes; return their exit codes, and what each wrote to standard error."""
    ended = finish(fork([*SCRIPT, folder, *happening], size, DROPOUT=dropout))
    return [code for code, *_ in ended], [problem for *_, problem in ended]


def read(folder, rank=0):
    told = json.loads((folder / f"metrics-{rank}.json").read_text())
    return told, torch.load(folder / f"weights-{rank}.pt")


def events_of(folder):
    (path,) = (folder / "runs").glob("*/record.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_bits(folder, other, size=2):
    for rank in range(size):
        (told, weights), (expected, expected_weights) = read(folder, rank), read(other, rank)
        assert told == expected
        assert all(torch.equal(value, expected_weights[name]) for name, value in weights.items())
        noise, expected_noise = (torch.load(where / f"noise-{rank}.pt") for where in (folder, other))
        assert torch.equal(noise, expected_noise), "each goes on with the generator of its own"
    metrics, expected_metrics = (
        [(event["step"], event["metrics"]) for event in events_of(where) if event["event"] == "metrics"]
        for where in (folder, other)
    )
    assert metrics == expected_metrics, "each line of the record is there once"


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    codes, problems = run(folder, 2)
    assert codes == [0, 0], problems
    return folder


@pytest.mark.parametrize(("rank", "event"), [(1, "SIGTERM"), (0, "SIGINT")])
def test_a_signal_to_one_process_stops_all_at_one_step_and_they_go_on_bit_for_bit(tmp_path, straight, rank, event):
    codes, problems = run(tmp_path, 2, rank, 20, event)
    assert codes == [75, 75], problems
    stopped, (other, _) = read(tmp_path, 0)[0], read(tmp_path, 1)
    assert stopped == other and stopped["status"] == "stopped" and 20 <= stopped["step"] < 54
    name = "Ctrl-C" if event == "SIGINT" else event
    assert events_of(tmp_path)[-1]["reason"] == f"{name} on process {rank}"
    assert run(tmp_path, 2)[0] == [0, 0]
    assert_same_bits(tmp_path, straight)


def test_torchrun_starts_all_again_after_a_kill_and_they_go_on_bit_for_bit(tmp_path, straight):
    words = [*SCRIPT, tmp_path, 0, 33, "SIGKILL"]
    ((code, _, problem),) = finish([start_by_torchrun(words, 2, "--max-restarts=2")])
    assert code == 0, problem
    assert_same_bits(tmp_path, straight)
    assert [event["event"] for event in events_of(tmp_path)].count("start") == 1


def test_a_run_that_is_killed_before_its_first_checkpoint_begins_anew_bit_for_bit(tmp_path, straight):
    codes, problems = run(tmp_path, 2, 1, 2, "SIGKILL")
    assert codes == [1, -signal.SIGKILL], problems
    assert run(tmp_path, 2)[0] == [0, 0]
    assert_same_bits(tmp_path, straight)


def test_sigterm_to_torchrun_stops_all_and_they_go_on_bit_for_bit(tmp_path, straight):
    process = start_by_torchrun([*SCRIPT, tmp_path, 0, 20, "hang"], 2)
    while not any((tmp_path / "runs").glob("*/checkpoints/latest")):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)
    finish([process])
    assert run(tmp_path, 2)[0] == [0, 0]
    assert_same_bits(tmp_path, straight)


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    alone, changing = tmp_path / "alone", tmp_path / "changing"
    assert run(alone, 1, dropout=0)[0] == [0]
    for size, happening in ((4, (3, 13, "SIGTERM")), (2, (0, 31, "SIGTERM")), (1, ())):
        codes, problems = run(changing, size, *happening, dropout=0)
        assert codes == [75 if happening else 0] * size, problems
    (told, weights), (expected, expected_weights) = read(changing), read(alone)
    assert told["step"] == expected["step"] and told["metrics"] == pytest.approx(expected["metrics"], rel=CLOSE)
    for name, value in weights.items():
        assert (value - expected_weights[name]).abs().max() <= CLOSE * expected_weights[name].abs().max()
    recorded, expected_recorded = (
        {(event["step"], name): value for event in events_of(where) for name, value in event.get("metrics", {}).items()}
        for where in (changing, alone)
    )
    assert recorded == pytest.approx(expected_recorded, rel=CLOSE)


@pytest.mark.parametrize(("step", "event"), [(20, "error"), (0, "late_error")])
def test_an_error_in_one_process_ends_all_and_is_named_as_the_cause(tmp_path, step, event):
    codes, problems = run(tmp_path, 2, 1, step, event)
    assert codes == [1, 1]
    assert "ProcessError: process 1 of 2 has failed: ExtensionError: callback 'Happening'" in problems[0]
    finish_event = events_of(tmp_path)[-1]
    assert finish_event["status"] == "failed"
    assert "process 1 of 2 has failed" in finish_event["reason"] and "ValueError: bad luck" in finish_event["reason"]


def test_one_process_that_wants_to_stop_ends_all_and_is_named(tmp_path):
    codes, problems = run(tmp_path, 2, 1, 20, "stop")
    assert codes == [0, 0], problems
    (told, _), (other, _) = read(tmp_path, 0), read(tmp_path, 1)
    assert told == other and told["status"] == "finished" and 20 <= told["step"] < 54
    assert events_of(tmp_path)[-1]["reason"] == "enough on process 1"


def test_a_process_that_does_not_come_is_named_with_its_place(tmp_path):
    processes = fork([*SCRIPT, tmp_path, 1, 20, "hang"], 2, BLOWTORCH_PROCESS_TIMEOUT="4 seconds")
    _, problem = processes[0].communicate(timeout=60)
    processes[1].kill()
    processes[1].communicate()
    assert processes[0].returncode == 1
    assert "ProcessError: process 1 of 2 did not come: it is in train_step_end (" in problem
    assert "restarts.py, line" in problem and "have waited for 4 seconds" in problem


UNEVEN = """
import sys
from pathlib import Path

from tests.core.parallel.jobs import go_backward, make_run, train

run = make_run()


@run.train_epoch
def train_epoch(data_loader, model, optimizers, state):
    for x, y in data_loader:
        losses = ((model(x) - y) ** 2).mean()
        go_backward(losses, optimizers["optimizer"])
        optimizers["optimizer"].step()
    if state.rank == 1:
        optimizers["optimizer"].step()


train(run, Path(sys.argv[1]))
"""


def test_processes_that_wait_in_different_places_are_named_with_these(tmp_path):
    script = tmp_path / "uneven.py"
    script.write_text(UNEVEN)
    ended = finish(fork([script, tmp_path], 2, BLOWTORCH_PROCESS_TIMEOUT="5 seconds"))
    assert [code for code, *_ in ended] == [1, 1]
    problem = ended[0][-1]
    assert "the processes wait for one another in different places: process 0 in train (" in problem
    assert re.search(r"; process 1 in train_epoch \(\S*uneven.py, line 17\)", problem)
    assert "each has to step its optimizers, log and validate as often as the others" in problem


def test_several_runs_in_one_script_have_a_folder_each(tmp_path):
    run_scenarios(tmp_path, 2, "plain", "clipped")
    assert [len(list((tmp_path / name / "runs").iterdir())) for name in ("plain", "clipped")] == [1, 1]
