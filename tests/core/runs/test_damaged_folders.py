"""Run folders that somebody has damaged: whoever reads them names the file and the line, and goes on where it can."""

import json
import shutil

import pytest
import yaml
from torch import nn

from blowtorch import BlowtorchError, BlowtorchWarning, RunFolderError, find_runs, hookimpl, open_run
from tests.core.small_runs import QUIET

GARBAGE = [
    b"",
    b"null\n",
    b"[1]\n",
    b"{}\n",
    b"3\n",
    b"true\n",
    b"\xff\xfe\n",
    b"\x00\n",
    b"[" * 20_000 + b"\n",
    b"a: [\n",
]


@pytest.fixture
def run_folder(make_run, net, loader):
    return make_run()(net, loader, loader, max_epochs=2, run_name="damaged", **QUIET).folder


def set_value(path, key, value):
    content = yaml.safe_load(path.read_text())
    del content[key]
    path.write_text(yaml.safe_dump(content) + ("" if value is None else f"{key}: {value}\n"))


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("number", "x", r"run.yaml:\d+ is damaged: expected a whole number as number, got 'x'"),
        ("number", "null", r"run.yaml:\d+ is damaged: expected a whole number as number, got None"),
        ("number", "true", r"run.yaml:\d+ is damaged: expected a whole number as number, got True"),
        ("number", None, r"run.yaml is damaged: it has no number"),
        ("status", "[x]", r"run.yaml:\d+ is damaged: expected a text as status, got \['x'\]"),
        ("name", "{a: b}", r"run.yaml:\d+ is damaged: expected a text as name"),
        ("id", None, r"run.yaml is damaged: it has no id"),
        ("seed", "many", r"run.yaml:\d+ is damaged: expected a whole number as seed, got 'many'"),
        ("sessions", "[1]", r"run.yaml:\d+ is damaged: expected a list of mappings as sessions"),
        ("options", "fast", r"run.yaml:\d+ is damaged: expected a mapping as options, got 'fast'"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_line(run_folder, make_run, net, loader, key, value, problem):
    path = run_folder / "run.yaml"
    shutil.copytree(run_folder, run_folder.with_name("26-01-01_00-00-00_sound-99"))
    set_value(path, key, value)
    with pytest.raises(RunFolderError, match=problem):
        open_run(run_folder)
    with pytest.raises(RunFolderError, match=problem):
        make_run()(net, loader, loader, resume=str(run_folder), **QUIET)
    with pytest.warns(BlowtorchWarning, match=f"{problem}.*; the run is left out"):
        found = find_runs(run_folder.parent)
    assert [view.path.name for view in found] == ["26-01-01_00-00-00_sound-99"]


@pytest.mark.parametrize("content", GARBAGE, ids=lambda content: repr(content[:8]))
@pytest.mark.parametrize("file", ["run.yaml", "config.yaml", "record.jsonl", "owner.lock", "checkpoints/best"])
def test_whatever_stands_in_a_file_nothing_else_is_raised_than_what_is_documented(run_folder, file, content):
    (run_folder / file).write_bytes(content)
    reads = [
        lambda view: (view.id, view.name, view.number, view.status, repr(view)),
        lambda view: view.config.to_dict(),
        lambda view: list(view.events()),
        lambda view: view.metrics(),
        lambda view: view.checkpoint("best"),
        lambda view: view.checkpoint("latest"),
    ]
    for read in reads:
        try:
            read(open_run(run_folder))
        except BlowtorchError as error:
            assert str(run_folder) in str(error)  # noqa: PT017
    with pytest.warns(BlowtorchWarning) if file == "run.yaml" else pytest.MonkeyPatch.context():
        assert len(find_runs(run_folder.parent)) == (file != "run.yaml")


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "[1]",
        "{}",
        '{"event": 1}',
        '{"event": "metrics"}',
        '{"event": "metrics", "step": 1, "metrics": {"a": "abc"}}',
        '{"event": "metrics", "step": 1, "metrics": {"a": [1]}}',
        '{"event": "metrics", "step": "x", "metrics": {"a": 1}}',
        '{"event": "metrics", "step": 1e400, "metrics": {"a": 1}}',
        '{"event": "metrics", "step": 1, "metrics": [1]}',
        '{"event": "metrics", "step": 100000000000000000000, "metrics": {"a": 1}}',
        "[" * 20_000,
    ],
    ids=lambda line: line[:60],
)
def test_an_event_that_cannot_be_is_named_with_its_line(run_folder, line):
    record = run_folder / "record.jsonl"
    lines = record.read_text().splitlines()
    record.write_text("\n".join([*lines[:2], line, *lines[2:], ""]))
    with pytest.raises(RunFolderError, match=r"record.jsonl:3 is damaged: "):
        open_run(run_folder).metrics()


def test_a_manifest_or_a_directory_of_somebody_else_is_no_checkpoint(run_folder, make_run, net, loader):
    checkpoints = run_folder / "checkpoints"
    shutil.copytree(checkpoints / "step-00000016", checkpoints / "step-old")
    (checkpoints / "step-00000008" / "manifest.json").write_text("[" * 20_000)
    assert [checkpoint.name for checkpoint in open_run(run_folder).checkpoints] == ["step-00000016"]
    assert make_run()(net, loader, loader, max_epochs=3, resume=str(run_folder), **QUIET).step == 24
    assert (checkpoints / "step-old").is_dir()


@pytest.mark.parametrize(
    "file", ["checkpoints/latest", "checkpoints/best", "model.txt", "console.log", "environment.txt"]
)
def test_a_folder_in_the_place_of_a_file_that_is_a_convenience_costs_no_run(
    run_folder, make_run, net, loader, file, recwarn
):
    (run_folder / file).unlink()
    (run_folder / file).mkdir()
    assert make_run()(net, loader, loader, max_epochs=3, resume=str(run_folder), **QUIET).step == 24
    assert all("could not be kept" in str(warning.message) for warning in recwarn)


@pytest.mark.parametrize("file", ["run.yaml", "config.yaml", "origins.yaml", "loggers"])
def test_where_it_costs_the_run_the_error_names_the_folder(run_folder, make_run, net, loader, file):
    if (run_folder / file).is_dir():
        shutil.rmtree(run_folder / file)
        (run_folder / file).touch()
    else:
        (run_folder / file).unlink()
        (run_folder / file).mkdir()
    with pytest.raises(RunFolderError, match=run_folder.name):
        make_run()(net, loader, loader, max_epochs=3, resume=str(run_folder), loggers=[Listening()], **QUIET)


class Listening:
    def __init__(self):
        self.steps = []

    @hookimpl
    def log_metrics(self, metrics, step):
        self.steps.append(step)


@pytest.mark.parametrize(
    "cursor", ["{}", "[1]", "null", '{"position": null, "step": 1}', '{"position": 1e400, "step": 1}']
)
def test_a_logger_whose_cursor_is_damaged_is_given_all_of_the_record(make_run, net, loader, cursor):
    first = make_run()(net, loader, loader, loggers=[Listening()], **QUIET)
    path = first.folder / "loggers" / "Listening" / ".cursor"
    assert json.loads(path.read_text())["position"] > 0
    path.write_text(cursor)
    again = Listening()
    make_run()(nn.Sequential(*net), loader, loader, max_epochs=2, resume=str(first.folder), loggers=[again], **QUIET)
    assert again.steps[0] == 8 and again.steps[-1] == 16
