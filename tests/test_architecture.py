"""What keeps the code small and plain: import directions, public names, size limits, documented hooks."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import blowtorch
from blowtorch import hookspecs

ROOT = Path(__file__).parents[1]
CORE = ROOT / "blowtorch-core" / "src" / "blowtorch"
PACKAGES = ["blowtorch-core", "blowtorch-tensorboard", "blowtorch-wandb", "blowtorch-cli"]
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# Highest first; each may import only what stands below it. A wing is a folder, an open room a file.
LAYERS = [
    "__init__",
    "run",
    "trial",
    "training",
    "runs",
    "script",
    "checkpoint",
    "record",
    "schedule",
    "data",
    "parallel",
    "plugins",
    "hookspecs",
    "state",
    "progress",
    "folder",
    "options",
    "clock",
    "extension",
    "config",
    "streams",
    "errors",
]
# Highest first, within each wing.
ROOMS = {
    "trial": ["dry_run", "forecast", "doubts", "overlap", "batch_size", "evaluation", "untouched"],
    "training": """session claim loop between_steps recording writing advice assembly training coverage compilation
        waiting model start interruption trace validation callbacks run_batches shared_gradients gradients
        precision workspace modes snapshot""".split(),
    "runs": ["view", "stored"],
    "script": ["decorators", "script", "returns", "functions", "command_line"],
    "checkpoint": [
        "checkpoints",
        "retention",
        "store",
        "contents",
        "own",
        "frozen",
        "finiteness",
        "copied",
        "shards",
        "tensors",
        "parts",
        "plain",
    ],
    "record": [
        "feed",
        "shared_media",
        "media",
        "arrays",
        "record",
        "lines",
        "metric_objects",
        "pool",
        "metrics",
        "logged",
    ],
    "schedule": ["configured", "returned", "schedules", "option", "groups", "rates", "sequence"],
    "data": [
        "batches",
        "apart",
        "sources",
        "transfer",
        "workers",
        "order",
        "loaders",
        "samplers",
        "spot_checks",
        "digests",
        "slices",
        "sizes",
        "tree",
    ],
    "parallel": ["sharding", "exchange", "agreement", "devices", "world", "alarm", "last_words", "pieces"],
    "folder": ["folder", "provenance", "secrets", "lock", "manifest", "files"],
    "extension": ["found", "packages", "contracts"],
    "config": ["config", "yaml12", "containers"],
}
OUTSIDE = ["builtin", "testing"]  # made with public names alone; see below

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def all_imports(tree: ast.AST) -> Iterator[str]:
    """Full names of everything a module imports, what only type checkers see included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def runtime_imports(tree: ast.Module) -> Iterator[str]:
    """Full names of everything a module imports, but for what only type checkers see."""
    hidden = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node not in hidden and isinstance(node, ast.Import | ast.ImportFrom):
            yield from all_imports(ast.Module(body=[node], type_ignores=[]))


def home_of(path: Path) -> tuple[str, str]:
    """The wing or open room of a file of the core, and its room within the wing."""
    place = path.relative_to(CORE).with_suffix("").parts
    return place[0], place[-1] if len(place) > 1 else ""


INSIDE = [path for path in sorted(CORE.rglob("*.py")) if home_of(path)[0] not in (*OUTSIDE, "__main__")]


def inner_imports(path: Path) -> Iterator[tuple[str, str]]:
    """The wing or open room, and the room within it, of everything of the core that a file imports."""
    for imported in set(all_imports(ast.parse(path.read_text()))):
        parts = imported.split(".")
        if parts[0] == "blowtorch" and len(parts) > 1 and parts[1] in (*LAYERS, *OUTSIDE):
            yield parts[1], parts[2] if len(parts) > 2 and parts[2] in ROOMS.get(parts[1], ()) else ""


def test_the_house_is_what_the_two_lists_say():
    assert {home_of(path)[0] for path in INSIDE} == set(LAYERS)
    assert len({*LAYERS, *OUTSIDE}) <= 24, "a newcomer finds the room for anything within a minute"
    for wing, rooms in ROOMS.items():
        assert {path.stem for path in (CORE / wing).glob("*.py")} - {"__init__"} == set(rooms)
        lines = (CORE / wing / "__init__.py").read_text().splitlines()
        assert len(lines) == 1 and lines[0].startswith('"""'), f"{wing} begins with one sentence, and nothing else"


@pytest.mark.parametrize("path", INSIDE, ids=lambda path: ".".join(filter(None, home_of(path))))
def test_imports_only_point_down(path):
    wing, room = home_of(path)
    for imported, inner in inner_imports(path):
        if imported != wing:
            assert imported in LAYERS[LAYERS.index(wing) + 1 :], f"{path} imports {imported}"
        elif wing in ROOMS and inner:
            assert inner in ROOMS[wing][ROOMS[wing].index(room) + 1 :], f"{path} imports {inner}"


