"""Small runs, each with an option of its own, to be done in one process and in several: `options.py FOLDER NAME ...`.

They leave what the scenarios do.
"""

import json
import math

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from blowtorch import BlowtorchError
from tests.core.parallel.jobs import RANK, do_named, make_data, make_loaders, make_model, make_run, train

SMALL = {"max_epochs": 2, "log_every": "4 steps"}
SMALL_MESSAGES = {"ddp": {"bucket_cap_mb": 1e-6}}  # a gradient in each
OPTIONS = {
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "clipped_by_value": {"clip_grad_value": 0.01},
    "looking_for_anomalies": {"detect_anomalies": True},
    "overfitted": {"overfit_batches": 3},
    "limited": {"limit_train_batches": 4, "limit_validate_batches": 2},
    "saved_at_once": {"checkpoint_async": False, "checkpoint_every": "2 steps"},
    "saved_by_the_clock": {"checkpoint_every": "0.05 seconds", "max_epochs": 6},
    "recorded_by_the_clock": {"log_every": "0.05 seconds", "max_epochs": 6},
    "out_of_time": {"max_time": "0.5 seconds", "max_epochs": 10_000},
    "swapped": {"callbacks": [{"swa": {"start": "4 steps", "every": "2 steps"}}]},
    "traced": {"trace": True},
    "tried_before": {"sanity_batches": 1, "validate_at_start": True},
    "by_samples": {"max_samples": 150, "max_epochs": None, "validate_every": "50 samples"},
}


def spoiled_loaders():
    """Batches of which one has a sample that is not finite, which is the last process's."""
    data, loader = make_data(96, 0), make_loaders()[1]
    x, y = (tensor.clone() for tensor in data.tensors)
    x[35] = math.nan
    return DataLoader(TensorDataset(x, y), batch_size=12), loader


class Net(nn.Module):
    """A model that is compiled as a whole."""

    def __init__(self):
        super().__init__()
        self.net = make_model()

    def forward(self, x):
        return self.net(x)


def spoiled(on_nan, **options):
    def job(folder):
        problem = None
        try:
            train(make_run(lr=0.1), folder, loaders=spoiled_loaders(), **{**SMALL, "on_nan": on_nan, **options})
        except BlowtorchError as error:
            problem = f"{type(error).__name__}: {error}"
        (folder / f"problem-{RANK}.json").write_text(json.dumps(problem))

    return job


def with_options(options):
    return lambda folder: train(make_run(lr=0.1), folder, **{**SMALL, **options})


def stepped_now_and_then(folder):
    """Each step of an optimizer has the gradients of several batches, of different shares and sizes."""
    run = make_run(lr=0.1)

    @run.train_step
    def train_step(batch, model, optimizers, state):
        x, y = batch
        loss = nn.functional.mse_loss(model(x), y) / 3
        loss.backward()
        if state.batch % 3 == 2:
            optimizers["optimizer"].step()
            optimizers["optimizer"].zero_grad()
        return loss

    train(run, folder, loaders=make_loaders(batch_size=5, train=51), **SMALL)


def stepped_in_ones_own_epoch(folder):
    """The same by a function that drives the epoch; the last batch has one sample, and so is one process's alone."""
    run = make_run(lr=0.1)

    @run.train_epoch
    def train_epoch(data_loader, model, optimizers):
        for number, (x, y) in enumerate(data_loader):
            loss = nn.functional.mse_loss(model(x), y) / 3
            loss.backward()
            if number % 3 == 1:
                optimizers["optimizer"].step()
                optimizers["optimizer"].zero_grad()

    train(run, folder, loaders=make_loaders(batch_size=5, train=51), **SMALL)


class Again(nn.Module):
    """A model that uses a block twice, each time computed again in a backward of its own."""

    def __init__(self):
        super().__init__()
        self.before, self.block, self.after = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x):
        x = self.before(x)
        for _ in range(2):
            x = checkpoint(self.block, x, use_reentrant=True).tanh()
        return self.after(x)


def sent_early(folder):
    """It is noted when a message is sent, and when a backward ends, which has the gradient of the first layer last."""
    happened, all_reduce, model = [], dist.all_reduce, make_model()

    def send(*arguments, **options):
        happened.append("sent")
        return all_reduce(*arguments, **options)

    model[0].weight.register_post_accumulate_grad_hook(lambda _: happened.append("ended"))
    dist.all_reduce = send
    train(make_run(lr=0.1), folder, model, make_loaders(train=96), **SMALL, accumulate=2, parallel=SMALL_MESSAGES)
    dist.all_reduce = all_reduce
    (folder / f"happened-{RANK}.json").write_text(json.dumps(happened))


def changed_by_a_late_hook(folder):
    """A hook that is there after gradients are sent early halves them."""
    run, model = make_run(lr=0.1), make_model()

    def halve(weight):
        weight.grad.mul_(0.5)

    @run.on("epoch_end")
    def add_hook():
        model[2].weight.register_post_accumulate_grad_hook(halve)

    train(run, folder, model, **SMALL, parallel=SMALL_MESSAGES)


def seldom_used(folder):
    """A layer and rows of a table that few samples need, so that some batches or processes have none of these."""
    run, model = make_run(lr=0.1), nn.ModuleDict({"net": make_model(), "layer": nn.Linear(8, 1)})
    model["rows"] = nn.Embedding(4, 1, sparse=True)

    @run.train_step
    def train_step(batch, model):
        x, y = batch
        guess, needed = model["net"](x), x[:, :1] > 1.5
        if needed.any():
            guess = guess + needed * (model["layer"](x) + model["rows"]((x[:, 1] > 0).long()))
        return nn.functional.mse_loss(guess, y)

    @run.configure_optimizers
    def configure_optimizers(model):
        dense = [*model["net"].parameters(), *model["layer"].parameters()]
        sparse = torch.optim.SparseAdam(model["rows"].parameters(), lr=0.01, eps=0.01)  # refuses what is dense
        return {"dense": torch.optim.SGD(dense, lr=0.1), "sparse": sparse}

    train(run, folder, model, (make_loaders()[0], None), **SMALL, parallel=SMALL_MESSAGES)


JOBS = {name: with_options(options) for name, options in OPTIONS.items()}
JOBS["compiled"] = lambda folder: train(make_run(lr=0.1), folder, Net(), **SMALL, compile={"backend": "eager"})
JOBS["computed_again"] = lambda folder: train(make_run(lr=0.1), folder, Again(), **SMALL, parallel=SMALL_MESSAGES)
JOBS |= {f"spoiled_{on_nan}": spoiled(on_nan, log_every="1 steps") for on_nan in ("skip", "warn", "ignore", "stop")}
JOBS["spoiled_fp16"] = spoiled("warn", precision="fp16", log_every="1 steps")
JOBS |= {
    job.__name__: job
    for job in (changed_by_a_late_hook, seldom_used, sent_early, stepped_now_and_then, stepped_in_ones_own_epoch)
}


if __name__ == "__main__":
    do_named(JOBS)
