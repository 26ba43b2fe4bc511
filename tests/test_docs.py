"""The reference pages: their examples run; no option, decorator, argument, moment or built-in is missing in them."""

import dataclasses
import importlib
import inspect
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType

import pytest

from blowtorch import OptionError, Run, RunOptions, RunResult
from blowtorch.extension.contracts import hooks
from blowtorch.hookspecs import MOMENTS
from blowtorch.plugins import SPECS
from blowtorch.record.logged import REDUCTIONS
from blowtorch.script.decorators import Decorators
from blowtorch.script.functions import ARGUMENTS
from tests import forked

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.stem: path.read_text() for path in DOCS.glob("*.md")}
REFERENCE = ("options", "training", "callbacks", "configuration", "schedulers", "logging", "reproducibility", "gpu")
CHOSEN = ("precision", "on_nan", "loss_is", "split")  # options whose value is one of a few


def execute(folder, page, code):
    """Run code from a page as a script in an empty folder, beside the files that the page shows."""
    for path, text in re.findall(r"```yaml\n# (\S+)\n(.*?)```", PAGES[page], re.DOTALL):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(f"# {path}\n{text}")
    strict = 'import warnings\nwarnings.filterwarnings("error", category=UserWarning, module="__main__")\n'
    (folder / "train.py").write_text(strict + code)
    done = forked.run("train.py", folder=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(text):
    """The cells of every row of the tables in a text; a cell that is empty is like the one above it."""
    above = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().split("|")[1:-1]] if line.startswith("|") else []
        above = [cell or (above[index] if index < len(above) else "") for index, cell in enumerate(cells)]
        if cells:
            yield above


def words(cell):
    """What stands in backticks in a cell, or in several."""
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("page", REFERENCE)
def test_a_reference_page_begins_with_an_example_that_runs(page, tmp_path):
    code = re.search(r"```python\n(.*?)```", PAGES[page], re.DOTALL).group(1)
    before = PAGES[page].partition("```python")[0]
    assert len(before.splitlines()) < 30, "something else comes first"
    execute(tmp_path, page, code)


SCRIPTS = [
    pytest.param(page, mark, code, id=f"{page}-{number}")
    for page in REFERENCE
    for number, (mark, code) in enumerate(
        re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", PAGES[page], re.DOTALL)
    )
    if number > 0  # the first is run above
]


@pytest.mark.parametrize(("page", "needs", "code"), SCRIPTS)
def test_a_further_script_of_a_page_runs(page, needs, code, tmp_path):
    if needs != "script":
        pytest.importorskip(needs)  # a package that the page names, and ours do not need
    execute(tmp_path, page, code)


def documented_options():
    return {words(cells[0])[0]: cells for cells in rows(PAGES["options"]) if len(cells) == 4 and words(cells[0])}


@pytest.mark.parametrize("option", dataclasses.fields(RunOptions), ids=lambda option: option.name)
def test_an_option_is_on_its_page_with_type_and_default(option):
    name, kind, default, meaning = documented_options()[option.name]
    assert name == f"`{option.name}`"
    assert default == "`{}`".format(repr(option.default).replace("'", '"'))
    assert meaning
    hint = typing.get_type_hints(RunOptions)[option.name]
    plain = {NoneType: "None", Mapping: "mapping", Sequence: "list", typing.Any: "extension"}
    choices = [plain.get(typing.get_origin(each) or each) or each.__name__ for each in typing.get_args(hint) or [hint]]
    if Sequence in (hint, typing.get_origin(hint)):
        choices = ["list"]
    if typing.get_origin(hint) is Sequence or hint is typing.Any:
        choices = [plain[typing.get_origin(hint) or hint]] + ["None"] * (option.default is None)
    written = ["str" if word in ("interval", "time") else word for word in kind.split(" or ")]
    assert written == choices
    if "interval" in kind or "time" in kind:
        RunOptions(**{option.name: "7 minutes"})
        refused = "7 steps" if "time" in kind else "7"
        with pytest.raises(OptionError, match=option.name):
            RunOptions(**{option.name: refused})
    elif "str" in kind and option.name not in CHOSEN:
        RunOptions(**{option.name: "7"})


def test_the_page_has_no_option_that_does_not_exist():
    assert documented_options().keys() - {"option"} == {option.name for option in dataclasses.fields(RunOptions)}


@pytest.mark.parametrize("name", CHOSEN)
def test_every_choice_of_an_option_is_on_the_page(name):
    with pytest.raises(OptionError) as caught:
        RunOptions(**{name: "something else"})
    choices = re.findall(r"'(\w+)'", str(caught.value).partition(", got")[0])
    assert len(choices) >= 2
    assert set(choices) <= set(words(documented_options()[name][3]))


def section(heading):
    """A section of the page on the script."""
    return PAGES["training"].partition(f"\n{heading}\n")[2].partition("\n## ")[0]


def written_signature(method, *left_out):
    """The parameters of a method as the pages write them, without types."""
    parameters = inspect.signature(method).parameters.values()
    plain = [each.replace(annotation=each.empty) for each in parameters if each.name not in ("self", *left_out)]
    signature = inspect.Signature(plain)
    return str(signature).replace("'", '"')