LINKS = r"\[([^]]*)\]\(([^)]*)\)"


def table(heading: str) -> list[list[str]]:
    """The cells of the table below a heading of the page on architecture, without its head and without links."""
    section = re.sub(LINKS, r"\1", PAGE).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_page_on_architecture_has_every_wing_and_room_in_the_order_of_imports():
    wings = [wing for cells in table("The wings") for wing in re.findall(r"`(\w+)/?`", cells[0])]
    assert wings == [*LAYERS[1:], *OUTSIDE]
    outside = {wing: sorted({path.stem for path in (CORE / wing).glob("*.py")} - {"__init__"}) for wing in OUTSIDE}
    rooms = {cells[0].strip("`/"): re.findall(r"`(\w+)`", cells[1]) for cells in table("The rooms of each wing")}
    assert list(rooms.items()) == list((ROOMS | outside).items())


def test_the_page_on_architecture_begins_with_the_picture_and_the_wings():
    picture, wings, index = (PAGE.index(text) for text in ("```mermaid", "## The wings", "## Where is …?"))
    assert PAGE[:picture].count("\n") <= 6 and picture < wings < index
    assert len(table("The wings")) <= 20, "they stand on the first screen, below the picture"


def test_the_page_on_architecture_names_no_room_that_does_not_exist():
    metrics = {"train/loss", "train_epoch/loss", "val/loss"}
    named = set(re.findall(r"(?<![\w./-])[a-z_]+/[a-z_]*(?![\w./-])", re.sub(LINKS, r"\1", PAGE))) - metrics
    assert {"training/", "training/loop", "record/feed"} <= named
    for name in sorted(named):
        assert (CORE / name).is_dir() if name.endswith("/") else (CORE / f"{name}.py").is_file(), name
    inside = "../blowtorch-core/src/blowtorch/"
    links = [(name, target) for name, target in re.findall(LINKS, PAGE) if target.startswith(inside)]
    for name, target in links:
        assert f"`{target.removeprefix(inside).removesuffix('.py')}`" == name


@pytest.mark.parametrize(
    "cells", [row[1:] for row in table("Where is …?")], ids=lambda cells: cells[0].replace("`", "")
)
def test_what_the_page_on_architecture_says_of_a_room_stands_there(cells):
    rooms = [name for name in re.findall(r"`([\w/]+)`", " ".join(cells[1:])) if (CORE / f"{name}.py").is_file()]
    assert f"`{rooms[0]}`" == cells[1]
    texts = " ".join((CORE / f"{name}.py").read_text() for name in rooms)
    for name in re.findall(r"`(\w+)`", cells[2]):
        assert name in rooms or re.search(rf"^\s*(def|class) {name}\b", texts, re.MULTILINE), name


def test_the_three_files_that_the_readme_names_for_a_start_can_be_read_in_one_sitting():
    section = (ROOT / "README.md").read_text().partition("\n## Where things are\n")[2]
    files = re.findall(r"`((?:\w+/)*\w+\.py)`", section)
    assert len(files) == 3
    assert sum((CORE / file).read_text().count("\n") for file in files) <= 700


def test_wings_know_few_others():
    arrows = {(home_of(path)[0], imported) for path in INSIDE for imported, _ in inner_imports(path)}
    arrows = {(one, other) for one, other in arrows if one not in (other, "__init__")}
    assert len(arrows) <= 125


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if CORE not in path.parents or path.parent.name == "builtin"],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_extensions_use_public_names_only(path):
    """The command line is ours: it may look at what is installed, and join processes to see whether that works."""
    public = {f"blowtorch.{name}" for name in blowtorch.__all__} | {"blowtorch"}
    if path.parent.name == "builtin":
        public |= {"blowtorch.builtin.checks"}
    if "blowtorch-cli" in path.parts:
        rooms = ("plugins", "extension.found", "extension.contracts", "errors", "parallel.world")
        public |= {f"blowtorch.{name}" for name in rooms}
    for imported in runtime_imports(ast.parse(path.read_text())):
        if imported.split(".")[0] == "blowtorch":
            known = imported in public or imported.rpartition(".")[0] in public - {"blowtorch"}
            assert known, f"{path} imports {imported}"


def test_the_core_never_imports_a_plugin_package():
    for path in CORE.rglob("*.py"):
        for imported in runtime_imports(ast.parse(path.read_text())):
            assert not imported.startswith(("blowtorch_", "tensorboard", "wandb", "click")), path


