"""Models that are divided among processes train, are saved and go on as those of one process do."""

import json
import shutil

import pytest
import torch
from torch import nn

import blowtorch
from blowtorch import CheckpointError, OptionError
from blowtorch.parallel.pieces import TensorInPieces, cut_out
from blowtorch.parallel.sharding import find_blocks, read_parallel
from tests.core.parallel.divided import Blocks
from tests.core.parallel.processes import SCENARIOS, finish, fork, read, start_by_torchrun
from tests.core.parallel.test_options import ROUNDED
from tests.core.parallel.test_options import SCRIPT as OPTIONS
from tests.core.parallel.test_restarts import SCRIPT, assert_same_bits, events_of

DIVIDED = ["-m", "tests.core.parallel.divided"]
CLOSE = 1e-6  # what another order of additions makes here, as in models that are not divided
CASES = [
    (SCENARIOS, 2, "accumulated averaged clipped metric_objects moments plateau several_validations summed".split()),
    (SCENARIOS, 4, "small_batches unused_parameter weighted".split()),  # some processes have no samples of a batch
    (SCENARIOS, 2, ["tried"]),
    (OPTIONS, 2, ["compiled", "swapped", *ROUNDED]),
    (DIVIDED, 2, "of_blocks computed_again self_driven without_memory predicted".split()),
    (DIVIDED, 2, "frozen averaged_twice averaged_late by_method".split()),
    (DIVIDED, 4, ["replicated"]),
]


def run_all(words, size, **variables):
    ended = finish(fork(words, size, **variables))
    return [code for code, *_ in ended], "\n".join(problem for *_, problem in ended)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    alone, divided = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("divided")
    for words, size, names in CASES:
        for folder, count in ((alone, 1), (divided, size)):
            codes, problem = run_all([*words, folder, *names], count, TEST_PARALLEL="fsdp")
            assert codes == [0] * count, problem
    return alone, divided


@pytest.mark.parametrize(("size", "name"), [(size, name) for _, size, names in CASES for name in names])
def test_weights_and_metrics_are_those_of_one_process(trained, size, name):
    alone, divided = trained
    close = 0.01 if name in ROUNDED else 2 * CLOSE
    expected, expected_weights = read(alone, name, 0)
    for rank in range(size):
        told, weights = read(divided, name, rank)
        assert (told["status"], told["step"]) == (expected["status"], expected["step"])
        assert told["metrics"] == pytest.approx(expected["metrics"], rel=close)
        for place, value in weights.items():
            scale = expected_weights[place].abs().max()
            assert (value - expected_weights[place]).abs().max() <= close * scale, place


def test_frozen_weights_are_left_out_of_the_checkpoints_of_a_divided_model_too(trained):
    _, divided = trained
    (folder,) = (divided / "frozen" / "runs").iterdir()
    model, (_, weights) = Blocks(), read(divided, "frozen", 0)
    with blowtorch.open_run(folder).stored_weights("latest") as stored:
        assert {name for name in weights if name.startswith(("first.", "blocks.0."))} == set(stored.left_out)
        assert all(torch.equal(value, weights[name]) for name, value in stored.tensors.items())
    with pytest.raises(CheckpointError, match="left out 'first.weight', which was not trained"):
        blowtorch.open_run(folder).load_model(model, "latest")


@pytest.mark.parametrize("parallel", ["fsdp", "ddp"])
def test_a_sum_over_samples_has_nothing_of_a_process_without_any(tmp_path, parallel):
    for folder, size in ((tmp_path / "alone", 1), (tmp_path / "several", 4)):
        codes, problem = run_all([*DIVIDED, folder, "summed"], size, TEST_PARALLEL=parallel)
        assert codes == [0] * size, problem
    for name in ("looped", "driven"):
        (_, expected), (_, weights) = (read(tmp_path / who / "summed", name, 0) for who in ("alone", "several"))
        for place, value in weights.items():
            assert (value - expected[place]).abs().max() <= 2 * CLOSE * expected[place].abs().max(), (name, place)


