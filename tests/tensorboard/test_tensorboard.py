import copy
import io
import math
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as TensorAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util import tensor_util

from blowtorch import Run, RunInfo
from blowtorch.plugins import Plugins
from blowtorch.testing import LoggerContract
from blowtorch_tensorboard import TensorBoardLogger, flatten

CONFIG = {"model": {"width": 3, "sizes": [1, 2], "norm": None}, "rate": 0.1}


@pytest.fixture
def info(tmp_path):
    def make(resumed=False):
        return RunInfo(
            id="abc",
            name="brave-otter-3",
            folder=tmp_path,
            own_folder=tmp_path / "tensorboard",
            config=CONFIG,
            resumed=resumed,
        )

    return make


@pytest.fixture
def make_media_run(tmp_path, monkeypatch):
    def make():
        monkeypatch.chdir(tmp_path)
        (tmp_path / "notes.txt").write_text("kept")
        run = Run(random_seed=0, command_line=["train.py"])
        run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))

        @run.train_step
        def step(batch, model):
            return model(batch).mean()

        @run.on("epoch_end")
        def show():
            run.log_image("samples", torch.ones(3, 2, 3))
            run.log_histogram("weights", [0.0, 1.0, 1.0], bins=2)
            run.log_text("words", "a *b*\nc")
            run.log_file("notes", tmp_path / "notes.txt")

        return run(torch.nn.Linear(2, 1), [torch.ones(4, 2)], loggers="tensorboard", progress=False).folder

    return make


def write(info, steps, rewind=None, status="finished", offset=0.0):
    """One process of a run."""
    logger = TensorBoardLogger()
    logger.log_start(info)
    if rewind is not None:
        logger.log_rewind(rewind)
    for step in steps:
        logger.log_metrics({"train/loss": step + offset}, step, 1000.0 + step)
    logger.log_flush()
    logger.log_finish(status)


def read(info):
    accumulator = EventAccumulator(str(info.own_folder), size_guidance={"scalars": 0, "tensors": 0})
    return accumulator.Reload()


def test_metrics_keep_name_step_value_and_time(info):
    write(info(), range(1, 4))
    scalars = read(info()).Scalars("train/loss")
    assert [(each.step, each.value, each.wall_time) for each in scalars] == [
        (1, 1.0, 1001.0),
        (2, 2.0, 1002.0),
        (3, 3.0, 1003.0),
    ]


def test_a_rewound_run_shows_each_step_once_with_the_later_value(info):
    write(info(), range(1, 11), status="stopped")
    write(info(resumed=True), range(6, 13), rewind=5, offset=100.0)
    scalars = read(info()).Scalars("train/loss")
    assert [each.step for each in scalars] == list(range(1, 13))
    assert [each.value for each in scalars] == [1.0, 2.0, 3.0, 4.0, 5.0, *(step + 100.0 for step in range(6, 13))]


def test_values_that_are_not_finite_and_odd_names_are_written(info):
    logger = TensorBoardLogger()
    logger.log_start(info())
    metrics = {"a b/é": float("nan"), "up": float("inf"), "count": 3}
    given = copy.deepcopy(metrics)
    logger.log_metrics(metrics, 1, 1.0)
    logger.log_finish("finished")
    accumulator = read(info())
    assert math.isnan(accumulator.Scalars("a b/é")[0].value)
    assert accumulator.Scalars("up")[0].value == float("inf")
    assert accumulator.Scalars("count")[0].value == 3.0
    assert metrics.keys() == given.keys()


def hparams_of(info):
    accumulator = TensorAccumulator(str(info.own_folder)).Reload()
    found = {}
    for run_tag in accumulator.PluginTagToContent("hparams"):
        data = HParamsPluginData.FromString(accumulator.SummaryMetadata(run_tag).plugin_data.content)
        found[data.WhichOneof("data")] = getattr(data, data.WhichOneof("data"))
    return found


