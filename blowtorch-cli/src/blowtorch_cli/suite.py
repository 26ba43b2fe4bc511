"""Runs the contract suite of a kind on an installed extension, in a scratch folder."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from blowtorch.errors import ExtensionError
from blowtorch.extension.found import Extension
from blowtorch.plugins import SPECS, Plugins

_MODULE = """\
import json

from blowtorch.testing import {suite}
from blowtorch_cli.suite import make


class TestContract({suite}):
    def make_{kind}(self, tmp_path):
        return make({kind!r}, {reference!r}, json.loads({options!r}), tmp_path)
"""


def run_suite(extension: Extension, options: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """Run the suite and count.

    Args:
        extension: one that a check has found sound.
        options: what it is made with; `{tmp_path}` in a text stands for the folder of the test.
        timeout_s: how long the suite may take.

    Returns:
        `passed`, `failed` and `skipped`, which are numbers, and `failures`, a text for each test by its name.

    Raises:
        ExtensionError: there is no suite for its kind, pytest is missing, or the suite came to no end.
    """
    if extension.kind not in SPECS:
        raise ExtensionError(f"{extension.label}: there is no contract suite for commands")
    if extension.kind == "config-source":
        raise ExtensionError(
            f"{extension.label}: only its author can say what a source gives; subclass "
            "blowtorch.testing.ConfigSourceContract and write make_source"
        )
    if find_spec("pytest") is None:
        raise ExtensionError("the contract suites need pytest, which is not installed: pip install pytest")
    suite = "".join(map(str.capitalize, extension.kind.split("-"))) + "Contract"
    words = {"kind": extension.kind.replace("-", "_"), "reference": extension.reference, "suite": suite}
    with tempfile.TemporaryDirectory() as folder:
        path, result = Path(folder) / "test_contract.py", Path(folder) / "result.xml"
        path.write_text(_MODULE.format(options=json.dumps(options), **words), encoding="utf-8")
        plain = {**os.environ, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder]
        places = ["--basetemp", f"{folder}/tests", "--junitxml", str(result), str(path)]
        try:
            done = subprocess.run(
                [*command, *places], cwd=folder, env=plain, capture_output=True, text=True, check=False,
                timeout=timeout_s,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ExtensionError(f"{extension.label}: its contract suite has not ended after {timeout_s:g} s") from None
        if not result.exists():
            text = f"{extension.label}: its contract suite ended without a result:\n{done.stdout}{done.stderr}"
            raise ExtensionError(text)
        return _count(ElementTree.parse(result).getroot())


def make(kind: str, reference: str, options: Any, tmp_path: Path) -> Any:
    """Make the extension for a test, as a run does."""
    name = {method.replace("-", "_"): method for method in SPECS}[kind]
    return Plugins().create(name, {reference: _fill(options, str(tmp_path))}).instance


def _fill(value: Any, folder: str) -> Any:
    if isinstance(value, str):
        return value.replace("{tmp_path}", folder)
    if isinstance(value, Mapping):
        return {key: _fill(item, folder) for key, item in value.items()}
    return [_fill(item, folder) for item in value] if isinstance(value, list) else value


def _count(root: ElementTree.Element) -> dict[str, Any]:
    failures: dict[str, str] = {}
    skipped = passed = 0
    for case in root.iter("testcase"):
        trouble = case.find("failure") if case.find("failure") is not None else case.find("error")
        if trouble is not None:
            failures[case.get("name", "")] = trouble.get("message", "").removeprefix("AssertionError: ")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return {"passed": passed, "failed": len(failures), "skipped": skipped, "failures": failures}
