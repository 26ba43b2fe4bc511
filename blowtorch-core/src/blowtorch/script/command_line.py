"""With which words a script was started, which of them are its own, and which file it is."""

import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blowtorch.config.config import split_command_line

_PACKAGES = ("site-packages", "dist-packages")
# They run the code of others, so that neither their file nor their words say anything of it.
_LAUNCHERS = set("pytest py.test nose2 ipython ipykernel ipykernel_launcher colab_kernel_launcher jupyter".split())
_LAUNCHERS |= set("spyder_kernels streamlit ray dask distributed joblib submitit celery gunicorn uvicorn".split())


class ScriptArguments(property):
    """The words that are left to a script's own parser: all that stand before `with`, as a list of its own.

    `Run.script_arguments` looks at `sys.argv`, so that a parser can be asked before there is a run; that of a run
    looks at the command line that the run was given. `sys.argv` stays as it is: loader workers read it too, and so
    does whatever starts the script again.
    """

    def __get__(self, run: Any, _: type | None = None, /) -> list[str]:  # type: ignore[override] # of the class too
        words = words_of_process() if run is None else run._script.command_line
        return split_command_line(words)[0][1:]


def words_of_process() -> list[str]:
    """Return `sys.argv`, or nothing where it belongs to what runs the script, such as pytest or a notebook's kernel."""
    return [] if sys.argv and _is_launcher(Path(sys.argv[0])) else list(sys.argv)


def find_script(words: Sequence[str]) -> str:
    """Return the absolute path of the script that was started with these words; empty where there is none.

    There is none in notebooks, at a prompt, under test runners, for `python -c` and on standard input. Links between
    folders are followed, so that a script is the same however one comes to it; its own name may be a link.
    """
    started = words[0] if words else ""
    main = getattr(sys.modules["__main__"], "__file__", None) or ""
    if not main and list(words) == sys.argv:
        return ""
    places = [started, main]
    if Path(started).name == Path(main).name:
        places.reverse()  # that one is absolute, and the script may have changed the folder since
    for place in places:
        path = Path(place)
        if place and path.is_file() and not _is_launcher(path):
            return str(path.parent.resolve() / path.name)
    return ""


def _is_launcher(file: Path) -> bool:
    """Return whether a file runs the code of others."""
    parts = file.absolute().parts
    package = next((parts[index + 1] for index, part in enumerate(parts[:-1]) if part in _PACKAGES), None)
    if package is not None:
        return package.removesuffix(".py") in _LAUNCHERS and file.name != "__init__.py"
    if file.parent.name in ("bin", "Scripts"):
        return file.name.removesuffix(".exe").rstrip("-.0123456789") in _LAUNCHERS
    return file.is_file() and file.resolve().is_relative_to(Path(sysconfig.get_path("stdlib")).resolve())
