"""Finds out what only an import shows of extensions; `apart` does so in a process of its own.

`python -m blowtorch_cli.probe RESULT` reads a JSON array of extensions from standard input, imports each, and writes
what that has shown to the file RESULT.
"""

import dataclasses
import importlib
import inspect
import json
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blowtorch.errors import ExtensionError, describe
from blowtorch.extension.contracts import find_problems, implemented_hooks
from blowtorch.extension.found import Extension
from blowtorch.plugins import SPECS, load_class
from blowtorch_cli.groups import load_command


@dataclass(frozen=True)
class Finding:
    """What is known of an extension after its import.

    Attributes:
        problem: why it cannot be used; empty when it can.
        traceback: that of the error that its import raised; empty when it raised none.
        import_seconds: how long the import took, with that of all it imports in turn, torch too; None if there was
            none. Of several in one module the first bears it.
        location: the file that it stands in.
        description: its docstring.
        options: the arguments of its constructor: `name`, `type`, `default` (as Python writes it), `required`.
        hooks: those it implements, with the arguments it takes: `name`, `arguments`.
    """

    problem: str = ""
    traceback: str = ""
    import_seconds: float | None = None
    location: str = ""
    description: str = ""
    options: list[dict[str, Any]] = field(default_factory=list)
    hooks: list[dict[str, Any]] = field(default_factory=list)


def probe(extension: Extension) -> Finding:
    """Import an extension and compare it with the contract of its kind; it is not made."""
    begin = time.perf_counter()
    spec = SPECS.get(extension.kind)
    try:
        loaded: Any = load_command(extension) if spec is None else load_class(extension)
    except ExtensionError as error:
        problem = str(error).removeprefix(f"{extension.label}: ")
        return Finding(problem, _traceback(error), time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    if spec is None:
        return Finding("", "", seconds, _location(loaded.callback), loaded.help or "")
    return Finding(
        "; ".join(find_problems(loaded, extension.kind, SPECS)),
        "",
        seconds,
        _location(loaded),
        inspect.cleandoc(loaded.__doc__ or ""),
        _options(loaded),
        [{"name": hook, "arguments": list(names)} for hook, names in implemented_hooks(loaded, spec).items()],
    )


def _traceback(error: BaseException) -> str:
    """Return the traceback of what an extension raised; an empty text for an error that is blowtorch's alone."""
    cause = error.__cause__
    if cause is None:
        return ""
    ours = (inspect.getfile(Extension), importlib.__file__)
    frames = traceback.extract_tb(cause.__traceback__)
    theirs = [
        frame for frame in frames if frame.filename not in ours and not frame.filename.startswith("<frozen importlib")
    ]
    shown = [*traceback.format_list(theirs), *traceback.format_exception_only(cause)]
    return "Traceback (most recent call last):\n" + "".join(shown)


def _location(loaded: Any) -> str:
    try:
        return str(Path(inspect.getfile(inspect.unwrap(loaded))).resolve())
    except (TypeError, OSError):  # not written in Python, or made at run time
        return ""


def _options(extension: type) -> list[dict[str, Any]]:
    try:
        parameters = inspect.signature(extension).parameters.values()
    except (TypeError, ValueError):  # a compiled class need not tell
        return []
    empty = inspect.Parameter.empty
    return [
        {
            "name": str(parameter).partition(":")[0].partition("=")[0].strip(),
            "type": "" if parameter.annotation is empty else _in_words(parameter.annotation),
            "default": None if parameter.default is empty else repr(parameter.default),
            "required": parameter.default is empty
            and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD),
        }
        for parameter in parameters
    ]


def _in_words(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def write_findings(extensions: Iterable[Extension], result: Path) -> None:
    """Probe extensions and write the findings to a file, which is only there if all could be imported or raised."""
    findings = [dataclasses.asdict(_probe_in_peace(extension)) for extension in extensions]
    result.write_text(json.dumps(findings), encoding="utf-8")


def _probe_in_peace(extension: Extension) -> Finding:
    """`probe`, where even a look at the class may raise, such as a default value that has no text."""
    try:
        return probe(extension)
    except Exception as error:
        return Finding(f"looking at what {extension.target!r} names raises {describe(error)}", traceback.format_exc())


def main() -> None:
    """Probe what standard input names."""
    write_findings([Extension(**fields) for fields in json.load(sys.stdin)], Path(sys.argv[1]))


if __name__ == "__main__":
    main()
