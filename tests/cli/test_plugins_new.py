"""The package that `blowtorch plugins new` writes; that it installs and passes its tests is seen in tests/strangers."""

import compileall
import tomllib

import pytest
from click.testing import CliRunner

from blowtorch.extension.found import GROUPS
from blowtorch_cli.main import main
from blowtorch_cli.new import render_package


def create(*words):
    return CliRunner().invoke(main, ["plugins", "new", *words])


@pytest.mark.parametrize("kind", GROUPS)
def test_a_package_is_complete(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = create(kind, "acme")
    assert done.exit_code == 0, done.output
    folder = tmp_path / "blowtorch-acme"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    [target] = project["entry-points"][GROUPS[kind]].values()
    module, _, attribute = target.partition(":")
    assert f" {attribute}(" in (folder / "src" / module / "__init__.py").read_text().replace(":", "(")
    assert compileall.compile_dir(folder, quiet=1)
    for path in folder.rglob("*.*"):
        assert "$" not in path.read_text(errors="replace").replace("$ ", "") or path.suffix == ".pyc", path
    assert "pip install -e blowtorch-acme" in done.output


def test_a_name_that_ends_like_its_kind_is_not_doubled():
    assert "class AcmeLogger:" in render_package("logger", "acme-logger")["src/blowtorch_acme_logger/__init__.py"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["logger", "Acme!"], "expected a name of small letters, digits, '-' and '_', such as 'acme', got 'Acme!'"),
        (["logger", "class"], "expected a name of small letters"),
        (["scheduler", "cosine"], "scheduler 'cosine' (blowtorch-core"),
        (["loger", "acme"], "'loger'"),
    ],
)
def test_a_name_that_cannot_be_is_refused_before_anything_is_written(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = create(*words)
    assert done.exit_code != 0
    assert message in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blowtorch-acme").mkdir()
    done = create("logger", "acme")
    assert done.exit_code == 1
    assert "blowtorch-acme exists; choose another name, or another folder with --in" in done.output
    assert list((tmp_path / "blowtorch-acme").iterdir()) == []


def test_another_folder_may_be_chosen(tmp_path):
    assert create("logger", "acme", "--in", str(tmp_path)).exit_code == 0
    assert (tmp_path / "blowtorch-acme" / "pyproject.toml").is_file()
