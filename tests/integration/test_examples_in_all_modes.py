"""The scripts in `examples/`, very short, in each way in which a script may be run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blowtorch import find_runs
from tests import forked
from tests.integration.short_examples import EXAMPLES, WORDS

SAID = ["Gan has no forward that the option compile could compile, so it is left out"]

FROM_STANDARD_INPUT = """
import importlib.machinery as machinery, json, os, pathlib, sys
import sklearn.datasets, sklearn.model_selection, torch._dynamo  # once for all that follow

# As with PYTHONOPTIMIZE=2, blowtorch and the examples have neither assertions nor docstrings. That would have all of
# torch compiled once more.
class WithoutAssertions(machinery.SourceFileLoader):
    def get_code(self, name):
        path = self.get_filename(name)
        return compile(self.get_data(path), path, "exec", dont_inherit=True, optimize=2)

compiled = machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES
sys.path_hooks.insert(0, machinery.FileFinder.path_hook(compiled, (WithoutAssertions, [".py"])))
sys.path_importer_cache.clear()
import blowtorch.run

assert blowtorch.__doc__ is None
for folder, words in json.loads(sys.argv[1]).items():
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        sys.argv = ["-", "with", *words]
        exec(compile(pathlib.Path("train.py").read_text(), "<stdin>", "exec", optimize=2))
        sys.exit()
    if os.waitpid(child, 0)[1]:
        sys.exit(folder)
"""


@pytest.fixture(params=WORDS)
def example(request, tmp_path):
    """A copy of an example, in whose folder its relative paths hold wherever the source comes from."""
    pytest.importorskip("sklearn")
    return shutil.copytree(EXAMPLES / request.param, tmp_path / request.param)


def check(folder):
    (view,) = find_runs(folder / "train_logs")
    assert view.status == "finished"
    assert view.checkpoint("latest").step in (5, 6)
    return view


def test_every_example_is_here():
    assert sorted(WORDS) == sorted(path.parent.name for path in EXAMPLES.glob("*/train.py"))


@pytest.mark.parametrize("option", ["compile={backend: eager}", "precision=bf16", "precision=fp16"])
def test_an_example_trains_compiled_and_in_another_precision(example, option):
    done = forked.run("train.py", "with", *WORDS[example.name], f"run.{option}", folder=example)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "Warning:" in line]
    assert [line for line in warnings if not any(said in line for said in SAID)] == []
    name, _, value = option.partition("=")
    assert check(example).info["options"][name] in (value, {"backend": "eager"})


def test_the_examples_come_from_standard_input_and_train_without_assertions_and_without_a_warning(tmp_path):
    pytest.importorskip("sklearn")
    given = {str(shutil.copytree(EXAMPLES / name, tmp_path / name)): words for name, words in WORDS.items()}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-", json.dumps(given)],
        input=FROM_STANDARD_INPUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for folder in given:
        check(Path(folder))


def test_the_examples_train_one_after_the_other_in_a_notebook(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = []
    for name, words in WORDS.items():
        folder = shutil.copytree(EXAMPLES / name, tmp_path / name)
        source = (folder / "train.py").read_text()
        short = source.replace("random_seed=123", f"random_seed=123, command_line={['', 'with', *words]}")
        assert short != source
        cells.append(f"%reset -f\nimport os\nos.chdir({str(folder)!r})")
        cells.append(short.replace("Path(__file__).parent", "Path()"))  # a notebook has no file
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for name in WORDS:
        assert (check(tmp_path / name).path / "source" / "cells.py").is_file()