def test_each_process_writes_its_pieces_and_anybody_loads_the_whole(trained):
    _, divided = trained
    (folder,) = (divided / "of_blocks" / "runs").iterdir()
    run = blowtorch.open_run(folder)
    checkpoint = run.checkpoint("latest").path
    names = {path.name for path in checkpoint.iterdir()}
    assert {"shard-00001-of-00002.pt", "shard-00002-of-00002.pt"} <= names
    sizes = [(checkpoint / name).stat().st_size for name in sorted(names) if name.startswith("shard")]
    assert max(sizes) < 1.5 * min(sizes), "each has about as much"
    loaded = run.load_model(Blocks(), "latest").state_dict()
    _, weights = read(divided, "of_blocks", 0)
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())


def go_on(folder, size, *happening, parallel="fsdp", dropout=0):
    codes, problem = run_all([*SCRIPT, folder, *happening], size, DROPOUT=dropout, TEST_PARALLEL=parallel)
    assert codes == [75 if happening else 0] * size, problem
    return problem


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    go_on(folder, 1)
    return folder


def assert_close(folder, other, size=1):
    expected = torch.load(other / "weights-0.pt")
    for rank in range(size):
        weights = torch.load(folder / f"weights-{rank}.pt")
        for name, value in weights.items():
            assert (value - expected[name]).abs().max() <= CLOSE * expected[name].abs().max()
    recorded, expected_recorded = (
        {(event["step"], name): value for event in events_of(where) for name, value in event.get("metrics", {}).items()}
        for where in (folder, other)
    )
    assert recorded == pytest.approx(expected_recorded, rel=CLOSE)


def test_a_run_goes_on_with_any_number_of_processes_divided_or_not(tmp_path, straight):
    folder = tmp_path / "run"
    go_on(folder, 4, 3, 13, "SIGTERM")
    go_on(folder, 2, 0, 25, "SIGTERM", parallel="ddp")
    go_on(folder, 2, 1, 33, "SIGTERM")
    shutil.copytree(folder, tmp_path / "other")
    go_on(folder, 1)
    assert_close(folder, straight)
    go_on(tmp_path / "other", 3)
    assert_close(tmp_path / "other", straight, 3)


def test_a_changed_byte_in_any_shard_is_found_and_the_checkpoint_before_is_taken(tmp_path, straight):
    go_on(tmp_path, 2, 1, 33, "SIGTERM")
    (checkpoints,) = (tmp_path / "runs").glob("*/checkpoints")
    newest = checkpoints / (checkpoints / "latest").read_text().strip()
    shard = newest / "shard-00002-of-00002.pt"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"shard-00002-of-00002\.pt has another .* checksum"):
        blowtorch.open_run(checkpoints.parent).load_model(nn.Identity(), newest.name)
    problem = go_on(tmp_path, 2)
    assert f"checkpoint {newest.name} is damaged (shard-00002-of-00002.pt has another" in problem
    assert_close(tmp_path, straight, 2)


def test_torchrun_starts_all_again_after_a_kill_and_they_go_on_bit_for_bit(tmp_path, monkeypatch):
    codes, problem = run_all([*SCRIPT, tmp_path / "straight"], 2, TEST_PARALLEL="fsdp")
    assert codes == [0, 0], problem
    monkeypatch.setenv("TEST_PARALLEL", "fsdp")
    words = [*SCRIPT, tmp_path / "killed", 1, 33, "SIGKILL"]
    ((code, _, problem),) = finish([start_by_torchrun(words, 2, "--max-restarts=2")])
    assert code == 0, problem
    assert_same_bits(tmp_path / "killed", tmp_path / "straight")


def test_what_cannot_be_divided_is_refused_in_all_processes_with_what_to_do(tmp_path):
    codes, problem = run_all([*DIVIDED, tmp_path, "refused"], 2, TEST_PARALLEL="fsdp")
    assert codes == [0, 0], problem
    for rank in range(2):
        problems = json.loads((tmp_path / "refused" / f"problems-{rank}.json").read_text())
        assert "nothing has filled 'first.weight'" in problems["unfilled"] and "@run.init" in problems["unfilled"]
        assert "@run.init draws by torch's 'bernoulli'" in problems["drawn"]
        assert "'0' has sparse gradients" in problems["sparse"]
        assert "'scale' is a parameter without dimensions" in problems["scalar"]
        assert "wrap names 'Lineer'" in problems["class"] and "Did you mean 'Linear'" in problems["class"]
        assert "2 processes make no 3 groups" in problems["replicas"]
        assert "does not ask for 'backward'" in problems["backward"]
        assert 'register_fsdp_forward_method(state.model, "name of the method")' in problems["method"]
        assert "validate_epoch is given a batch of which process 1 has no samples" in problems["unequal"]


