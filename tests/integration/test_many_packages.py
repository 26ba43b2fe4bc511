"""300 installed packages, 60 of them broken in every way, hurt nothing but a run that names a broken one."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from torch import nn

from blowtorch import open_run

MARKED = """
    from blowtorch import hookimpl

    class Acme:
        def __init__(self, url="here"):
            self.url = url

        @hookimpl
        def log_metrics(self, metrics, step):
            pass
    """
LOUD = "print('imported', __name__)\n"
# Each way to be broken: the module, what naming it as a logger says, and what is unusual about its metadata.
WAYS = {
    "raises": ("raise OSError('no disk')", "cannot be imported: OSError: no disk", {}),
    "exits": ("raise SystemExit(3)", "cannot be imported: SystemExit: 3", {}),
    "own-error": ("class Own(BaseException): pass\nraise Own('mine')", "cannot be imported: Own: mine", {}),
    "lacks": ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'", {}),
    "syntax": ("def broken(:", "cannot be imported: SyntaxError", {}),
    "attribute": ("class Acmee: pass", "has no 'Acme'. Did you mean 'Acmee'?", {}),
    "function": ("def Acme(): pass", "to be a class, got <function Acme", {}),
    "hook": (MARKED.replace("log_metrics", "log_metric"), "no hook 'log_metric'. Did you mean 'log_metrics'?", {}),
    "argument": (MARKED.replace("step", "stepp"), "an argument 'stepp' that the hook does not have", {}),
    "kind": (
        MARKED.replace("log_metrics(self, metrics, step)", "scheduler_build(self, optimizer)"),
        "looks like a scheduler, not a logger",
        {},
    ),
    "constructor": (MARKED.replace("self.url = url", "raise OSError(url)"), "in its constructor: OSError: here", {}),
    "old": (MARKED, "is incompatible: needs blowtorch-core<0.0.1, and ", {"requires": "blowtorch-core<0.0.1"}),
    "twin": (MARKED, "packages have a logger 'twin': write 'broken-", {"name": "twin"}),
    "group": (MARKED, "has no entry-point group 'blowtorch.logger'", {"group": "blowtorch.logger"}),
    "malformed": (MARKED, "expected an entry point 'module:Class', got 'not a module'", {"target": "not a module"}),
}  # fmt: skip
SCRIPT = """
    import sys

    import torch
    from torch import nn

    import blowtorch
    from blowtorch import ExtensionError, Run

    run = Run(command_line=["train.py"], random_seed=3)
    steps = 0

    @run.train_step
    def train_step(batch, model):
        global steps
        steps += 1
        return {"loss": model(batch).square().mean()}

    @run.configure_optimizers
    def configure_optimizers(model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    batches = list(torch.arange(32.0).reshape(8, 4, 1) / 32)
    for given in map(eval, sys.argv[1:]):
        try:
            run(nn.Linear(1, 1), batches, max_epochs=2, callbacks=[], **given)
        except ExtensionError as error:
            print(f"steps={steps} {error}")
        else:
            print("trained", steps)
    """


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of 300 packages, and the names of the extensions in those that are broken."""
    site, names = tmp_path_factory.mktemp("site"), {}
    for number in range(300):
        way = list(WAYS)[number // 5 % len(WAYS)] if number % 5 == 0 else None
        code, _, unusual = WAYS[way] if way else (MARKED, "", {})
        module = f"fake_{number:03d}"
        package = f"broken-{number:03d}" if way else f"sound-{number:03d}"
        name = unusual.get("name", f"{way or 'sound'}-{number:03d}")
        info = site / f"{package.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        requires = unusual.get("requires", "blowtorch-core>=0.1,<0.2")
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\nRequires-Dist: {requires}\n"
        )
        group, target = unusual.get("group", "blowtorch.loggers"), unusual.get("target", f"{module}:Acme")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
        (site / f"{module}.py").write_text(LOUD + textwrap.dedent(code))
        if way:
            names.setdefault(way, name)
    return site, names


def execute(folder, *command, site=None):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BLOWTORCH_")}
    environment |= {"OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(site)} if site else {})
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_list_names_all_and_imports_none(site, tmp_path):
    listed = json.loads(execute(tmp_path, "-m", "blowtorch_cli", "plugins", "list", "--json", site=site[0]))
    packages = {row["package"] for row in listed if row["package"].startswith(("broken-", "sound-"))}
    assert len(packages) == 300
    assert len([package for package in packages if package.startswith("broken-")]) == 60
    table = execute(tmp_path, "-m", "blowtorch_cli", "plugins", "list", site=site[0])
    assert len(table.splitlines()) == 1 + len(listed)
    assert "imported" not in table


def test_a_run_that_names_none_trains_as_if_they_were_not_there(site, tmp_path):
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT))
    weights = []
    for place, path in (("without", None), ("beside", site[0])):
        (tmp_path / place).mkdir()
        output = execute(tmp_path / place, "../train.py", "{}", site=path)
        assert output.endswith("\ntrained 16\n")
        [folder] = (tmp_path / place / "train_logs").iterdir()
        model = open_run(folder).load_model(nn.Linear(1, 1), "latest")
        weights.append([parameter.item() for parameter in model.parameters()])
    assert weights[0] == weights[1]


def test_a_run_that_names_a_broken_one_stops_before_training_with_its_cause(site, tmp_path):
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT))
    folder, names = site
    given = [{"loggers": [names[way]]} for way in WAYS]
    given.append({"loggers": [{"sound-001": {"urll": "there"}}]})
    expected = [text for _, text, _ in WAYS.values()]
    expected.append("logger 'sound-001' (sound-001 1.2): there is no option 'urll'. Did you mean 'url'?")
    lines = [line for line in execute(tmp_path, "train.py", *map(repr, given), site=folder).splitlines() if "=" in line]
    assert len(lines) == len(expected)
    for line, text in zip(lines, expected, strict=True):
        assert line.startswith("steps=0 ")
        assert text in line
    for way, line in zip(WAYS, lines, strict=False):
        if way not in ("twin", "group"):  # which are of two packages, and of none that is a logger
            assert f"logger {names[way]!r} (broken-" in line
    assert not (tmp_path / "train_logs").exists()