@pytest.mark.parametrize(("status", "number"), [("finished", 1), ("failed", 2), ("stopped", 0)])
def test_the_configuration_and_the_status_are_in_the_hparams_tab(info, status, number):
    write(info(), [1], status=status)
    hparams = hparams_of(info())
    values = dict(hparams["session_start_info"].hparams)
    assert values["model.width"].number_value == 3 and values["model.sizes"].string_value == "[1, 2]"
    assert hparams["session_start_info"].group_name == "brave-otter-3"
    assert hparams["session_end_info"].status == number
    texts = read(info()).Tensors("status")
    assert texts[0].tensor_proto.string_val[0].decode() == status


def test_hparams_can_be_left_out(info):
    logger = TensorBoardLogger(hparams=False)
    logger.log_start(info())
    logger.log_metrics({"a": 1.0}, 1, 1.0)
    logger.log_finish("finished")
    assert not [tag for tag in read(info()).Tags()["tensors"] if tag.startswith("_hparams_")]


def test_finishing_twice_or_without_a_start_is_no_error(info):
    TensorBoardLogger().log_finish("finished")
    logger = TensorBoardLogger()
    logger.log_start(info())
    logger.log_finish("finished")
    logger.log_finish("finished")


def test_an_event_before_the_start_is_an_error_that_says_so():
    with pytest.raises(RuntimeError, match="before log_start"):
        TensorBoardLogger().log_metrics({"a": 1.0}, 1, 1.0)


def test_it_keeps_the_contract_of_a_logger_and_is_found_by_name():
    plugin = Plugins().create("logger", {"tensorboard": {"hparams": False}})
    assert plugin.package == "blowtorch-tensorboard"
    assert isinstance(plugin.instance, TensorBoardLogger)


def test_flatten_names_what_is_nested():
    assert flatten(CONFIG) == [("model.width", 3), ("model.sizes", "[1, 2]"), ("model.norm", "None"), ("rate", 0.1)]


def test_a_run_that_is_stopped_and_continued_is_one_curve(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def train(stop_at, **options):
        run = Run(config=CONFIG, random_seed=1, command_line=[])
        run.train_step(lambda batch, model: model(batch).pow(2).mean())
        run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.01))

        @run.on("train_step_end")
        def stop(state):
            if state.step == stop_at:
                signal.raise_signal(signal.SIGTERM)

        options |= {"loggers": ["tensorboard"], "progress": False, "log_every": "1 steps", "resume": "auto"}
        options |= {"save_path": "logs", "run_name": "one"}
        return run(torch.nn.Linear(4, 1), [torch.ones(8, 4)] * 20, **options)

    train(7)
    result = train(None)
    folder = result.folder / "loggers" / "tensorboard"
    scalars = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload().Scalars("train/loss")
    assert [each.step for each in scalars] == list(range(1, 21))


@pytest.mark.parametrize("library", ["torch", "tensorboard", "numpy"])
def test_importing_it_imports_no_heavy_library(library):
    code = f"import sys, blowtorch_tensorboard; sys.exit({library!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_images_histograms_texts_and_files_are_shown(make_media_run):
    """Read back with TensorBoard's own reader, and the picture with the library that it uses for pictures."""
    folder = make_media_run()
    events = str(folder / "loggers" / "tensorboard")
    [image] = EventAccumulator(events).Reload().Images("samples")
    found = TensorAccumulator(events, size_guidance={"tensors": 0}).Reload()
    assert (image.width, image.height, image.step) == (3, 2, 1)
    picture = Image.open(io.BytesIO(image.encoded_image_string))
    assert picture.size == (3, 2) and picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    rows = tensor_util.make_ndarray(found.Tensors("weights")[0].tensor_proto)
    assert rows.tolist() == [[0.0, 0.5, 1.0], [0.5, 1.0, 2.0]]
    texts = {tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in ("words", "notes")}
    assert texts["words"] == "    a *b*\n    c"
    assert texts["notes"].strip() == str(folder / "media" / "notes" / "step-00000001.txt")


class TestContract(LoggerContract):
    def make_logger(self, tmp_path):
        return TensorBoardLogger()
