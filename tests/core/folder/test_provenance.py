"""What is kept of code, environment and model."""

import importlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from blowtorch.folder.provenance import (
    describe_device,
    git_commit,
    local_modules,
    snapshot,
    summarize_model,
    versions,
)

SCRIPT = """
import sys
from pathlib import Path
import torch
from blowtorch.folder.provenance import git_commit, local_modules, snapshot
import helper, package.part
Path("run").mkdir()
print(snapshot(Path("run"), Path("train.py").absolute()), git_commit(Path("train.py").absolute()))
"""


def git(*arguments):
    identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.com"]
    done = subprocess.run(["git", *identity, *arguments], capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.fixture
def project(tmp_path):
    """A script with a module and a package of its own, and files that it does not import."""
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("WIDTH = 1\n")
    (tmp_path / "unused.py").write_text("")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "part.py").write_text("DEPTH = 2\n")
    return tmp_path


def run_script():
    return subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, check=True).stdout.strip()


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_source_is_the_script_and_the_local_modules_it_imported(project):
    assert run_script() == "[] None"
    kept = project / "run" / "source"
    assert files_in(kept) == ["helper.py", "package/__init__.py", "package/part.py", "train.py"]
    assert (kept / "train.py").read_text() == SCRIPT
    assert not (project / "run" / "changes.diff").exists()


def test_the_source_holds_no_module_of_an_environment_inside_the_project(project, monkeypatch):
    installed = project / ".venv" / "lib" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "installed_module_of_a_test.py").write_text("")
    monkeypatch.syspath_prepend(installed)
    __import__("installed_module_of_a_test")
    assert local_modules(project / "train.py") == [project / "train.py"]


def test_a_module_that_was_loaded_anew_from_elsewhere_is_kept_as_it_is_now(project, monkeypatch):
    for version in ("one", "two"):
        (project / version).mkdir()
        (project / version / "linked_module_of_a_test.py").write_text(f"VERSION = {version!r}\n")
    monkeypatch.syspath_prepend(project / "link")
    (project / "link").symlink_to("one")
    module = importlib.import_module("linked_module_of_a_test")
    assert project / "one" / "linked_module_of_a_test.py" in local_modules(project / "train.py")
    (project / "link").unlink()
    (project / "link").symlink_to("two")
    importlib.reload(module)
    assert local_modules(project / "train.py") == [project / "train.py", project / "two" / "linked_module_of_a_test.py"]


def test_a_module_that_is_imported_later_is_among_the_next(project, monkeypatch):
    before = local_modules(project / "train.py")
    (project / "later_module_of_a_test.py").write_text("")
    monkeypatch.syspath_prepend(project)
    importlib.import_module("later_module_of_a_test")
    assert local_modules(project / "train.py") == [project / "later_module_of_a_test.py", *before]


def test_a_changed_file_is_kept_as_a_difference_that_can_be_applied(project):
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    original = (project / "helper.py").read_bytes()
    changed = b"# coding: latin-1\nWIDTH = 3  # gr\xf6\xdfer\r\n"
    (project / "helper.py").write_bytes(changed)
    problems, _, commit = run_script().rpartition(" ")
    assert (problems, commit) == ("[]", git("rev-parse", "HEAD"))
    git("checkout", "helper.py")
    assert (project / "helper.py").read_bytes() == original
    git("apply", "run/changes.diff")
    assert (project / "helper.py").read_bytes() == changed


def test_an_unchanged_repository_has_no_difference_and_an_earlier_one_goes(project):
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    (project / "run").mkdir()
    (project / "run" / "changes.diff").write_text("of an earlier start")
    assert snapshot(project / "run", project / "train.py") == []
    assert not (project / "run" / "changes.diff").exists()


def test_the_source_of_an_earlier_start_goes_too(project):
    (project / "run" / "source").mkdir(parents=True)
    (project / "run" / "source" / "old.py").write_text("")
    snapshot(project / "run", project / "train.py")
    assert files_in(project / "run" / "source") == ["train.py"]


