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


@pytest.fixture
def write(tmp_path):
    """Write a script; gives its path."""

    def write_script(code, name="train.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("import os, signal, sys, time\nrank = int(os.environ['RANK'])\n" + textwrap.dedent(code))
        return str(path)

    return write_script


@pytest.fixture
def launch(tmp_path):
    """Start a launcher in a folder of its own; gives the process. None is left."""
    started = []

    def start(*arguments, **pipes):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        environment["TMPDIR"] = str(tmp_path)  # one that is killed leaves its folder there
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | pipes
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "blowtorch_cli", "launch", *arguments], cwd=tmp_path, env=environment, **pipes
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


@pytest.fixture
def finish(launch):
    """Run a launcher to its end; gives its exit status and what it has printed."""

    def run(*arguments):
        process = launch(*arguments)
        output, error = process.communicate(timeout=120)
        return process.returncode, output, error

    return run
