"""What cannot work in several processes is refused in all of them with the same words."""

import json
from socket import gethostname

import pytest

from tests.core.parallel.processes import finish, fork

SIZE = 3
ALIKE = {
    "configuration": "0 and 1 were started with something else: configuration.rate is 0.1 and 1.1",
    "model": "process 1 is another one than that of process 0",
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
