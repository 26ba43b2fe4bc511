"""What is logged and cannot be drawn, or is drawn with care: it ends no run."""

import itertools
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from blowtorch import BlowtorchWarning, ScriptError, hookimpl, open_run
from blowtorch.record.arrays import count_in_bins, to_numbers
from tests.core.small_runs import QUIET

LARGEST = float(np.finfo(np.float64).max)


def logging_once(run, log):
    """Have a run call `log` at the end of each of its epochs."""
    run.on("epoch_end")(log)
    return run


@pytest.mark.parametrize(
    "numbers",
    [
        [1e17] * 5,
        [LARGEST] * 3,
        [-LARGEST],
        [-LARGEST, 0.0, LARGEST],
        [1.0, 1.0 + 2**-52],
        [0.0, 5e-324],
        [1e-310, 9e-310],
        [0.0],
        np.float32([3e38, -3e38]),
    ],
)
@pytest.mark.parametrize("bins", [1, 64, 1000])
def test_numbers_that_lie_very_close_or_far_apart_are_counted(numbers, bins):
    counts, edges = count_in_bins(np.asarray(numbers, np.float64), bins)
    assert (sum(counts), len(counts), len(edges)) == (len(numbers), bins, bins + 1)
    assert all(left < right for left, right in itertools.pairwise(edges))
    assert np.isfinite(edges).all() and edges[0] <= min(numbers) and edges[-1] >= max(numbers)


def test_ordinary_numbers_are_counted_as_numpy_does():
    generator = np.random.default_rng(0)
    for exponent in range(-5, 6):
        numbers = generator.normal(size=40) * 10.0**exponent
        counts, edges = np.histogram(numbers, bins=13)
        assert count_in_bins(numbers, 13) == (counts.tolist(), edges.tolist())


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn), [1, 2]),
        (torch.tensor([1.0, 2.0], dtype=torch.bfloat16), [1, 2]),
        (torch.tensor([True, False]), [1, 0]),
        (torch.eye(2).to_sparse(), [1, 0, 0, 1]),
        (torch.nested.nested_tensor([torch.zeros(1), torch.ones(2)], layout=torch.jagged), [0, 1, 1]),
        (torch.tensor([1 + 2j]).conj().imag, [-2]),
        ([[1, 2], [3]], [1, 2, 3]),
        ([torch.ones(2, requires_grad=True), torch.zeros(3)], [1, 1, 0, 0, 0]),
        ({"weight": torch.ones(1), "bias": [2.0, float("nan")]}, [1, 2]),
        ([10**400, 1], [1]),
        (np.float64(3), [3]),
    ],
)
def test_numbers_are_found_in_tensors_and_containers_of_any_kind(values, numbers):
    assert to_numbers(values).tolist() == numbers


@pytest.mark.parametrize("values", ["abc", ["1", "2"], object(), {1, 2}, np.array(["2020-01-01"], "datetime64[D]")])
def test_what_holds_no_numbers_says_so(values):
    with pytest.raises(ScriptError, match="expected numbers, got"):
        to_numbers(values)


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        (torch.zeros(3, device="meta"), "cannot be drawn at step 8, so it is left out: Cannot copy out of meta"),
        (torch.zeros(3, dtype=torch.complex64), "cannot be drawn at step 8, .*: complex numbers have no order"),
        (torch.full((3,), float("inf")), "has no finite value at step 8, so it is left out"),
        (None, "has no finite value at step 8, so it is left out"),
    ],
)
def test_a_histogram_that_cannot_be_drawn_is_left_out_with_one_warning(make_run, net, loader, values, warning):
    run = make_run(validates=False)
    logging_once(run, lambda: run.log_histogram("weights", values))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run(net, loader, max_epochs=3, **QUIET)
    assert result.status == "finished"
    [message] = [str(each.message) for each in caught if each.category is BlowtorchWarning]
    assert message.startswith("histogram 'weights' ")
    with pytest.raises(BlowtorchWarning, match=warning):
        warnings.warn(message, BlowtorchWarning, stacklevel=1)


