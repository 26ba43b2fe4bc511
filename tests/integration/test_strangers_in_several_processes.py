"""Extensions of strangers, written for one process, in two: what each of them stores is what it does in one.

The strangers are the complete examples of the pages in docs/extensions, the packages in examples/plugins and the two
loggers of this repository, installed as pip would have it, and not changed by a letter.
"""

import json
import re
import shutil
import sqlite3
import tomllib

import pytest
from torch import nn

from blowtorch import open_run
from blowtorch.extension.found import GROUPS
from tests.core.parallel.processes import ROOT, finish, fork
from tests.wandb.offline_files import read, rows

CLOSE = 1e-6
MEASURED = ["train", "train_epoch", "val", "lr"]
MEDIA = {"picture": "image", "numbers": "histogram", "words": "text", "notes": "file"}
KINDS = ["logger", "checkpoint-backend", "scheduler", "config-source", "callback"]
SETTINGS = """
[model]
rate = 0.05
[run]
scheduler = {acme: {decay: 10}}
callbacks = [{acme: {target: 0.53}}]
"""
SCRIPT = """
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path("../site").resolve()))
from blowtorch import Run

run = Run(random_seed=1)


@run.train_step
@run.validate_step
def step(batch, model):
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.SGD(model.parameters(), lr=run["model.rate"])


@run.on("epoch_end")
def show(state):
    run.log_image("picture", torch.linspace(0, 1, 12).view(1, 3, 4))
    run.log_histogram("numbers", [0.0, 1.0, 1.0], bins=2)
    run.log_text("words", f"after epoch {state.epoch}")
    run.log_file("notes", "notes.txt")


if __name__ == "__main__":
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, x.sum(1, keepdim=True).sin())
    loaders = DataLoader(data, 8, shuffle=True), DataLoader(data, 20)
    run(nn.Linear(4, 1), *loaders, log_every="1 steps", checkpoint_every="3 steps", progress=False)
"""
BACKENDS = {"acme": "acme", "fsspec": "{{fsspec: {{url: 'file://{place}/store'}}}}"}
LOGGERS = {"acme": "[sqlite, tensorboard, wandb, acme]", "fsspec": "[acme]"}


def install(site, package, entry_points):
    """Write down what pip would, for a package whose modules are in `site`."""
    info = site / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Dist: blowtorch-core>=0.1,<0.2\n"
    (info / "METADATA").write_text(metadata)
    lines = [
        f"[{group}]\n{name} = {target}\n" for group, names in entry_points.items() for name, target in names.items()
    ]
    (info / "entry_points.txt").write_text("".join(lines))


