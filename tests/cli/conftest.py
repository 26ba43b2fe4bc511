import os
import subprocess
import sys
import textwrap

import pytest


@pytest.fixture
def install(tmp_path):
    """Write a package with metadata, entry points and a module into the folder that `blowtorch` finds it in."""

    def install_package(package, entry_points, *, requires="", **modules):
        info = tmp_path / f"{package.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n{requires}")
        (info / "entry_points.txt").write_text(entry_points)
        for name, code in modules.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))

    return install_package


@pytest.fixture
def blowtorch(tmp_path):
    """Run the command in a process of its own; gives the finished process."""

    def run(*arguments, code="from blowtorch_cli.main import main; main(prog_name='blowtorch')", **variables):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BLOWTORCH_")}
        path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
        environment |= {"PYTHONPATH": path, "COLUMNS": "100", **variables}
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run
