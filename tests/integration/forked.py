"""Scripts in processes of their own that are forked from one which has imported the large packages already.

A process that is started anew spends seconds on its imports, which is more than these scripts take to train.
"""

import multiprocessing
import os
import runpy
import sys
import warnings
from pathlib import Path

LARGE = ["numpy", "torch._dynamo", "blowtorch.run", "transformers.models.bert.modeling_bert", "torch_geometric.nn"]


def execute(script, folder, words=(), function=None):
    """Execute a script, or save the weights of the model that one of its functions returns."""
    os.chdir(folder)
    with Path("output.txt").open("ab") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    sys.argv = [str(script), *words]
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch

    torch.set_num_threads(1)
    if function is None:
        runpy.run_path(str(script), run_name="__main__")
    else:
        model = runpy.run_path(str(script), run_name="by_hand")[function]()
        torch.save(model.state_dict(), "weights.pt")


def start(script, folder, *words, function=None):
    """Start a script in a folder; with `function`, only that one, without the script's main part."""
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LARGE)
    process = context.Process(target=execute, args=(script, folder, words, function))
    process.start()
    return process


def join(process, folder):
    """Wait for the end, which has to be a good one, and return what was printed."""
    process.join(120)
    output = (folder / "output.txt").read_text()
    assert process.exitcode == 0, output[-3000:]
    return output


def finish(process, folder):
    """Wait for the end, which has to be a good one, and return the weights that were saved."""
    import torch

    join(process, folder)
    return torch.load(folder / "weights.pt", weights_only=True)
