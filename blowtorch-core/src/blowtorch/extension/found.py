"""Finds the installed extensions by the metadata of packages, and imports one when it is told to."""

import dataclasses
import importlib
import importlib.metadata
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blowtorch.errors import ExtensionError, describe, nearest
from blowtorch.extension.packages import Package, find_mismatch, find_packages, normalise

GROUPS: Mapping[str, str] = {
    "logger": "blowtorch.loggers",
    "checkpoint-backend": "blowtorch.checkpoint_backends",
    "scheduler": "blowtorch.schedulers",
    "config-source": "blowtorch.config_sources",
    "callback": "blowtorch.callbacks",
    "command": "blowtorch.commands",
}
COLUMNS = ("kind", "name", "package", "version", "status", "reason")  # of every listing
BUILT_IN = ("blowtorch-core", "blowtorch-cli")  # no other package can take over their names or switch them off
_DISABLED, _ALLOWED = "BLOWTORCH_DISABLE_PLUGINS", "BLOWTORCH_PLUGINS"  # environment variables
_PACKAGES_TO_INSTALL = {("logger", "tensorboard"): "blowtorch-tensorboard", ("logger", "wandb"): "blowtorch-wandb"}
_TARGET = re.compile(r"([\w.]+)\s*:\s*([\w.]+)\s*(\[.*\])?")


@dataclass(frozen=True)
class Extension:
    """What is known of one extension before it is imported.

    Attributes:
        kind: a key of `GROUPS`.
        name: the name of its entry point.
        package: the distribution that declares it; empty for one that none does.
        version: the version of that distribution.
        status: `ok`, `disabled` by a variable, `incompatible` with this core, in `conflict` with a namesake, or
            `broken` where its group is none of ours; `kind` is then that group.
        reason: why the status is not `ok`.
        target: where it is, as `module:Class`.
    """

    kind: str
    name: str
    package: str = ""
    version: str = ""
    status: str = "ok"
    reason: str = ""
    target: str = ""

    @property
    def qualified_name(self) -> str:
        """`package:name`."""
        return f"{self.package}:{self.name}"

    @property
    def reference(self) -> str:
        """The name by which it is reached: qualified when it does not have the bare one."""
        return self.qualified_name if self.status == "conflict" else self.name

    @property
    def label(self) -> str:
        """How messages speak of it, such as `logger 'acme' (acme-logger 1.2)`."""
        origin = f" ({self.package} {self.version})" if self.package else ""
        return f"{in_words(self.kind)} {self.name!r}{origin}"

    def is_called(self, name: str) -> bool:
        """Tell whether a name means this extension: its own, `package:name`, or that of its package."""
        return name in (self.name, self.qualified_name) or normalise(name) == normalise(self.package)

    @property
    def is_built_in(self) -> bool:
        """Whether the extension comes with blowtorch itself."""
        return normalise(self.package) in BUILT_IN

    def load(self) -> Any:
        """Import what its entry point names.

        Raises:
            ExtensionError: it cannot be imported, for whatever reason, or is not there.
        """
        match = _TARGET.fullmatch(self.target)
        if match is None:
            raise ExtensionError(f"{self.label}: expected an entry point 'module:Class', got {self.target!r}")
        module, path = match.group(1), match.group(2)
        try:
            value: Any = importlib.import_module(module)
            for attribute in path.split("."):
                owner, value = value, getattr(value, attribute, None)
                if value is None:
                    break
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # what an import runs may raise anything, and even exit
            raise ExtensionError(
                f"{self.label}: {module!r} cannot be imported: {describe(error)}. "
                "Repair what is installed, or do without it."
            ) from error
        if value is None:
            raise ExtensionError(f"{self.label}: {module!r} has no {attribute!r}.{nearest(attribute, dir(owner))}")
        return value


def find_extensions() -> list[Extension]:
    """Return all installed extensions with their status, in a fixed order; none of them is imported."""
    core = importlib.metadata.version("blowtorch-core")
    switches, packages = _read_switches(), find_packages("blowtorch.")
    declared = [extension for package in packages for extension in _read_extensions(package, core, switches)]
    kinds = {kind: index for index, kind in enumerate(GROUPS)}

    def position(extension: Extension) -> tuple[int, str, str, str]:
        return kinds.get(extension.kind, len(kinds)), extension.kind, extension.name, extension.package

    return sorted(_mark_conflicts(declared), key=position)


def in_words(kind: str) -> str:
    """Return a kind as a sentence says it.

    >>> in_words("config-source")
    'config source'
    """
    return kind.replace("-", " ")


def _read_extensions(package: Package, core: str, switches: Mapping[str, Sequence[str]]) -> Iterator[Extension]:
    mismatch = find_mismatch(package, core)
    for kind, name, target in _parse_entry_points(package.entry_points):
        extension = Extension(kind, name, package.fields["Name"][0], package.fields["Version"][0], target=target)
        if not extension.is_built_in:
            if reason := _find_switch(extension, switches):
                extension = dataclasses.replace(extension, status="disabled", reason=reason)
            elif mismatch:
                extension = dataclasses.replace(extension, status="incompatible", reason=mismatch)
        if kind not in GROUPS:
            reason = f"blowtorch has no entry-point group {kind!r}.{nearest(kind, GROUPS.values())}"
            extension = dataclasses.replace(extension, status="broken", reason=reason)
        yield extension


