"""Reads the metadata of installed packages that declares extensions, and imports none of them."""

import functools
import importlib.metadata
import io
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")
_PLAIN_REQUIREMENT = re.compile(r"blowtorch[-_.]+core(\s*,?\s*(>=|<)\s*\d+(\.\d+)*)+", re.IGNORECASE)


class Package:
    """The metadata of one copy of an installed package.

    Each file is read when it is first needed, and again only when it has changed.
    """

    def __init__(self, distribution: importlib.metadata.Distribution) -> None:
        self._distribution = distribution
        self._path = getattr(distribution, "_path", None)
        self._folder = str(self._path) if isinstance(self._path, Path) else None  # one in a ZIP file has another path

    @property
    def name_by_folder(self) -> str:
        """The normalised name as the folder of the metadata has it, for which no file is read."""
        stem, _, suffix = getattr(self._path, "name", "").rpartition(".")
        return normalise(stem.partition("-")[0]) if suffix in ("dist-info", "egg-info") else self.name

    @functools.cached_property
    def name(self) -> str:
        """The normalised name; empty where a damaged installation does not tell it."""
        return normalise(self.fields["Name"][0])

    @functools.cached_property
    def entry_points(self) -> str:
        """The text that declares entry points."""
        return self._read("entry_points.txt", str)

    @functools.cached_property
    def fields(self) -> Mapping[str, Sequence[str]]:
        """The fields that matter here; `Distribution.metadata` would parse the long description too."""
        fields = self._read("METADATA", _find_fields)
        return fields if fields["Name"][0] else self._read("PKG-INFO", _find_fields)

    def _read(self, file: str, parse: Callable[[str], _T]) -> _T:
        """Return what a file says, or what an empty one does: one damaged installation must not stop the others."""
        try:
            if self._folder is None:
                return parse(self._distribution.read_text(file) or "")
            path = f"{self._folder}{os.sep}{file}"
            status = os.stat(path)  # noqa: PTH116 - a path would take longer than all else here
            said: _T = _read_once(path, status.st_mtime_ns, status.st_size, parse)
            return said
        except (OSError, ValueError):
            return parse("")


@functools.lru_cache(maxsize=4096)  # each run of a notebook or a sweep asks again, and one may be installed meanwhile
def _read_once(path: str, _changed_ns: int, _size: int, parse: Callable[[str], _T]) -> _T:
    with io.FileIO(path) as stream:  # a third of the time that `read_text` takes
        return parse(stream.read().decode("utf-8"))


def _find_fields(text: str) -> Mapping[str, Sequence[str]]:
    fields: dict[str, list[str]] = {"Name": [], "Version": [], "Requires-Dist": []}
    for line in text.partition("\n\n")[0].splitlines():
        field, separator, value = line.partition(": ")
        if not line:
            break
        if separator and field in fields:
            fields[field].append(value.strip())
    return {name: values or ([] if name == "Requires-Dist" else [""]) for name, values in fields.items()}


def find_packages(group_prefix: str) -> list[Package]:
    """Return the installed packages that declare entry points in such groups, each as an import would find it.

    The copy that comes first on the path hides the others, even when it declares none.

    Args:
        group_prefix: what the names of the groups begin with, such as `blowtorch.`.
    """
    copies: dict[str, list[Package]] = defaultdict(list)  # in the order of the path
    packages: dict[str, Package] = {}
    for package in map(Package, importlib.metadata.distributions()):
        copies[package.name_by_folder].append(package)
        if f"[{group_prefix}" in package.entry_points and package.name and package.name not in packages:
            first = [copy for copy in copies[package.name] if copy.name == package.name]
            packages[package.name] = (first or [package])[0]
    return list(packages.values())


def find_mismatch(package: Package, core: str) -> str:
    """Return why a package does not go with this version of the core; an empty text when it does."""
    for text in package.fields["Requires-Dist"]:
        if not re.match(r"blowtorch[-_.]+core\b", text, re.IGNORECASE) or _is_plainly_met(text, core):
            continue
        from packaging.requirements import Requirement

        try:
            requirement = Requirement(text)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        except ValueError:  # malformed; that is between the package and the installer
            continue
        if applies and not requirement.specifier.contains(core, prereleases=True):
            return f"needs blowtorch-core{requirement.specifier}, and {core} is installed"
    return ""


@functools.cache  # many packages write the same
def _is_plainly_met(requirement: str, core: str) -> bool:
    """Tell whether a core such as `0.1.0` meets a requirement such as `blowtorch-core>=0.1,<0.2`, for sure.

    That is nearly always so, and then `packaging`, whose import takes longer than all else here, is not needed.
    """
    if not _PLAIN_REQUIREMENT.fullmatch(requirement) or not re.fullmatch(r"[\d.]+", core):
        return False
    bounds = re.findall(r"(>=|<)\s*([\d.]+)", requirement)
    return all((_release(core) >= _release(version)) == (bound == ">=") for bound, version in bounds)


def _release(version: str) -> list[int]:
    numbers = [int(number) for number in version.split(".")]
    return numbers + [0] * (9 - len(numbers))


def normalise(package: str) -> str:
    """Return the one form of all the ways to write the name of a package.

    >>> normalise("Acme_Logger")
    'acme-logger'
    """
    return re.sub(r"[-_.]+", "-", package).lower()