def decorated(kind):
    """How a decorator is written."""
    if kind == "on":
        return "@run.on(moment)"
    names = list(inspect.signature(getattr(Decorators, kind)).parameters)[1:]
    if names == ["function"]:
        return f"@run.{kind}"
    signature = written_signature(getattr(Decorators, kind)).replace("argument=None, /", "loader=None")
    return f"@run.{kind}{signature.replace(' *,', '')}"


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_a_decorator_is_on_the_page_with_its_signature_and_exactly_the_arguments_that_it_can_give(kind):
    found = {words(cells[0])[0]: cells for cells in rows(PAGES["training"]) if cells[0].startswith("`@run.")}
    assert decorated(kind) in found
    cells = found[decorated(kind)]
    assert sorted(words(cells[1])) == sorted(ARGUMENTS[kind])
    assert cells[2]
    assert len(found) == len(ARGUMENTS)


def test_every_argument_of_a_function_is_explained():
    explained = {word for cells in rows(section("## The decorators")) if len(cells) == 2 for word in words(cells[0])}
    assert {name for names in ARGUMENTS.values() for name in names} <= explained


PUBLIC = [name for name in vars(Run) | vars(Decorators) if not name.startswith("_") and name not in ARGUMENTS]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_method_of_a_run_is_on_a_page_with_its_signature(name):
    method = inspect.getattr_static(Run, name)
    signature = "" if isinstance(method, property) else written_signature(method)
    pages = PAGES["training"] + PAGES["logging"]
    assert f"`run.{name}{signature}`" in pages


def test_making_and_calling_a_run_are_on_the_page_with_their_signatures():
    assert f"`Run{written_signature(Run)}`" in PAGES["training"]
    assert f"`run{written_signature(Run.__call__)}`" in PAGES["training"]


def test_every_attribute_of_a_result_is_on_the_page():
    explained = {word for cells in rows(section("## The run")) for word in words(cells[0])}
    assert {each.name for each in dataclasses.fields(RunResult)} <= explained
    assert "`result.raise_if_stopped()`" in PAGES["training"]


def test_every_way_to_reduce_is_on_the_pages():
    for name in REDUCTIONS:
        assert f"`{name}`" in PAGES["training"], name
        assert f"`{name}`" in PAGES["logging"], name


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_moment_is_on_the_page_with_what_is_at_hand(moment):
    found = {words(cells[0])[0]: cells for cells in rows(PAGES["callbacks"]) if len(cells) == 3 and words(cells[0])}
    assert tuple(words(found[moment][1])) == MOMENTS[moment]
    assert found[moment][2]


@pytest.mark.parametrize("kind", SPECS)
def test_every_hook_is_on_the_page_of_its_kind(kind):
    page = (DOCS / "extensions" / f"{kind}.md").read_text()
    for hook, arguments in hooks(SPECS[kind]).items():
        assert f"`{hook}({', '.join(arguments)})`" in page


def built_ins():
    project = tomllib.loads((ROOT / "blowtorch-core" / "pyproject.toml").read_text())["project"]
    for group, names in project["entry-points"].items():
        for name, target in names.items():
            yield pytest.param(group.removeprefix("blowtorch."), name, target, id=f"{group}-{name}")


def described(page, name):
    """What a page says of a built-in: the section that bears its name, or the rows of a table that begin with it."""
    section = re.search(rf"^(#+) `{name}`$(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
    if section:
        return {words(cells[0])[0]: cells for cells in rows(section[2]) if words(cells[0])}
    found = [cells for cells in rows(page) if cells[0] == f"`{name}`" and len(cells) >= 5]
    assert found, f"{name} is not on the page"
    return {words(cells[-3])[0]: cells[-3:] for cells in found if words(cells[-3])}


@pytest.mark.parametrize(("group", "name", "target"), list(built_ins()))
def test_a_built_in_is_on_a_page_with_each_of_its_options(group, name, target):
    module, _, attribute = target.partition(":")
    parameters = list(inspect.signature(getattr(importlib.import_module(module), attribute)).parameters.values())
    if group == "config_sources":
        assert re.search(rf"\| `(config/a\.{name}|{name}:\w+)`|, `config/a\.{name}` \|", PAGES["configuration"])
        assert not parameters
    elif group == "checkpoint_backends":
        assert f"`{name}`" in PAGES["checkpoints"]
        assert not parameters
    else:
        found = described(PAGES[{"callbacks": "callbacks", "schedulers": "schedulers"}[group]], name)
        for parameter in parameters:
            cells = found[parameter.name]
            assert cells[-1]
            if group == "callbacks":
                assert cells[1] == "`{}`".format(repr(parameter.default).replace("'", '"'))


def test_every_page_is_reached_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    for page in PAGES:
        assert f"](docs/{page}.md)" in readme.partition("## Where things are")[2], page


def test_links_lead_to_sections_that_exist():
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for target, section in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", path.read_text()):
            text = (path.parent / target).read_text() if target else path.read_text()
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert section in slugs, f"{path.name}: {target}#{section}"
