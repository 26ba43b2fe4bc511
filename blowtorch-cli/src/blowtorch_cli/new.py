"""`blowtorch plugins new`: a package that is complete from the first moment."""

import keyword
import re
from importlib import resources
from pathlib import Path
from string import Template

from blowtorch.errors import ExtensionError
from blowtorch.extension.found import GROUPS, Extension, in_words

_ENDINGS = {
    "logger": "Logger",
    "checkpoint-backend": "Backend",
    "scheduler": "Scheduler",
    "config-source": "Source",
    "callback": "Callback",
}
_USAGES = {
    "logger": "python train.py with run.loggers={name}",
    "checkpoint-backend": "python train.py with run.checkpoint_backend={name}",
    "scheduler": "python train.py with run.scheduler={name}",
    "config-source": "python train.py with settings.{name}",
    "callback": "python train.py with run.callbacks={name}",
    "command": "blowtorch {name}",
}


def create_package(kind: str, name: str, parent: Path, installed: list[Extension]) -> Path:
    """Write a package with one extension, its tests and its README.

    Args:
        kind: a key of `GROUPS`.
        name: by which it will be reached.
        parent: the folder in which the package gets a folder of its own.
        installed: what is there already.

    Returns:
        The folder of the package.

    Raises:
        ExtensionError: the name is none, or is taken, or the folder exists.
    """
    check_name(kind, name, installed)
    folder = parent / f"blowtorch-{name}"
    if folder.exists():
        raise ExtensionError(f"{folder} exists; choose another name, or another folder with --in")
    for path, text in render_package(kind, name).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def check_name(kind: str, name: str, installed: list[Extension]) -> None:
    """Raise an `ExtensionError` if an extension cannot have this name."""
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise ExtensionError(f"expected a name of small letters, digits, '-' and '_', such as 'acme', got {name!r}")
    for extension in installed:
        if (extension.kind, extension.name) == (kind, name):
            raise ExtensionError(f"{extension.label} has this name already; choose another")


def render_package(kind: str, name: str) -> dict[str, str]:
    """Return the text of every file of a package, by its path."""
    module = f"blowtorch_{name.replace('-', '_')}"
    camel = "".join(word.capitalize() for word in re.split(r"[-_]", name)).removesuffix(_ENDINGS.get(kind, ""))
    requirements = ["blowtorch-core>=0.1,<0.2", *(["click>=8.1"] if kind == "command" else [])]
    words = {
        "kind": in_words(kind),
        "name": name,
        "package": f"blowtorch-{name}",
        "module": module,
        "target": f"{camel}{_ENDINGS[kind]}" if kind in _ENDINGS else name.replace("-", "_"),
        "group": GROUPS[kind],
        "dependencies": ", ".join(f'"{requirement}"' for requirement in requirements),
        "usage": _USAGES[kind].format(name=name),
    }
    return {
        "pyproject.toml": _render("pyproject.toml", words),
        "README.md": _render("README.md", words),
        "tox.ini": _render("tox.ini", words),
        f"src/{module}/__init__.py": _render(f"{kind}.py", words),
        f"src/{module}/py.typed": "",
        f"tests/test_{module.removeprefix('blowtorch_')}.py": _render(f"test_{kind}.py", words),
    }


def _render(file: str, words: dict[str, str]) -> str:
    template = resources.files("blowtorch_cli").joinpath("templates", f"{file}.template").read_text(encoding="utf-8")
    return Template(template).substitute(words)