def test_one_that_fails_amid_a_model_that_waits_for_all_is_named_as_the_cause(tmp_path):
    codes, problem = run_all([*SCRIPT, tmp_path, 1, 20, "error"], 2, TEST_PARALLEL="fsdp")
    assert codes == [1, 1]
    assert "ProcessError: process 1 of 2 has failed: ExtensionError: callback 'Happening'" in problem
    assert "process 1 of 2 has failed" in events_of(tmp_path)[-1]["reason"]


def test_a_process_that_cannot_even_say_that_it_has_no_room_is_not_waited_for(tmp_path):
    codes, problem = run_all([*DIVIDED, tmp_path, "without_room"], 2, TEST_PARALLEL="fsdp")
    assert codes == [0, 0], problem
    problems = json.loads((tmp_path / "without_room" / "problems.json").read_text())
    assert ["the last checkpoint of the run could not be written" in text for text in problems] == [True, True]
    assert "process 1: OSError" in problem


def test_a_process_that_dies_amid_its_pieces_is_not_waited_for(tmp_path):
    codes, problem = run_all([*DIVIDED, tmp_path, "dying"], 2, TEST_PARALLEL="fsdp")
    assert codes == [1, -9]
    assert "ProcessError: another one of 2 processes has ended" in problem


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("fdsp", "did you mean 'fsdp'"),
        ({"fsdp": {"warp": "blocks"}}, "fsdp has no option 'warp'. Did you mean 'wrap'"),
        ({"ddp": {"find_unused": True}}, "ddp has no option 'find_unused'"),
        ({"fsdp": {"precision": "bf8"}}, "expected one of bf16, fp16, fp32 as precision, got 'bf8'"),
        ({"fsdp": {"wrap": "Linear"}}, "expected 'blocks' or a list of names of classes as wrap"),
        ({"fsdp": {}, "ddp": {}}, "expected 'auto', 'ddp', 'fsdp'"),
    ],
)
def test_an_option_that_there_is_not_is_refused(option, problem):
    with pytest.raises(OptionError) as refusal:
        read_parallel(option)
    assert problem.lower() in str(refusal.value).lower()


@pytest.mark.parametrize("option", ["auto", "ddp", {"ddp": {"find_unused_parameters": True}}, {"ddp": None}])
def test_a_model_is_whole_unless_that_is_asked_for(option):
    assert read_parallel(option) is None


def test_blocks_are_the_outermost_that_stand_in_a_list_and_share_nothing_with_others():
    model = Blocks()
    assert find_blocks(model, "blocks") == list(model.blocks)
    assert find_blocks(model, ["Sequential"]) == list(model.blocks)
    first, second = model.blocks
    first.get_submodule("0").weight = second.get_submodule("0").weight
    assert find_blocks(model, "blocks") == []


def test_a_part_is_put_together_from_whatever_pieces_hold_it():
    whole = torch.arange(42).view(6, 7)
    bounds = [((0, 0), (4, 3)), ((0, 3), (4, 4)), ((4, 0), (2, 7))]
    pieces = [(offsets, cut_out(whole, offsets, shape)) for offsets, shape in bounds]
    tensor = TensorInPieces("'weight'", (6, 7), torch.int64, pieces)
    assert torch.equal(tensor.whole(), whole)
    assert torch.equal(tensor.cut((3, 2), (2, 3)), whole[3:5, 2:5])
    lacking = TensorInPieces("'weight'", (6, 7), torch.int64, pieces[:2])
    with pytest.raises(CheckpointError, match="the pieces of 'weight' hold 28 of the 42 numbers"):
        lacking.whole()
