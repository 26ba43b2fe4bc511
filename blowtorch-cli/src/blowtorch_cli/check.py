"""`blowtorch plugins check` and `show`: imports extensions, each module in a process of its own."""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blowtorch.extension.found import COLUMNS, Extension, find_idle_switches
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
        """Whether there is something to mend."""
        return self.extension.status not in ("ok", "disabled")

    def broken(self, reason: str) -> "Report":
        """The same, with what the check has shown."""
        return dataclasses.replace(self, extension=dataclasses.replace(self.extension, status="broken", reason=reason))

    def as_row(self) -> dict[str, Any]:
        """What a listing shows, under the keys that are the same in every version."""
        row: dict[str, Any] = {column: getattr(self.extension, column) for column in COLUMNS}
        return row | {"import_seconds": self.finding.import_seconds, "contract": self.contract}

    def as_page(self) -> dict[str, Any]:
        """All that is known."""
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
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        probed = pool.map(lambda module: _probe(module, timeout_s), modules.values())
        findings = dict(pair for pairs in probed for pair in pairs)
    reports = []
    for extension in extensions:
        report = Report(extension, findings.get(extension, Finding()))
        reports.append(report.broken(report.finding.problem) if report.finding.problem else report)
    return reports


def check_environment(extensions: Sequence[Extension]) -> Iterator[Report]:
    """What is wrong with none of the extensions and still in their way."""
    for variable, reason in find_idle_switches(extensions):
        yield Report(Extension("variable", variable, status="broken", reason=reason), Finding())
    if reason := describe_foreign_package():
        version = importlib.metadata.version("blowtorch")
        foreign = Extension("package", "blowtorch", "blowtorch", version, status="conflict", reason=reason)
        yield Report(foreign, Finding())


def _probe(extensions: list[Extension], timeout_s: float) -> list[tuple[Extension, Finding]]:
    """Import the extensions of one module in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result, output = Path(folder) / "result", Path(folder) / "output"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "blowtorch_cli.probe", str(result)],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
            try:
                process.communicate(json.dumps([*map(dataclasses.asdict, extensions)]).encode(), timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                end = f"has not ended after {timeout_s:g} s"
            else:
                end = _describe_end(process.returncode)
        if result.exists():
            findings = [Finding(**fields) for fields in json.loads(result.read_text(encoding="utf-8"))]
            return list(zip(extensions, findings, strict=True))
        printed = output.read_text(encoding="utf-8", errors="replace").strip()
    return [(each, Finding(f"the import of {each.target.partition(':')[0]!r} {end}", printed)) for each in extensions]


def _describe_end(code: int) -> str:
    if code < 0:
        return f"ends the process by signal {-code}"
    return f"ends the process with exit status {code}"
