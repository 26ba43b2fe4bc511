"""What a run records besides metrics."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from blowtorch import BlowtorchWarning, Run, ScriptError, hookimpl, open_run
from blowtorch.record.media import encode_png, to_pixels

QUIET = {"progress": False}


def decode_png(data):
    """The pixels of a file that filters no row."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    position, body = 8, b""
    while position < len(data):
        size, kind = struct.unpack(">I4s", data[position : position + 8])
        content = data[position + 8 : position + 8 + size]
        checksum = struct.unpack(">I", data[position + 8 + size : position + 12 + size])[0]
        assert checksum == zlib.crc32(kind + content)
        if kind == b"IHDR":
            width, height, depth, color = struct.unpack(">IIBB", content[:10])
            assert depth == 8
            channels = {0: 1, 4: 2, 2: 3, 6: 4}[color]
        elif kind == b"IDAT":
            body += content
        position += 12 + size
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, 1 + width * channels)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, channels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_file_holds_the_pixels(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    np.testing.assert_array_equal(decode_png(encode_png(pixels)), pixels)


@pytest.mark.parametrize(
    ("image", "shape", "first"),
    [
        (torch.zeros(4, 6), (4, 6, 1), 0),
        (torch.ones(3, 4, 6), (4, 6, 3), 255),
        (torch.full((1, 4, 6), 0.5, dtype=torch.bfloat16), (4, 6, 1), 128),
        (torch.full((5, 6, 3), 7, dtype=torch.uint8), (5, 6, 3), 7),
        (torch.zeros(3, 5, 3).bool(), (5, 3, 3), 0),
        (np.zeros((3, 5, 3), bool), (3, 5, 3), 0),
        (np.ones((4, 6), bool), (4, 6, 1), 255),
        (np.full((4, 6, 3), 2.0), (4, 6, 3), 255),
        (np.full((4, 6), np.nan), (4, 6, 1), 0),
        (np.full((4, 6), 300), (4, 6, 1), 255),
        (np.full((1, 4, 6), -3), (4, 6, 1), 0),
        ([[0.0, 1.0]], (1, 2, 1), 0),
    ],
)
def test_images_come_in_many_forms(image, shape, first):
    pixels = to_pixels(image)
    assert (pixels.shape, pixels.dtype.name, pixels[0, 0, 0]) == (shape, "uint8", first)


@pytest.mark.parametrize(
    "image", [torch.zeros(3), torch.zeros(7, 5, 6), torch.zeros(1, 3, 5, 5), "cat", None, [[], []]]
)
def test_what_is_no_image_says_so(image):
    with pytest.raises(ScriptError, match="expected an image"):
        to_pixels(image)


class Keeper:
    """A logger that keeps what it is given."""

    def __init__(self):
        self.given = []

    @hookimpl
    def log_image(self, name, path, step):
        self.given.append(("image", name, path.name, step, path.is_file()))

    @hookimpl
    def log_histogram(self, name, counts, edges, step):
        self.given.append(("histogram", name, counts, edges, step))

    @hookimpl
    def log_text(self, name, text, step):
        self.given.append(("text", name, text, step))

    @hookimpl
    def log_file(self, name, path, step):
        self.given.append(("file", name, path.read_text(), step))

    @hookimpl
    def log_metrics(self, metrics, step):
        self.given.append(("metrics", step))


def log_everything(run):
    @run.on("epoch_end")
    def show(state):
        run.log_image("samples of it", torch.full((3, 2, 2), state.epoch / 4))
        run.log_image("samples of it", torch.zeros(2, 2))
        run.log_histogram("weights", [0.0, 1.0, 1.0, float("nan")], bins=2)
        run.log_text("words", "two\nlines, é")
        Path("notes.txt").write_text(f"epoch {state.epoch}")
        run.log_file("notes", "notes.txt")


def test_everything_is_recorded_kept_and_handed_to_loggers_in_order(make_run, net, loader):
    run, keeper = make_run(validates=False), Keeper()
    log_everything(run)
    result = run(net, loader, loggers=[keeper], limit_train_batches=2, **QUIET)
    assert keeper.given == [
        ("metrics", 2),
        ("image", "samples of it", "step-00000002.png", 2, True),
        ("image", "samples of it", "step-00000002-1.png", 2, True),
        ("histogram", "weights", [1, 2], [0.0, 0.5, 1.0], 2),
        ("text", "words", "two\nlines, é", 2),
        ("file", "notes", "epoch 1", 2),
    ]
    events = [each for each in open_run(result.folder).events() if each["event"] in ("image", "file", "text")]
    assert [each.get("path") for each in events] == [
        "media/samples-of-it/step-00000002.png",
        "media/samples-of-it/step-00000002-1.png",
        None,
        "media/notes/step-00000002.txt",
    ]
    assert {(each["step"], each["epoch"]) for each in events} == {(2, 1)}
    assert decode_png((result.folder / events[0]["path"]).read_bytes())[0, 0].tolist() == [64, 64, 64]


def test_logging_leaves_the_weights_and_the_metric_lines_alone(make_run, data):
    states, lines = [], []
    for logs in (False, True):
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 1)
        run = make_run(validates=False)
        if logs:
            log_everything(run)
        result = run(net, torch.utils.data.DataLoader(data, 8, shuffle=True), max_epochs=3, **QUIET)
        states.append(net.weight.detach().clone())
        lines.append([each["metrics"] for each in open_run(result.folder).events() if each["event"] == "metrics"])
    assert torch.equal(*states)
    assert lines[0] == lines[1]