def _parse_entry_points(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield kind, name and target of each entry point in our groups; a malformed line costs none of the others.

    A group that looks like ours and is not, such as `blowtorch.logger`, is the kind of its entry points.
    """
    kinds = {group: kind for kind, group in GROUPS.items()}
    kind = None
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            group = line.strip("[]").strip()
            kind = kinds.get(group, group if group.startswith("blowtorch.") else None)
        elif kind is not None and line and not line.startswith(("#", ";")):
            name, _, target = line.partition("=")
            yield kind, name.strip(), target.strip()


def _find_switch(extension: Extension, switches: Mapping[str, Sequence[str]]) -> str:
    """Return which variable switches an extension off, in words; an empty text when none does."""
    disabled, allowed = switches[_DISABLED], switches[_ALLOWED]
    if disabled == ["all"] or any(map(extension.is_called, disabled)):
        return f"switched off by {_DISABLED}"
    if allowed and not any(map(extension.is_called, allowed)):
        return f"not among {_ALLOWED}"
    return ""


def _read_switches() -> dict[str, list[str]]:
    """Return the names in each of the two variables."""
    return {
        variable: [name for item in os.environ.get(variable, "").split(",") if (name := item.strip())]
        for variable in (_DISABLED, _ALLOWED)
    }


def find_idle_switches(extensions: Sequence[Extension]) -> Iterator[tuple[str, str]]:
    """Yield each variable that names what it does not switch, with the reason."""
    for variable, names in _read_switches().items():
        if variable == _DISABLED and names == ["all"]:
            continue
        for name in names:
            meant = [extension for extension in extensions if extension.is_called(name)]
            outsiders = [extension for extension in extensions if not extension.is_built_in]
            known = {text for extension in outsiders for text in (extension.name, extension.package)}
            if not meant:
                yield variable, f"no extension and no package is called {name!r}.{nearest(name, known)}"
            elif all(extension.is_built_in for extension in meant):
                yield variable, f"{name!r} comes with blowtorch, and is never switched off"


def _mark_conflicts(extensions: Sequence[Extension]) -> Iterator[Extension]:
    """Yield the extensions, in conflict where two packages claim a name.

    A built-in one keeps its name all the same, and one that is switched off claims none.
    """
    claims: dict[tuple[str, str], set[str]] = defaultdict(set)
    for extension in extensions:
        if extension.status != "disabled":
            claims[extension.kind, extension.name].add(extension.package)
    for extension in extensions:
        rivals = claims[extension.kind, extension.name] - {extension.package}
        if rivals and extension.status == "ok" and not extension.is_built_in:
            reason = f"{', '.join(sorted(rivals))} has this name too; write {extension.qualified_name!r}"
            yield dataclasses.replace(extension, status="conflict", reason=reason)
        else:
            yield extension


def resolve(extensions: Sequence[Extension], kind: str, name: str) -> Extension:
    """Return the usable extension that a name, `package:name` or `module:Class` means.

    Raises:
        ExtensionError: there is none, it is switched off or incompatible, or several have the name.
    """
    package, _, bare = name.rpartition(":")
    namesakes = [extension for extension in extensions if (extension.kind, extension.name) == (kind, bare)]
    if package:
        namesakes = [one for one in namesakes if normalise(one.package) == normalise(package)]
    if not namesakes:
        if re.fullmatch(r"[\w.]+:[\w.]+", name):
            return Extension(kind, name, target=name)
        raise ExtensionError(_describe_unknown(extensions, kind, name))
    if not package:
        built_in = [one for one in namesakes if one.is_built_in]
        namesakes = built_in or [one for one in namesakes if one.status != "disabled"] or namesakes
    extension = namesakes[0]
    if len(namesakes) > 1 and extension.status != "disabled":
        choices = " or ".join(repr(one.qualified_name) for one in namesakes)
        raise ExtensionError(f"{len(namesakes)} packages have a {in_words(kind)} {name!r}: write {choices}")
    if extension.status in ("disabled", "incompatible"):
        remedy = "Change that variable" if extension.status == "disabled" else "Install versions that go together"
        raise ExtensionError(
            f"{extension.label} is {extension.status}: {extension.reason}. {remedy}, or do without it."
        )
    return extension


def _describe_unknown(extensions: Sequence[Extension], kind: str, name: str) -> str:
    same_kind = [extension for extension in extensions if extension.kind == kind]
    installed = [extension.reference for extension in same_kind if extension.status != "disabled"]
    qualified = [extension.qualified_name for extension in same_kind if ":" in name]
    to_install = {
        other: package
        for (its_kind, other), package in _PACKAGES_TO_INSTALL.items()
        if its_kind == kind and other not in installed
    }
    text = f"no {in_words(kind)} is called {name!r}.{nearest(name, [*installed, *qualified, *to_install])}"
    for other, package in to_install.items():
        if nearest(name, [other]):
            text += f" `pip install {package}` brings {other!r}."
    namesakes = [extension for extension in extensions if name in (extension.name, extension.qualified_name)]
    for other in dict.fromkeys(extension.kind for extension in namesakes if extension.kind in GROUPS):
        text += f" There is a {in_words(other)} of that name."
    for stray in (extension for extension in namesakes if extension.kind not in GROUPS):
        text += f" {stray.package} {stray.version} has that name, but {stray.reason}"
    return f"{text} Installed: {', '.join(installed) or 'none'}."


def format_extensions(extensions: Iterable[Extension], as_json: bool = False) -> str:
    """Return a listing of extensions: aligned text, or one JSON array of objects."""
    rows = [[str(getattr(extension, column)) for column in COLUMNS] for extension in extensions]
    if as_json:
        return json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows], indent=2)
    return format_table([COLUMNS, *rows])


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned text.

    >>> print(format_table([["name", "status"], ["local", "ok"]]))
    name   status
    local  ok
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
