"""What `blowtorch plugins new` writes is installed, listed, and passes its own tests, without an edit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from blowtorch.extension.found import GROUPS

COMMAND = str(Path(sys.executable).with_name("blowtorch"))


def execute(*words, folder):
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", GROUPS)
def test_a_new_package_is_listed_passes_its_tests_and_is_sound(kind, tmp_path):
    name = f"fresh-{kind}"
    execute(COMMAND, "plugins", "new", kind, name, folder=tmp_path)
    folder = tmp_path / f"blowtorch-{name}"
    install = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", str(folder))
    execute(*install, folder=tmp_path)
    try:
        listed = json.loads(execute(COMMAND, "plugins", "list", "--json", folder=tmp_path))
        [entry] = [each for each in listed if each["name"] == name]
        assert (entry["kind"], entry["package"], entry["status"]) == (kind, f"blowtorch-{name}", "ok")
        [checked] = json.loads(execute(COMMAND, "plugins", "check", name, "--json", folder=tmp_path))
        assert (checked["status"], checked["reason"]) == ("ok", "")
        assert "passed" in execute(sys.executable, "-m", "pytest", "-q", folder=folder)
    finally:
        execute(sys.executable, "-m", "pip", "uninstall", "-q", "-y", f"blowtorch-{name}", folder=tmp_path)
