import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import wandb

from blowtorch import Run, RunInfo
from blowtorch.plugins import Plugins
from blowtorch.record.media import encode_png
from blowtorch.testing import LoggerContract
from blowtorch_wandb import WandbLogger, has_account
from tests.wandb.offline_files import read, rows, summary_of

CONFIG = {"model": {"width": 3, "norm": None}, "rate": 0.1}


@pytest.fixture(autouse=True)
def without_an_account(tmp_path, monkeypatch):
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "NETRC", "WANDB_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def info(tmp_path):
    (tmp_path / "wandb-logger").mkdir()

    def make(resumed=False):
        return RunInfo(
            id="abc123",
            name="brave-otter-3",
            folder=tmp_path,
            own_folder=tmp_path / "wandb-logger",
            config=CONFIG,
            resumed=resumed,
        )

    return make


def test_a_run_is_kept_offline_without_an_account_and_read_back(info, capfd):
    logger = WandbLogger(project="mine", tags=["a"], notes="b")
    logger.log_start(info())
    metrics = {"train/loss": 0.5, "odd name/é": 2, "val/x": float("nan")}
    given = copy.deepcopy(metrics)
    logger.log_metrics(metrics, 10, 2, 1000.5)
    logger.log_metrics({"train/loss": 0.25}, 20, 2, 1001.5)
    logger.log_finish("finished", {"train/loss": 0.25, "best/val/loss": 0.2})

    found = read(info().own_folder)
    run = found["run"][0]
    assert (run.run_id, run.display_name, run.project) == ("abc123", "brave-otter-3", "mine")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["model"] == {"width": 3, "norm": None} and config["rate"] == 0.1
    first, second = rows(found)
    assert first["train/loss"] == 0.5 and first["step"] == 10 and first["epoch"] == 2
    assert first["odd name/é"] == 2 and first["val/x"] != first["val/x"] and first["_timestamp"] == 1000.5
    assert second["train/loss"] == 0.25 and second["step"] == 20
    assert any(metric.glob_name == "*" and metric.step_metric == "step" for metric in found["metric"])
    assert summary_of(found)["status"] == "finished" and summary_of(found)["best/val/loss"] == 0.2
    assert found["exit"][0].exit_code == 0
    assert metrics.keys() == given.keys()
    out, err = capfd.readouterr()
    assert "to send it: wandb sync" in out and out.count("\n") == 1
    assert err == ""


def test_a_failed_run_is_shown_as_failed(info):
    logger = WandbLogger()
    logger.log_start(info())
    logger.log_finish("failed", {})
    found = read(info().own_folder)
    assert found["exit"][0].exit_code == 1 and summary_of(found)["status"] == "failed"


def test_a_continued_run_has_the_same_id_and_rows_for_steps_that_went_back(info):
    for resumed, steps in ((False, range(1, 6)), (True, range(4, 8))):
        logger = WandbLogger()
        logger.log_start(info(resumed))
        for step in steps:
            logger.log_metrics({"train/loss": float(step + 100 * resumed)}, step, 1, float(step))
        logger.log_finish("stopped", {})
    found = read(info().own_folder)
    assert {run.run_id for run in found["run"]} == {"abc123"}
    logged = [(row["step"], row["train/loss"]) for row in rows(found)]
    assert logged == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (4, 104), (5, 105), (6, 106), (7, 107)]


def test_finishing_twice_or_without_a_start_is_no_error(info):
    WandbLogger().log_finish("finished", {})
    logger = WandbLogger(mode="disabled")
    logger.log_start(info())
    logger.log_finish("finished", {})
    logger.log_finish("finished", {})


def test_an_event_before_the_start_is_an_error_that_says_so():
    with pytest.raises(RuntimeError, match="before log_start"):
        WandbLogger().log_metrics({"a": 1.0}, 1, 1, 1.0)


