"""A run that ends with an error: `python endings.py FOLDER WHICH`."""

import importlib
import sys
import time
from pathlib import Path

from blowtorch import ProcessError
from tests.core.parallel.jobs import RANK, make_run, train

IMPORTED_LATE = "torch.distributed.nn.functional"  # by the first optimizer; what forks a process has it already


def main(folder, which):
    sys.modules.pop(IMPORTED_LATE, None)
    run, options = make_run(), {}

    def train_step(batch, model):
        return {"first": model(batch[0]).mean(), "second": model(batch[0]).sum()}

    def configure_optimizers(model):
        raise ValueError("no such rate")

    if which == "option":
        options["max_epoch"] = 3
    elif which == "loss":
        run.train_step(train_step)
    elif which == "optimizers":
        run.configure_optimizers(configure_optimizers)
    elif which == "before" and RANK == "1":
        raise ValueError("bad luck")
    elif which == "in a step":
        run.train_step(raise_on_one)
    try:
        train(run, folder, **options)
    except ProcessError:
        (folder / "heard").touch()
        raise
    except ValueError:
        if which == "in a step":
            wait_for(folder / "heard")
        raise


def raise_on_one(batch, model):
    importlib.import_module(IMPORTED_LATE)
    if RANK == "1":
        raise ValueError("bad luck")
    return model(batch[0]).mean()


def wait_for(path):
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, "the other process has heard nothing"
        time.sleep(0.02)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
