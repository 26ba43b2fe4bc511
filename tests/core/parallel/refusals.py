"""What cannot work in several processes: `python refusals.py FOLDER`; each notes what it was told."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch import nn

from blowtorch import BlowtorchError, Run
from tests.core.parallel.jobs import RANK, make_loaders, make_run, train
from tests.core.stand_in import Gpus


def go_backward_and_return(batch, model):
    model(batch[0]).mean().backward()
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def main(folder):
    problems = {}

    def attempt(name, run, model=None, loaders=None, **options):
        try:
            train(run, folder, model, loaders, **options)
        except BlowtorchError as error:
            problems[name] = f"{type(error).__name__}: {error}"

    attempt("configuration", make_run(Run(random_seed=1, command_line=[], config={"rate": 0.1 + int(RANK)})))
    attempt("model", make_run(), nn.Linear(8, 1 + int(RANK)))
    attempt("data", make_run(), loaders=make_loaders(train=103 - int(RANK) // 2))
    attempt("validation data", make_run(), loaders=make_loaders(validate=37 - 10 * int(RANK)))
    attempt("lazy", make_run(), nn.LazyLinear(1))
    with Gpus(), mock.patch.object(torch.cuda, "get_device_properties", return_value=SimpleNamespace(uuid="4a")):
        attempt("shared device", make_run())
        attempt("other device", make_run(), device=["cpu", "cuda"][int(RANK) % 2])
    run = make_run()
    run.train_step(go_backward_and_return)
    attempt("own backward", run)
    attempt("batch", make_run(), loaders=([object()] * 3, make_loaders()[1]))
    attempt("parted", make_run())
    (folder / f"problems-{RANK}.json").write_text(json.dumps(problems))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
