"""`blowtorch plugins check` and `show`: imports extensions, each module in a process of its own."""

import dataclasses
import importlib.metadata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from blowtorch.extension.found import COLUMNS, Extension, find_idle_switches
from blowtorch_cli.apart import import_apart
from blowtorch_cli.entry import describe_foreign_package
from blowtorch_cli.probe import Finding


@dataclass(frozen=True)
class Report:
    """What a check knows of one extension.

    Attributes:
        extension: with its status, which is `broken` where the check has shown that.
        finding: what its import has shown; empty where it was not imported.
        contract: how the suite of its kind ended: `passed`, `failed`, `skipped`, `failures`; None if it was not run.
    """

    extension: Extension
    finding: Finding
    contract: dict[str, Any] | None = None

    @property
    def is_in_trouble(self) -> bool:
        """Whether something has to be mended."""
        return self.extension.status not in ("ok", "disabled")

    def broken(self, reason: str) -> "Report":
        """Return this report with the extension as broken, for a reason that the check has shown."""
        return dataclasses.replace(self, extension=dataclasses.replace(self.extension, status="broken", reason=reason))

    def as_row(self) -> dict[str, Any]:
        """Return what a listing shows, under keys that are the same in every version."""
        row: dict[str, Any] = {column: getattr(self.extension, column) for column in COLUMNS}
        return row | {"import_seconds": self.finding.import_seconds, "contract": self.contract}

    def as_page(self) -> dict[str, Any]:
        """Return all that is known."""
        page = self.as_row() | {"target": self.extension.target}
        del page["contract"]
        return page | {key: value for key, value in dataclasses.asdict(self.finding).items() if key != "problem"}


def check(extensions: Sequence[Extension], timeout_s: float) -> list[Report]:
    """Import extensions and compare them with their contracts; those whose metadata rules them out stay unimported.

    Args:
        extensions: what to look at.
        timeout_s: how long the imports of one module may take.
    """
    modules: dict[str, list[Extension]] = defaultdict(list)
    for extension in extensions:
        if extension.status in ("ok", "conflict"):
            modules[extension.target.partition(":")[0]].append(extension)
    findings = dict(import_apart([*modules.values()], timeout_s))
    reports = []
    for extension in extensions:
        report = Report(extension, findings.get(extension, Finding()))
        reports.append(report.broken(report.finding.problem) if report.finding.problem else report)
    return reports


def check_environment(extensions: Sequence[Extension]) -> Iterator[Report]:
    """Report what is in the way of extensions and is a fault of none of them."""
    for variable, reason in find_idle_switches(extensions):
        yield Report(Extension("variable", variable, status="broken", reason=reason), Finding())
    if reason := describe_foreign_package():
        version = importlib.metadata.version("blowtorch")
        foreign = Extension("package", "blowtorch", "blowtorch", version, status="conflict", reason=reason)
        yield Report(foreign, Finding())