def test_an_account_is_a_key_in_the_environment_or_in_netrc(tmp_path, monkeypatch):
    assert not has_account()
    (tmp_path / "home" / ".netrc").write_text("machine example.org login a password b\n")
    assert not has_account()
    (tmp_path / "home" / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    assert has_account()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_account()
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert has_account()


def test_it_keeps_the_contract_of_a_logger_and_is_found_by_name():
    plugin = Plugins().create("logger", {"wandb": {"project": "mine"}})
    assert plugin.package == "blowtorch-wandb"
    assert plugin.instance.project == "mine"


def test_a_run_names_it_and_every_metric_arrives(tmp_path):
    run = Run(config=CONFIG, random_seed=1, command_line=[])
    run.train_step(lambda batch, model: model(batch).pow(2).mean())
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.01))
    options = {"loggers": ["wandb"], "progress": False, "log_every": "2 steps"}
    result = run(torch.nn.Linear(4, 1), [torch.ones(8, 4)] * 10, **options)
    logged = rows(read(result.folder / "loggers" / "wandb"))
    assert [row["step"] for row in logged] == [2, 4, 6, 8, 10, 10]
    assert logged[-2]["train/loss"] == result.metrics["train/loss"]


def test_secrets_on_the_command_line_are_not_kept(monkeypatch):
    words = ["train.py", "--token", "hunter2", "with", "store=redis://me:hunter2@host", "api_key=hunter2"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "orig_argv", ["python", *words])
    run = Run(config={"store": "", "api_key": ""}, random_seed=1, command_line=words)
    assert run["api_key"] == "hunter2" and run["store"] == "redis://me:hunter2@host"
    run.train_step(lambda batch, model: model(batch).pow(2).mean())
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.01))
    result = run(torch.nn.Linear(4, 1), [torch.ones(8, 4)] * 2, loggers=["wandb"], progress=False)
    assert rows(read(result.folder / "loggers" / "wandb"))
    assert not any(b"hunter2" in path.read_bytes() for path in result.folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("library", ["torch", "wandb", "numpy"])
def test_importing_it_imports_no_heavy_library(library):
    code = f"import sys, blowtorch_wandb; sys.exit({library!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_mode_that_does_not_exist_is_refused_when_it_is_named():
    with pytest.raises(ValueError, match="mode: expected 'online', 'offline' or 'disabled', got 'of'"):
        WandbLogger(mode="of")


def test_images_histograms_texts_and_files_are_kept(info, tmp_path):
    media = tmp_path / "media" / "notes"
    media.mkdir(parents=True)
    path = media / "step-00000003.png"
    path.write_bytes(encode_png(np.zeros((2, 3, 1), np.uint8)))
    logger = WandbLogger(mode="offline")
    logger.log_start(info())
    logger.log_image("samples", path, 3)
    logger.log_histogram("weights", [1, 2], [0.0, 0.5, 1.0], 3)
    logger.log_text("words", "a <b>\nc", 3)
    logger.log_file("notes", path, 3)
    logger.log_finish("finished", {})
    image, histogram, text = rows(read(info().own_folder))
    assert {each["step"] for each in (image, histogram, text)} == {3}
    assert image["samples/_type"] == "image-file" and (image["samples/width"], image["samples/height"]) == (3, 2)
    assert histogram["weights/values"] == [1, 2] and histogram["weights/bins"] == [0.0, 0.5, 1.0]
    [page] = info().own_folder.rglob("media/html/*.html")
    assert page.read_text() == "<pre>a &lt;b&gt;\nc</pre>"
    assert list(info().own_folder.rglob("files/notes/step-00000003.png"))


def test_a_histogram_with_more_bins_than_wandb_takes_is_shown_with_fewer(info):
    logger = WandbLogger(mode="offline")
    logger.log_start(info())
    logger.log_histogram("weights", [1] * 1025, [float(edge) for edge in range(1026)], 3)
    logger.log_finish("finished", {})
    [row] = rows(read(info().own_folder))
    assert row["weights/values"] == [3] * 341 + [2]
    assert row["weights/bins"] == [float(edge) for edge in range(0, 1024, 3)] + [1025.0]


class TestContract(LoggerContract):
    def make_logger(self, tmp_path):
        return WandbLogger(mode="offline")

    def drop_logger(self, logger):
        wandb.teardown()  # its service goes when the process that started it does