def test_a_repository_without_a_commit_has_none(project):
    git("init")
    assert git_commit(project / "train.py") is None
    assert snapshot(project, project / "train.py") == []


def test_without_git_there_is_no_commit_and_no_problem(project, monkeypatch):
    monkeypatch.setenv("PATH", str(project))
    assert git_commit(project / "train.py") is None
    (project / "run").mkdir()
    assert snapshot(project / "run", project / "train.py") == []


def test_a_git_that_does_not_answer_costs_a_sentence_and_no_run(project, monkeypatch):
    (project / "git").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (project / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(project))
    assert git_commit(project / "train.py", git_timeout_s=0.1) is None
    (project / "run").mkdir()
    [problem] = snapshot(project / "run", project / "train.py", git_timeout_s=0.1)
    assert problem.startswith("code and environment could not be kept whole: ") and "timed out" in problem
    assert (project / "run" / "environment.txt").is_file()


def test_what_cannot_be_written_is_said_and_raises_nothing(project):
    problems = snapshot(project / "missing", project / "train.py")
    assert len(problems) == 2 and all("could not be kept whole" in problem for problem in problems)


def test_without_a_script_the_environment_is_kept_alone(tmp_path):
    assert snapshot(tmp_path, None) == []
    assert files_in(tmp_path) == ["environment.txt"]
    assert git_commit(None) is None


def test_the_environment_names_every_distribution_with_its_version(tmp_path):
    snapshot(tmp_path, None)
    lines = (tmp_path / "environment.txt").read_text().splitlines()
    assert lines == sorted(lines, key=str.lower)
    assert f"blowtorch-core=={importlib.metadata.version('blowtorch-core')}" in lines
    assert any(line.startswith("torch==") for line in lines)