class Figure:
    """A figure that cannot be drawn."""

    def savefig(self, path, format):
        path.write_bytes(b"half of it")
        raise RuntimeError("no such font")


@pytest.mark.parametrize(
    ("image", "warning"),
    [
        (torch.zeros(3, 0, 5), "expected an image, got one without pixels"),
        (torch.zeros(3, 4, 5, device="meta"), "Cannot copy out of meta"),
        ([[1, 2], [3]], "inhomogeneous"),
        (Figure(), "savefig raised RuntimeError: no such font"),
    ],
)
def test_an_image_that_cannot_be_drawn_is_left_out(make_run, net, loader, image, warning):
    run = make_run(validates=False)
    logging_once(run, lambda: run.log_image("samples", image))
    with pytest.warns(BlowtorchWarning, match=f"image 'samples' cannot be drawn at step 8, .*{warning}"):
        result = run(net, loader, **QUIET)
    assert result.status == "finished"
    assert not list(result.folder.glob("media/*/*"))


@pytest.mark.parametrize("bins", [0, -1, 2.0, True, "auto", None, [0, 1], 10**9])
def test_a_histogram_has_a_number_of_bins(make_run, net, loader, bins):
    run = make_run(validates=False)
    logging_once(run, lambda: run.log_histogram("weights", [1.0], bins=bins))
    with pytest.raises(ScriptError, match=r"log_histogram\('weights', ...\) expects bins from 1 to 65536, got"):
        run(net, loader, **QUIET)


@pytest.mark.parametrize("name", ["", None, 3])
@pytest.mark.parametrize("call", ["log_image", "log_histogram", "log_text", "log_file"])
def test_what_is_logged_has_a_name(make_run, net, loader, call, name):
    run = make_run(validates=False)
    logging_once(run, lambda: getattr(run, call)(name, "x"))
    with pytest.raises(ScriptError, match=rf"run\.{call} expects a name first, a string that is not empty"):
        run(net, loader, **QUIET)


@pytest.mark.parametrize("path", [None, 3, "", "a\0b", "."])
def test_a_file_has_a_path(make_run, net, loader, path):
    run = make_run(validates=False)
    logging_once(run, lambda: run.log_file("notes", path))
    with pytest.raises(ScriptError, match=r"log_file\('notes', ...\) expects the path of a file"):
        run(net, loader, **QUIET)


class Keeper:
    """A logger that keeps names and texts, which it must be able to encode."""

    def __init__(self):
        self.given = []

    @hookimpl
    def log_image(self, name, path, step):
        self.given.append((name, path.is_file()))

    @hookimpl
    def log_text(self, name, text, step):
        self.given.append((name, text))

    @hookimpl
    def log_file(self, name, path, step):
        self.given.append((name, path.is_file()))

    @hookimpl
    def log_metrics(self, metrics, step):
        self.given += [(name, value) for name, value in metrics.items() if "x" in name]


def test_names_are_as_long_as_they_are_and_what_utf8_cannot_hold_is_replaced(make_run, net, loader):
    run, keeper = make_run(validates=False), Keeper()
    long = "図" * 100

    def log(state):
        run.log_image(long, torch.zeros(2, 2))
        file = Path("notes." + "é" * 100)
        file.write_text("a")
        run.log_file("\udc80y", file)
        run.log_text("\udc80", "a\udfff, 😀")
        state.log({"x\udc80": 1.0})
        state.say("said \udc80")

    logging_once(run, log)
    result = run(net, loader, loggers=[keeper], limit_train_batches=1, log_every="10 steps", **QUIET)
    assert keeper.given == [(long, True), ("\ufffdy", True), ("\ufffd", "a\ufffd, 😀"), ("x\ufffd", 1.0)]
    assert [text["text"] for text in open_run(result.folder).events() if text["event"] == "text"] == ["a\ufffd, 😀"]
    assert "said \\udc80" in (result.folder / "console.log").read_text(encoding="utf-8")
    for line in (result.folder / "record.jsonl").read_bytes().splitlines():
        json.dumps(json.loads(line), ensure_ascii=False).encode()
