"""The pages for authors: their examples are what `plugins new` writes and are run, and nothing is left out."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from blowtorch.extension.contracts import hooks
from blowtorch.extension.found import GROUPS
from blowtorch.plugins import SPECS
from blowtorch_cli.new import render_package

DOCS = Path(__file__).parents[2] / "docs"


def blocks(kind, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / "extensions" / f"{kind}.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("kind", GROUPS)
def test_the_page_of_a_kind_shows_what_a_new_package_is(kind):
    files = render_package(kind, "acme")
    assert blocks(kind, "python") == [files["src/blowtorch_acme/__init__.py"], files["tests/test_acme.py"]]
    [entry_point] = blocks(kind, "toml")
    assert entry_point in files["pyproject.toml"]


@pytest.mark.parametrize("kind", GROUPS)
def test_the_page_of_a_kind_begins_with_an_example_that_passes_its_tests(kind, tmp_path):
    code, test = blocks(kind, "python")
    (tmp_path / "blowtorch_acme.py").write_text(code)
    (tmp_path / "test_acme.py").write_text(test)
    info = tmp_path / "blowtorch_acme-0.1.0.dist-info"  # as if it were installed: a source is found by its entry point
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: blowtorch-acme\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(
        blocks(kind, "toml")[0].replace("project.entry-points.", "").replace('"', "")
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_acme.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", SPECS)
def test_every_hook_and_every_argument_is_on_the_page_of_its_kind(kind):
    page = (DOCS / "extensions" / f"{kind}.md").read_text()
    for hook, arguments in hooks(SPECS[kind]).items():
        assert f"`{hook}({', '.join(arguments)})`" in page
        for argument in arguments:
            assert re.search(rf"^\| .*`{argument}`.* \| \S", page, re.MULTILINE), argument


@pytest.mark.parametrize("kind", SPECS)
def test_every_hook_has_a_description_of_its_own(kind):
    spec = SPECS[kind]
    for hook, arguments in hooks(spec).items():
        text = getattr(spec, hook).__doc__
        assert text, hook
        described = {*re.findall(r"^\s+(\w+): ", text, re.MULTILINE), *re.findall(r"`(\w+)", text)}
        plain = {"run", "state", "step", "name", "directory", "metrics"}  # said by the hook's own sentence
        assert set(arguments) <= described | plain, hook


def test_every_kind_is_reached_from_the_overview():
    overview = (DOCS / "extensions.md").read_text()
    for page in (DOCS / "extensions").glob("*.md"):
        assert f"](extensions/{page.name})" in overview, page.name


@pytest.mark.parametrize("kind", GROUPS)
def test_the_overview_names_the_group_of_a_kind(kind):
    assert f"| [{kind}](extensions/{kind}.md) | `{GROUPS[kind]}` |" in (DOCS / "extensions.md").read_text()


def test_every_status_and_key_of_the_listings_is_on_the_page_about_failures():
    page = (DOCS / "extensions" / "failures.md").read_text()
    extensions = importlib.import_module("blowtorch.extension.found")
    for word in (
        *extensions.COLUMNS,
        "import_seconds",
        "contract",
        "ok",
        "disabled",
        "incompatible",
        "conflict",
        "broken",
    ):
        assert f"`{word}`" in page, word