def test_versions_are_those_in_use():
    found = versions()
    assert found["torch"] == torch.__version__ and found["numpy"] == np.__version__
    assert found["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert all(type(value) is str for value in found.values())


def test_of_a_device_the_settings_are_told_that_decide_its_bits(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert describe_device(cpu) == {"name": "cpu", "float32_matmul_precision": "highest"}
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert describe_device(cpu)["float32_matmul_precision"] == "high"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU at {device}")
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    described = describe_device(gpu)
    assert described["name"] == "a GPU at cuda" and described["cuda"] == "12.9"
    assert described["cudnn_benchmark"] is True and described["cudnn_deterministic"] is False


def test_a_run_goes_on_where_torch_finds_fault_with_cudnn(monkeypatch):
    def refuse():
        raise RuntimeError("cuDNN version 92000 is not compatible with devices with SM < 7.5")

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old GPU")
    monkeypatch.setattr(torch.backends.cudnn, "version", refuse)
    assert describe_device(torch.device("cuda"))["cudnn"] is None


SET_BY_NEWER_NAMES = """
import torch
from blowtorch.folder.provenance import describe_device
torch.backends.cuda.matmul.fp32_precision = "tf32"
print(describe_device(torch.device("cpu"))["float32_matmul_precision"])
"""


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this torch has the older names")
def test_a_precision_that_was_set_by_the_newer_names_of_torch_is_told_by_them():
    done = subprocess.run([sys.executable, "-c", SET_BY_NEWER_NAMES], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["tf32"]


def test_a_summary_has_the_tree_of_modules_and_their_sizes():
    model = nn.Sequential(nn.Linear(10, 20), nn.Sequential(nn.ReLU(), nn.Linear(20, 1, bias=False)))
    model[0].requires_grad_(False)
    assert summarize_model(model).splitlines() == [
        "Sequential: 240 parameters, 20 of them trained",
        "  0: Linear(in_features=10, out_features=20, bias=True), 220 parameters, 0 of them trained",
        "  1: Sequential, 20 parameters",
        "    0: ReLU()",
        "    1: Linear(in_features=20, out_features=1, bias=False), 20 parameters",
    ]


def test_a_shared_parameter_counts_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert summarize_model(model).startswith("Sequential: 16 parameters\n")


def test_a_lazy_layer_has_no_size_yet():
    assert "LazyLinear" in summarize_model(nn.Sequential(nn.LazyLinear(3)))


def test_nothing_is_imported_from_a_folder_that_is_not_the_scripts(project):
    """This test is no module of the project."""
    assert Path(__file__) not in local_modules(project / "train.py")


def test_modules_beside_a_script_that_is_a_link_are_kept(project, monkeypatch):
    (project / "elsewhere").mkdir()
    (project / "elsewhere" / "link.py").symlink_to(project / "train.py")
    monkeypatch.chdir(project / "elsewhere")
    monkeypatch.syspath_prepend(project)
    (project / "linked_helper_of_a_test.py").write_text("")
    importlib.import_module("linked_helper_of_a_test")
    (project / "elsewhere" / "run").mkdir()
    snapshot(Path("run"), project / "elsewhere" / "link.py")
    assert files_in(Path("run") / "source") == ["linked_helper_of_a_test.py", "train.py"]


def test_a_module_of_a_package_that_is_the_script_is_kept_in_its_package(project):
    (project / "package" / "train.py").write_text(
        SCRIPT.replace("import helper, package.part", "from . import part").replace('"train.py"', '"package/train.py"')
    )
    done = subprocess.run([sys.executable, "-m", "package.train"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] None"
    assert files_in(project / "run" / "source") == ["package/__init__.py", "package/part.py", "package/train.py"]


def test_a_large_program_is_no_source(project):
    (project / "program").write_bytes(bytes(1_000_001))
    (project / "run").mkdir()
    assert snapshot(project / "run", project / "program") == []
    assert "program" not in files_in(project / "run" / "source")


def test_a_run_that_goes_on_by_the_code_that_it_kept_leaves_that_as_it_is(project):
    kept = project / "run" / "source"
    kept.mkdir(parents=True)
    (kept / "train.py").write_text("# kept")
    (kept / "unused.py").write_text("")
    assert snapshot(project / "run", kept / "train.py") == []
    assert files_in(kept) == ["train.py", "unused.py"] and (kept / "train.py").read_text() == "# kept"


SHELL = """
import sys
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell
import helper
shell = InteractiveShell.instance()
for cell in sys.argv[1:]:
    shell.run_cell(cell.replace("LONG", 600_000 * "x"), store_history=True)
"""
LAST = """from blowtorch.folder.provenance import git_commit, snapshot
Path("run").mkdir()
%time problems = snapshot(Path("run"), None)
print(problems, git_commit(None))"""


def run_cells(*cells):
    pytest.importorskip("IPython")
    command = [sys.executable, "-c", SHELL, *cells]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "IPYTHONDIR": "."})
    return done.stdout.splitlines()[-1]


def test_the_source_of_a_notebook_is_what_was_typed_and_the_modules_beside_it(project):
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    assert run_cells("from pathlib import Path\n\n", "", LAST) == f"[] {git('rev-parse', 'HEAD')}"
    assert files_in(project / "run" / "source") == ["cells.py", "helper.py"]
    cells = (project / "run" / "source" / "cells.py").read_text()
    assert cells.startswith("# %% [1]\nfrom pathlib import Path\n\n# %% [2]\nfrom blowtorch.folder.provenance import")
    compile(cells, "cells.py", "exec")  # magic too


def test_of_a_long_notebook_the_newest_cells_are_kept(project):
    run_cells("first = 'LONG'", "from pathlib import Path", "second = 'LONG'", LAST)
    cells = (project / "run" / "source" / "cells.py").read_text()
    assert cells.startswith(
        "# 1 earlier cells are left out\n\n# %% [2]\nfrom pathlib import Path\n\n# %% [3]\nsecond = 'x"
    )
