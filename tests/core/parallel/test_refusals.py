"""What cannot work in several processes is refused in all of them with the same words."""

import json
from socket import gethostname

import pytest

from blowtorch import ScriptError
from blowtorch.parallel.world import join
from tests.core.parallel.processes import ROOT, finish, fork, free_port
from tests.forked import run

SIZE = 3
ALIKE = {
    "configuration": "0 and 1 were started with something else: configuration.rate is 0.1 and 1.1",
    "model": "process 1 is another one than that of process 0",
    "data": "'train' has 9 batches of 103 samples on process 0, and 9 batches of 102 samples on process 2; they share",
    "validation data": "'val' has 4 batches of 37 samples on process 0, and 3 batches of 27 samples on process 1; they",
    "own backward": "return the sum of both, or have a step that asks for 'optimizers'",
    "lazy": "would make another one; call the model on some data",
    "shared device": f"processes 0, 1 and 2 on {gethostname()} share one GPU (4a), and each needs one of its own",
    "other device": f"process 1 on {gethostname()} computes on cuda, and process 0 on {gethostname()} on cpu",
}
ONES_OWN = {"batch": "cannot be shared by", "parted": "parted with those that it trained with"}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each process was told, by what was tried."""
    folder = tmp_path_factory.mktemp("refused")
    for code, _, problem in finish(fork(["-m", "tests.core.parallel.refusals", folder], SIZE)):
        assert code == 0, problem
    return [json.loads((folder / f"problems-{rank}.json").read_text()) for rank in range(SIZE)]


@pytest.mark.parametrize(("name", "text"), ALIKE.items())
def test_what_cannot_work_is_refused_in_all_processes_with_the_same_words(told, name, text):
    assert text in told[0][name]
    assert all(problems[name] == told[0][name] for problems in told)


@pytest.mark.parametrize(("name", "text"), ONES_OWN.items())
def test_what_each_process_finds_out_itself_is_told_by_each(told, name, text):
    assert all(text in problems[name] for problems in told)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_others_do_not_come_says_what_to_do(tmp_path, rank):
    place = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = ["-m", "tests.core.parallel.refusals", tmp_path]
    ended = run(*words, folder=ROOT, BLOWTORCH_PROCESS_TIMEOUT="1 seconds", **place)
    assert ended.returncode == 1
    assert f"ProcessError: the 2 processes cannot meet at 127.0.0.1:{place['MASTER_PORT']}: " in ended.stderr
    assert "unset RANK and WORLD_SIZE to train in one process" in ended.stderr


def test_a_number_of_processes_without_a_place_among_them_is_refused():
    with pytest.raises(ScriptError, match=r"WORLD_SIZE is '2', and RANK, .* not set; .* unset WORLD_SIZE to train"):
        join({"WORLD_SIZE": "2"})