def test_public_names_are_these_and_all_of_them_can_be_had():
    assert set(blowtorch.__all__) == {
        "BlowtorchError",
        "BlowtorchWarning",
        "Checkpoint",
        "CheckpointError",
        "Config",
        "ConfigError",
        "ExtensionError",
        "Interval",
        "MissingKeyError",
        "NotFiniteError",
        "OptionError",
        "ProcessError",
        "Run",
        "RunFolderError",
        "RunInfo",
        "RunOptions",
        "RunResult",
        "RunState",
        "RunView",
        "Schedule",
        "ScriptError",
        "Series",
        "find_runs",
        "hookimpl",
        "open_run",
        "parse_yaml",
    }
    for name in blowtorch.__all__:
        assert getattr(blowtorch, name).__doc__ or name == "hookimpl"
    assert not set(blowtorch.__all__) & {*LAYERS, *OUTSIDE}, (
        "a public name that equals a module's would be shadowed by it"
    )


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Rum'"):
        _ = blowtorch.Rum  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400, f"{path} is too long"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                assert (body[-1].end_lineno or 0) - body[0].lineno + 1 <= 50, f"{path}: {node.name} is too long"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len([each for each in arguments if each.arg != "self"]) <= 8, f"{path}: {node.name}"


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(ROOT / "tests").as_posix())
def test_files_of_tests_stay_small(path):
    assert path.read_text().count("\n") <= 400, f"{path} is too long; split it by subject"


def private_aims(tree: ast.AST) -> Iterator[str]:
    """What a test knows of the inside of the code: names with an underscore, and names of ours that are replaced."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
    names = {(alias.asname or alias.name).split(".")[0]: ast.unparse(node) for node in imports for alias in node.names}
    ours = {name for name, statement in names.items() if "blowtorch" in statement}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "os")):  # os._exit is public
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "delattr", "patch", "object")):
            words = [argument.value for argument in node.args[:2] if isinstance(argument, ast.Constant)]
            names_inside = any(str(word).startswith("blowtorch") or is_private(str(word)) for word in words)
            replaces_ours = bool(node.args) and ast.unparse(node.args[0]).split(".")[0] in ours
            if names_inside or replaces_ours:
                yield ast.unparse(node)
    yield from (statement for name, statement in names.items() if is_private(name))


# The first two are what blowtorch/data/loaders.py relies on, the others what a tensor of one's own is made with.
_OF_TORCH = ("_iterator", "_shutdown_workers", "_make_wrapper_subclass", "_schema")


def is_private(name: str) -> bool:
    """Whether a name begins with one underscore, but for those of torch that there is no way around."""
    return name.startswith("_") and not name.startswith("__") and name not in _OF_TORCH


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(ROOT / "tests").as_posix())
def test_tests_aim_at_no_private_name(path):
    assert list(private_aims(ast.parse(path.read_text()))) == []


def test_every_hook_and_each_of_its_parameters_is_documented():
    specs = [value for name, value in vars(hookspecs).items() if name.endswith("Spec")]
    assert len(specs) == 5
    for spec in specs:
        for name, hook in vars(spec).items():
            if name.startswith("_"):
                continue
            text = inspect.getdoc(hook)
            assert text, f"{spec.__name__}.{name} has no docstring"
            everywhere = f"{text} {spec.__doc__} {hookspecs.RunInfo.__doc__}"
            for parameter in list(inspect.signature(hook).parameters)[1:]:
                assert parameter in everywhere or parameter == "run", f"{spec.__name__}.{name}: {parameter}"


LIGHT_MODULES = [
    "blowtorch",
    "blowtorch.hookspecs",
    "blowtorch.config.config",
    "blowtorch.options",
    "blowtorch.plugins",
]
LIGHT_MODULES += ["blowtorch.folder.folder", "blowtorch.runs.view", "blowtorch_cli.main", "blowtorch_wandb"]
LIGHT_MODULES += ["blowtorch_tensorboard"]


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_imports_that_must_be_light_load_no_heavy_library(module):
    code = f"import sys, {module}; print(*[m for m in ('torch', 'numpy', 'wandb', 'tensorboard') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_packages_agree_on_their_version():
    versions = {
        tomllib.loads((ROOT / package / "pyproject.toml").read_text())["project"]["version"] for package in PACKAGES
    }
    assert versions == {blowtorch.__version__}


def test_no_torch_release_is_excluded_from_above():
    project = tomllib.loads((ROOT / "blowtorch-core" / "pyproject.toml").read_text())["project"]
    torch = next(each for each in project["dependencies"] if each.startswith("torch"))
    assert "<" not in torch and "=" not in torch.replace(">=", "")
