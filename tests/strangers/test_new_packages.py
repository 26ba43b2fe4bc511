"""What `blowtorch plugins new` writes is installed, listed, and passes its own tests, without an edit."""

import json
import subprocess
import sys
from pathlib import Path

from blowtorch.extension.found import GROUPS

COMMAND = str(Path(sys.executable).with_name("blowtorch"))


def execute(*words, folder):
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_new_packages_of_all_kinds_are_listed_pass_their_tests_and_are_sound(tmp_path):
    names = [f"fresh-{kind}" for kind in GROUPS]
    packages = [f"blowtorch-{name}" for name in names]
    for kind, name in zip(GROUPS, names, strict=True):
        execute(COMMAND, "plugins", "new", kind, name, folder=tmp_path)
    install = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation")
    execute(*install, *(str(tmp_path / package) for package in packages), folder=tmp_path)
    try:
        listed = json.loads(execute(COMMAND, "plugins", "list", "--json", folder=tmp_path))
        fresh = [(row["kind"], row["name"], row["package"], row["status"]) for row in listed if row["name"] in names]
        assert sorted(fresh) == sorted((*each, "ok") for each in zip(GROUPS, names, packages, strict=True))
        checked = json.loads(execute(COMMAND, "plugins", "check", *names, "--json", folder=tmp_path))
        assert [(row["status"], row["reason"]) for row in checked] == [("ok", "")] * len(names)
        for package in packages:
            assert "passed" in execute(sys.executable, "-m", "pytest", "-q", folder=tmp_path / package)
    finally:
        execute(sys.executable, "-m", "pip", "uninstall", "-q", "-y", *packages, folder=tmp_path)