def test_a_continued_run_logs_what_a_killed_one_would_have(make_run, net, loader):
    """What the killed process had logged after its checkpoint is cut from the record, and written again."""
    run = make_run(validates=False)
    log_everything(run)
    first = run(net, loader, max_epochs=1, **QUIET)
    run(net, loader, max_epochs=2, resume=str(first.folder), **QUIET)
    images = [each["path"] for each in open_run(first.folder).events() if each["event"] == "image"]
    assert images == [f"media/samples-of-it/step-{step:08d}{again}.png" for step in (8, 16) for again in ("", "-1")]
    assert len(list((first.folder / "media" / "samples-of-it").iterdir())) == 4


def test_an_evaluation_keeps_nothing_and_outside_of_a_run_it_is_an_error(make_run, net, loader):
    run = Run(random_seed=0, command_line=[])

    @run.validate_step
    def validate(batch):
        run.log_text("words", "a")
        return {"loss": 1.0}

    assert run.evaluate(net, loader) == {"val/loss": 1.0}
    assert not Path("media").exists()
    with pytest.raises(ScriptError, match=r"run\.log_image was called while nothing is being trained"):
        run.log_image("samples", torch.zeros(2, 2))


def test_a_missing_file_and_a_histogram_of_nothing(make_run, net, loader):
    run = make_run(validates=False)

    @run.on("epoch_end")
    def show():
        run.log_histogram("weights", [float("nan")])
        run.log_file("notes", "missing.txt")

    with (
        pytest.warns(BlowtorchWarning, match="histogram 'weights' has no finite value at step 8"),
        pytest.raises(ScriptError, match=r"log_file\('notes', ...\) expects the path of a file, got 'missing.txt'"),
    ):
        run(net, loader, **QUIET)


def test_an_image_that_cannot_be_kept_does_not_end_the_run(make_run, net, loader):
    run = make_run(validates=False)

    @run.on("epoch_end")
    def show(state):
        (state.folder / "media" / "samples").write_text("in the way")
        run.log_image("samples", torch.zeros(2, 2))

    with pytest.warns(BlowtorchWarning, match="image 'samples' could not be kept"):
        assert run(net, loader, **QUIET).status == "finished"
