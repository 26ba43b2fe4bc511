"""Every example that a reader may copy is run: the README's, those of the docs, and the scripts in `examples/`."""

import doctest
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import blowtorch
from tests import forked

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def execute(folder, *words):
    """Do a script in a process that is forked; return its output."""
    done = forked.run(*words, folder=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def execute_anew(folder, *command, **environment):
    """Do a script or a module in a process that is started anew; return its output."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False, env=variables, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def marked(mark):
    """The code block of the README behind a mark that readers do not see."""
    match = re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert match, mark
    return match[1]


def test_the_script_of_the_readme_runs(tmp_path):
    (tmp_path / "train.py").write_text(marked("example: script"))
    output = execute_anew(tmp_path, "train.py")
    assert re.search(r"^finished 0\.\d+ .*train_logs", output, re.MULTILINE)


def test_the_logger_of_the_readme_is_a_package_that_is_listed_and_receives_every_metric(tmp_path):
    package, site = tmp_path / "package", tmp_path / "site"
    package.mkdir()
    assert len(marked("file: line_logger.py").splitlines()) <= 20
    for name in ("line_logger.py", "pyproject.toml"):
        (package / name).write_text(marked(f"file: {name}"))
    execute_anew(
        tmp_path, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site), str(package)
    )
    path = {"PYTHONPATH": str(site)}
    listed = json.loads(execute_anew(tmp_path, "-m", "blowtorch.plugins", "--json", **path))
    mine = [each for each in listed if each["name"] == "lines"]
    assert [(each["kind"], each["package"], each["status"]) for each in mine] == [("logger", "line-logger", "ok")]

    (tmp_path / "train.py").write_text(marked("example: script"))
    command = ["train.py", "with", "run.log_every=4 steps", "run.loggers=[{lines: {file_name: all.txt}}]"]
    execute_anew(tmp_path, *command, **path)
    (folder,) = (tmp_path / "train_logs").iterdir()
    events = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    expected = [
        f"{event['step']} {name} {value}"
        for event in events
        if event["event"] == "metrics"
        for name, value in event["metrics"].items()
    ]
    assert (folder / "loggers" / "lines" / "all.txt").read_text().splitlines() == expected
    assert len(expected) > 20


def test_the_plugin_list_of_the_readme_is_what_is_printed(tmp_path):
    shown = re.search(r"\$ blowtorch plugins list\n(.*?)```", README, re.DOTALL)
    printed = execute_anew(tmp_path, "-m", "blowtorch_cli", "plugins", "list")
    assert [line.split() for line in shown.group(1).splitlines()] == [line.split() for line in printed.splitlines()]


def test_the_two_commands_of_the_readme_are_environments_of_tox():
    tox = (ROOT / "tox.ini").read_text()
    assert "python -m tox run -e quickstart" in README
    assert "[testenv:quickstart]" in tox


def test_the_page_on_logging_runs(tmp_path):
    """Its script, then its reading of what the script has recorded."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "logging.md").read_text(), re.DOTALL)
    (tmp_path / "train.py").write_text(blocks[0])
    execute(tmp_path, "train.py")
    [folder] = (tmp_path / "train_logs").iterdir()
    assert [path.name for path in folder.glob("media/*/*")] == ["step-00000004.png"]
    (tmp_path / "look.py").write_text(blocks[1])
    assert execute(tmp_path, "look.py") == "4 ['the first epoch is done']\n"


def test_the_page_on_schedulers_runs(tmp_path):
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", (ROOT / "docs" / "schedulers.md").read_text(), re.DOTALL)
    (tmp_path / "train.py").write_text(blocks[0])
    (tmp_path / "cosine.yaml").write_text(blocks[1])
    (tmp_path / "sequence.yaml").write_text(blocks[2])
    for command in ([], ["with", "cosine.yaml"], ["with", "sequence.yaml", "run.max_epochs=8"]):
        execute(tmp_path, "train.py", *command)
    folders = sorted((tmp_path / "train_logs").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    by_keyword, by_file, sequence = map(blowtorch.open_run, folders)
    rates = by_keyword.metrics()["lr"].values.tolist()
    assert by_file.metrics()["lr"].values.tolist() == rates
    assert len(rates) == 6
    assert sequence.metrics()["lr"].values[-1] == 0.1


def test_links_of_the_documents_lead_somewhere():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_nothing_tells_to_install_the_other_package_of_that_name():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *(ROOT / "docs").rglob("*.md")]:
        assert not re.search(r"pip install (-\S+ )*blowtorch(?![-\w])", document.read_text()), document


def test_the_digits_example_reaches_its_accuracy_and_begins_anew(tmp_path):
    script = str(ROOT / "examples" / "digits" / "train.py")
    first = execute(tmp_path, script)
    best = re.search(r"best\s+val/accuracy ([\d.]+)", first)
    assert float(best.group(1)) >= 0.98
    second = execute(tmp_path, script, "with", "run.resume=auto", "run.max_epochs=1")
    assert "digits-2 begins" in second
    folder = next((tmp_path / "train_logs").glob("*digits-1"))
    assert list((folder / "loggers" / "tensorboard").glob("events.out.tfevents.*"))
    assert blowtorch.open_run(folder).status == "finished"


def modules():
    for package in ("blowtorch", "blowtorch_cli", "blowtorch_tensorboard", "blowtorch_wandb"):
        yield package
        found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        yield from (each.name for each in found if not each.name.endswith("__main__"))


@pytest.mark.parametrize("name", list(modules()))
def test_examples_in_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
