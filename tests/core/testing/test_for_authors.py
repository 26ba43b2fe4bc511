"""The suites as authors of extensions use them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import blowtorch.testing
from blowtorch.testing import (
    CallbackContract,
    LoggerContract,
)
from tests.core.testing.checking import checks
from tests.core.testing.faulty_callbacks import ScalesWeights


def run_pytest(folder, *options):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def test_the_example_in_the_documentation_passes(tmp_path):
    text = (Path(__file__).parents[3] / "docs" / "extensions.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (logger,) = [block for block in blocks if "class AcmeLogger:" in block]
    (suite,) = [block for block in blocks if "LoggerContract" in block]
    (tmp_path / "acme_logger.py").write_text(logger)
    (tmp_path / "test_acme_logger.py").write_text(suite)
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout
    assert f"{len(checks(LoggerContract))} passed" in done.stdout


def test_only_classes_with_the_name_of_a_test_are_collected(tmp_path):
    """Neither the suites, which are imported, nor a suite that an author derives from one."""
    (tmp_path / "test_mine.py").write_text(
        "from blowtorch.testing import *\n"
        "class OurContract(LoggerContract): pass\n"
        "class TestMine(OurContract): pass\n"
        "class TestOther(OurContract): __test__ = False\n"
    )
    collected = run_pytest(tmp_path, "--collect-only").stdout
    assert {line.split("::")[1] for line in collected.splitlines() if "::" in line} == {"TestMine"}


@pytest.mark.parametrize("suite", [*blowtorch.testing.__all__])
def test_a_class_that_does_not_say_what_to_test_is_told_how(suite, tmp_path):
    class TestNothing(getattr(blowtorch.testing, suite)):  # type: ignore[misc]
        pass

    with pytest.raises(NotImplementedError, match=r"^write make_\w+\(self, tmp_path\), which returns"):
        TestNothing().test_the_class_keeps_its_contract(tmp_path)


def test_without_pytest_the_import_says_what_is_missing():
    code = "import sys; sys.modules['pytest'] = None; import blowtorch.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: blowtorch.testing needs pytest, which is not installed: pip install pytest"
    )


def test_nothing_else_of_the_core_imports_the_suites():
    core = Path(blowtorch.__file__).parent
    for path in core.rglob("*.py"):
        if path.parent.name != "testing":
            assert "blowtorch.testing" not in path.read_text(), path


def test_a_callback_may_be_there_to_change_the_training(tmp_path):
    class TestScales(CallbackContract):
        changes_training = True

        def make_callback(self, tmp_path):
            return ScalesWeights()

    TestScales().test_it_leaves_the_training_as_it_is(tmp_path)
