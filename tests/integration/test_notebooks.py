"""Notebooks, each in a kernel of its own."""

import pytest

SETUP = """
import torch
from blowtorch import OptionError, Run

run = Run(random_seed=0)
run.train_step(lambda batch, model: model(batch).square().mean())
run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
model, batches = torch.nn.Linear(3, 1), list(torch.randn(4, 2, 3))
"""
STOPPED = """
result = run(model, batches, max_epochs=3, max_time="0.001 seconds", progress=False)
print(result.status, *sorted(path.name for path in (result.folder / "source").iterdir()))
"""
CONTINUED = """
try:
    run(model, batches, resume="auto", progress=False)
except OptionError as error:
    print(error)
"""
NAMED = """
result = run(model, batches, resume="auto", run_name="mine", progress=False)
cells = (result.folder / "source" / "cells.py").read_text()
name = result.folder.name.split("_")[-1]
print(name, result.status, *("# %% " + number in cells for number in ("[1]", "[3]", "[4]")))
"""


@pytest.fixture
def run_notebook(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")

    def run(*cells):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
        outputs = [output for cell in notebook.cells for output in cell.outputs]
        return "".join(output.text for output in outputs if output.get("name") == "stdout").splitlines()

    return run


def test_a_notebook_keeps_its_cells_and_goes_on_with_nothing_but_what_it_names(run_notebook):
    assert run_notebook(SETUP, STOPPED) == ["stopped cells.py"]
    refused, named = run_notebook(SETUP, CONTINUED, NAMED)
    assert refused.startswith("resume='auto' needs the option run_name here")
    assert named == "mine-2 finished True True False"