def install_all(site):
    site.mkdir()
    for kind in KINDS:
        page, module = (ROOT / "docs" / "extensions" / f"{kind}.md").read_text(), f"acme_{kind.replace('-', '_')}"
        (site / f"{module}.py").write_text(page.partition("```python\n")[2].partition("```")[0])
        (name,) = re.findall(r'^acme = "blowtorch_acme:(\w+)"$', page, re.MULTILINE)
        install(site, f"acme-{kind}", {GROUPS[kind]: {"acme": f"{module}:{name}"}})
    for package in ("blowtorch-sqlite", "blowtorch-fsspec"):
        place = ROOT / "examples" / "plugins" / package
        shutil.copytree(place / "src", site, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        install(site, package, tomllib.loads((place / "pyproject.toml").read_text())["project"]["entry-points"])


def lay_out(folder, has_loggers):
    """Make the folders of two runs, each with a backend of its own; each run is ended after 9 steps, and goes on."""
    install_all(folder / "site")
    jobs = []
    for name, backend in BACKENDS.items():
        place = folder / name
        place.mkdir()
        for file, text in {"train.py": SCRIPT, "settings.acme": SETTINGS, "notes.txt": "kept"}.items():
            (place / file).write_text(text)
        words = ["with", "settings.acme", f"run.loggers={LOGGERS[name] if has_loggers else []}"]
        words.append(f"run.checkpoint_backend={backend.format(place=place)}")
        jobs.append([str(place), *words, "run.max_steps=9"])
        jobs.append([str(place), *words, "run.max_steps=60", "run.resume=train_logs/*"])
    return jobs


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folders of the runs in one process, without loggers, and in two."""
    for package in ("tensorboard", "wandb"):
        pytest.importorskip(package)
    folders = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("two")
    started = []
    for size, folder in enumerate(folders, 1):
        words = ["-m", "tests.integration.scripts_in_turn", json.dumps(lay_out(folder, size == 2))]
        started += fork(words, size, HOME=folder, WANDB_MODE="offline")
    for code, _, problem in finish(started):
        assert code == 0, problem
        assert "Warning" not in problem
    return folders


def only_run(place):
    (folder,) = (place / "train_logs").iterdir()
    return open_run(folder)


def from_lines(folder):
    """What the twenty lines of the page on loggers have written: a recording that came twice is there twice."""
    for line in (folder / "acme" / "metrics.txt").read_text().splitlines():
        step, name, value = line.split("\t")
        yield int(step), name, float(value)


def from_sqlite(folder):
    with sqlite3.connect(folder / "sqlite" / "metrics.db") as database:
        assert database.execute("select status from runs").fetchall() == [("finished",)]
        yield from database.execute("select step, name, value from metrics").fetchall()


def from_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    for name in shown.Tags()["scalars"]:
        yield from ((each.step, name, each.value) for each in shown.Scalars(name))


def from_wandb(folder):
    for row in rows(read(folder / "wandb")):
        yield from ((row["step"], name, value) for name, value in row.items() if name.partition("/")[0] in MEASURED)


STORES = [from_lines, from_sqlite, from_tensorboard, from_wandb]


def recorded(view):
    lines = [event for event in view.events() if event["event"] == "metrics"]
    return [(event["step"], name, value) for event in lines for name, value in event["metrics"].items()]


def assert_same(told, expected):
    told, expected = sorted(told), sorted(expected)
    assert [each[:2] for each in told] == [each[:2] for each in expected]
    assert [each[2] for each in told] == pytest.approx([each[2] for each in expected], rel=CLOSE)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_record_is_that_of_one_process(both, name):
    """The callback ends the run, the rates are those of the scheduler, and the first one those of the settings."""
    alone, two = (only_run(folder / name) for folder in both)
    assert_same(recorded(two), recorded(alone))
    (last,) = [event for event in two.events() if event["event"] == "finish"][-1:]
    assert (two.status, last["step"]) == (alone.status, recorded(alone)[-1][0])
    assert 9 < last["step"] < 60 and "val/loss has reached 0.53" in (two.path / "console.log").read_text()
    rates = [value for _, metric, value in recorded(two) if metric == "lr"]
    assert rates[0] == pytest.approx(0.05) and rates[9] == pytest.approx(0.05 * 1.9**-0.5)


@pytest.mark.parametrize("store", STORES)
def test_a_logger_stores_each_recording_of_one_process_once(both, store):
    alone, two = (only_run(folder / "acme") for folder in both)
    assert_same(store(two.path / "loggers"), recorded(alone))


def test_a_logger_stores_images_histograms_texts_and_files_once(both):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    alone, two = (only_run(folder / "acme") for folder in both)
    expected = {kind: [each["step"] for each in alone.events() if each["event"] == kind] for kind in MEDIA.values()}
    steps = expected["image"]
    assert steps[:2] == [7, 14] and all(of_kind == steps for of_kind in expected.values())
    shown = EventAccumulator(str(two.path / "loggers" / "tensorboard")).Reload()
    assert [each.step for each in shown.Images("picture")] == steps
    assert [[each.step for each in shown.Tensors(name)] for name in ("words", "numbers", "notes")] == [steps] * 3
    names = [
        (row["step"], {name.partition("/")[0] for name in row}) for row in rows(read(two.path / "loggers" / "wandb"))
    ]
    told = [(step, name) for step, of_row in names for name in ("picture", "numbers", "words") if name in of_row]
    assert told == [(step, name) for step in steps for name in ("picture", "numbers", "words")]


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_stores_and_gives_back_the_checkpoints_of_one_process(both, name, monkeypatch):
    monkeypatch.syspath_prepend(both[1] / "site")
    told = []
    for folder in both:
        monkeypatch.chdir(folder / name)
        view = only_run(folder / name)
        assert not list((view.path / "checkpoints").glob("step-*"))  # they are where the backend puts them
        model = view.load_model(nn.Linear(4, 1), "latest")
        told.append(([each.step for each in view.checkpoints], model.weight.tolist()[0] + model.bias.tolist()))
    (expected_steps, expected_weights), (steps, weights) = told
    assert steps == expected_steps and len(steps) > 1
    assert weights == pytest.approx(expected_weights, rel=CLOSE)
