"""The built wheels, in an environment that has nothing else of ours."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

PACKAGES = {
    "blowtorch-core": "blowtorch",
    "blowtorch-tensorboard": "blowtorch_tensorboard",
    "blowtorch-wandb": "blowtorch_wandb",
    "blowtorch-cli": "blowtorch_cli",
}

SCRIPT = """
import torch
from blowtorch import Run

run = Run(random_seed=1)
run.train_step(lambda batch, model: model(batch).pow(2).mean())
run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.01))
if __name__ == "__main__":
    data = [torch.ones(8, 4)] * 5
    run(torch.nn.Linear(4, 1), data, loggers=["tensorboard", "wandb"], max_epochs=2, scheduler="cosine")
"""


@pytest.mark.parametrize(("package", "module"), PACKAGES.items())
def test_a_wheel_is_installed_with_its_types_and_license(package, module):
    files = [str(path) for path in metadata.files(package)]
    assert f"{module}/py.typed" in files
    assert any(path.endswith("LICENSE") for path in files)
    code = f"import {module}; print({module}.__file__)"
    place = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "site-packages" in place


def test_training_with_everything_named_works_outside_of_the_repository(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "train_logs").iterdir()
    assert list((folder / "loggers" / "tensorboard").glob("events.out.tfevents.*"))
    assert list((folder / "loggers" / "wandb").rglob("*.wandb"))


def test_the_command_is_installed_and_lists_all_packages(tmp_path):
    command = Path(sys.executable).with_name("blowtorch")
    done = subprocess.run(
        [str(command), "plugins", "list", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    listed = json.loads(done.stdout)
    assert {each["package"] for each in listed} >= set(PACKAGES)
    assert {each["status"] for each in listed} == {"ok"}
