"""Runs in which each process has batches of its own, by `split="never"`: `python apart.py FOLDER NAME ...`."""

import json
import os

import torch
from torch.utils.data import DataLoader, IterableDataset

from blowtorch import BlowtorchError, Run
from tests.core.parallel.jobs import RANK, do_named, keep, make_data, make_loaders, make_model, make_run, train

SIZE = int(os.environ.get("WORLD_SIZE", "1"))
WHOLE = [*range(0, 103, 12), 103]  # where the batches of one process begin, and the last one ends


class Sharded(IterableDataset):
    """Batches of which this process takes the same samples as by sharing them; it knows its place."""

    def __init__(self, bounds=WHOLE):
        self.data, self.bounds, self.position = make_data(103, 0), bounds, 0

    def __iter__(self):
        while self.position < len(self.bounds) - 1:
            start, stop = self.bounds[self.position : self.position + 2]
            rank, count = int(RANK), stop - start
            self.position += 1
            own = slice(start + count * rank // SIZE, start + count * (rank + 1) // SIZE)
            if own.start < own.stop:
                yield tuple(tensor[own] for tensor in self.data.tensors)
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def loader(*bounds):
    return DataLoader(Sharded(*bounds), batch_size=None)


def as_shared(folder):
    train(make_run(), folder, loaders=(loader(), make_loaders()[1]), split={"train": "never"})


def unequal(folder):
    """The last batch has one sample, so that the other process has no such batch."""
    train(make_run(), folder, loaders=(loader([*WHOLE[:-1], 97]), make_loaders()[1]), split={"train": "never"})


def interrupted(folder):
    """Stopped amid an epoch, and continued, each process with its own place."""
    for most in (5, 27):
        run = make_run()
        options = {"split": {"train": "never"}, "run_name": "run", "resume": "auto", "max_steps": most}
        train(run, folder, loaders=(loader(), make_loaders()[1]), **options)


def judged(folder):
    """Validations and predictions of what is each process's own."""
    run, model = make_run(Run(random_seed=1, command_line=[])), make_model()

    @run.predict_step
    def predict_step(batch, model):
        return model(batch[0])

    metrics = run.evaluate(model, loader(), split="never")
    rows = run.predict(model, loader(), gather=True, split="never")
    keep(folder, model, {**metrics, "rows": len(rows)})


def refused(folder):
    problems = []
    for split in ("sometimes", {"trian": "never"}):
        try:
            train(make_run(), folder, loaders=(loader(), None), split=split)
        except BlowtorchError as error:
            problems.append(str(error))
    (folder / f"problems-{RANK}.json").write_text(json.dumps(problems))


JOBS = {job.__name__: job for job in (as_shared, unequal, interrupted, judged, refused)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    do_named(JOBS)
