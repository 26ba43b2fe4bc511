"""Which words of the command line are the launcher's and which the script's, and whether there is such a script."""

import difflib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from blowtorch.errors import nearest

_HELP = ("-h", "--help")
_OF_TORCHRUN = {
    "--nproc-per-node": "--processes",
    "--nproc_per_node": "--processes",
    "--nnodes": "--nodes",
    "--max-restarts": "--restarts",
    "--max_restarts": "--restarts",
    "--rdzv-endpoint": "--rendezvous",
    "--rdzv_endpoint": "--rendezvous",
}


def separate(words: Sequence[str], options: Mapping[str, bool]) -> list[str]:
    """Return the words with a `--` before the script's name, which is preceded by all the launcher's options.

    The launcher's options stand before or right after the name of the script. The script's own words begin after
    `--`, or with the first word that is no option of the launcher's.

    Args:
        words: the command line.
        options: the launcher's, and whether each takes a value.

    Raises:
        click.UsageError: an option of the launcher's, or a misspelt one, stands among the script's own words.
    """
    own: list[str] = []
    rest = list(words)
    script: list[str] = []
    while rest:
        word = rest[0]
        name, equals, _ = word.partition("=")
        if word == "--":
            rest = rest[1:]
            break
        if name in options:
            length = 2 if options[name] and not equals else 1
            own += rest[:length]
            rest = rest[length:]
        elif name in _OF_TORCHRUN:
            raise click.UsageError(f"{name} is torchrun's; here it is {_OF_TORCHRUN[name]}")
        elif not script:
            (own if word.startswith("-") else script).append(word)  # click names an unknown option
            rest = rest[1:]
        else:
            _refuse_mixture(rest, list(options))
            break
    return [*own, "--", *script, *rest]


def _refuse_mixture(words: Sequence[str], options: Sequence[str]) -> None:
    """Refuse words of the script among which one looks like an option of the launcher's."""
    long = [option for option in options if option.startswith("--") and option not in _HELP]
    for word in words:
        name = word.partition("=")[0]
        if word == "--":
            return
        if name in long:
            raise click.UsageError(
                f"{name} stands behind words of the script's own: write it before them, "
                "or, if the script is to have it, write -- before the script's words"
            )
        if name.startswith("--") and (close := difflib.get_close_matches(name, long, n=1, cutoff=0.8)):
            raise click.UsageError(
                f"{name} is no option of launch. Did you mean {close[0]}? "
                "If it is the script's own, write -- before the script's words"
            )


def check_script(script: str) -> None:
    """Refuse what is no Python script.

    Raises:
        click.ClickException: there is no such file, or it is a notebook.
    """
    path = Path(script)
    if path.suffix == ".ipynb":
        raise click.ClickException(
            f"{script} is a notebook, which is one process: save it as a script, for instance by "
            f"`jupyter nbconvert --to script {script}`, and launch that"
        )
    if path.is_file() or (path / "__main__.py").is_file():
        return
    if path.is_dir():
        raise click.ClickException(f"{script} is a folder without a __main__.py: name the script in it")
    scripts = [str(path.with_name(file.name)) for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
    hint = nearest(str(path), scripts)
    if not hint and "." in script and "/" not in script and path.suffix != ".py":
        hint = f" To run a module, write -m {script}."
    raise click.ClickException(f"there is no script {script!r}.{hint}")


def check_module(name: str) -> None:
    """Refuse a module whose package is not there; nothing is imported.

    Raises:
        click.ClickException: it is not found from the current folder.
    """
    package = name.partition(".")[0]
    sys.path.insert(0, str(Path.cwd()))
    try:
        is_there = package.isidentifier() and importlib.util.find_spec(package) is not None
    finally:
        del sys.path[0]
    if not is_there:
        hint = f" To run a script, leave out -m: {name} is a file." if Path(name).is_file() else ""
        raise click.ClickException(f"no module is called {name!r}.{hint}")
