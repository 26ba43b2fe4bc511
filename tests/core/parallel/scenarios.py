"""Small runs of many kinds, to be done in one process and in several: `python scenarios.py FOLDER NAME ...`.

Each leaves in its folder what it came to: the weights and the metrics of every process, and the run folder.
"""

import json
import os
from functools import partial

import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler
from torchmetrics import MeanAbsoluteError

from blowtorch import Run
from tests.core.parallel.jobs import (
    PARALLEL,
    RANK,
    Jobs,
    do_named,
    go_backward,
    keep,
    make_data,
    make_loaders,
    make_model,
    make_run,
    train,
)

scenario = Jobs()


@scenario
def plain(folder):
    train(make_run(), folder)


@scenario
def small_batches(folder):
    train(make_run(), folder, loaders=make_loaders(batch_size=3, train=20, validate=7))


@scenario
def accumulated(folder):
    train(make_run(), folder, accumulate=4)


@scenario
def clipped(folder):
    train(make_run(lr=0.1), folder, clip_grad_norm=0.1)


@scenario
def summed(folder):
    run = make_run(lr=1e-3)

    @run.train_step
    def train_step(batch, model):
        x, y = batch
        return {"loss": nn.functional.mse_loss(model(x), y, reduction="sum")}

    @run.validate_step
    def validate_step(batch, model):
        x, y = batch
        return {"loss": nn.functional.mse_loss(model(x), y, reduction="sum")}

    train(run, folder, loss_is="sum")


@scenario
def weighted(folder):
    """Each batch weighs as much as its positive numbers, as a batch of text does by its tokens."""
    run = make_run()

    @run.train_step
    def train_step(batch, model):
        x, y = batch
        counts = (x[:, 0] > 0).sum()
        mask = (x[:, :1] > 0).float()
        loss = ((model(x) - y) ** 2 * mask).sum() / counts.clamp(min=1)
        return {"loss": loss, "weight": counts}

    train(run, folder, accumulate=2)


@scenario
def batches_in_a_list(folder):
    train_loader, validate_loader = make_loaders()
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(103, generator=generator)
    batches = [train_loader.dataset[order[start : start + 12]] for start in range(0, 103, 12)]
    train(make_run(), folder, loaders=(batches, list(validate_loader)))


class Stream(IterableDataset):
    def __init__(self, count):
        self.data = make_data(count, 0)

    def __iter__(self):
        return iter(self.data)


@scenario
def iterable(folder):
    loaders = DataLoader(Stream(103), batch_size=12), DataLoader(Stream(37), batch_size=12)
    train(make_run(), folder, loaders=loaders)


@scenario
def with_workers(folder):
    loaders = [DataLoader(each.dataset, batch_size=12, shuffle=True, num_workers=2) for each in make_loaders()]
    train(make_run(), folder, loaders=loaders, max_epochs=2)


@scenario
def left_out(folder):
    """Some samples are left out: a step without any of the others returns nothing."""
    run = make_run()

    @run.train_step
    def train_step(batch, model):
        x, y = batch
        wanted = x[:, 0] > 0.5
        if not wanted.any():
            return None
        return {"loss": nn.functional.mse_loss(model(x[wanted]), y[wanted]), "batch_size": int(wanted.sum())}

    train(run, folder, loaders=make_loaders(batch_size=4))


@scenario
def two_networks(folder):
    """A step that steps its optimizers itself."""
    run = make_run()
    model = nn.ModuleDict({"first": make_model(), "second": make_model()})

    @run.configure_optimizers
    def configure_optimizers(model):
        return {name: torch.optim.SGD(part.parameters(), lr=0.05) for name, part in model.items()}

    @run.train_step
    def train_step(batch, model, optimizers):
        x, y = batch
        first = go_backward(nn.functional.mse_loss(model["first"](x), y), optimizers["first"])
        optimizers["first"].step()
        copied = nn.functional.mse_loss(model["second"](x), model["first"](x).detach())
        second = go_backward(copied, optimizers["second"])
        optimizers["second"].step()
        return {"first": first, "second": second}

    @run.validate_step
    def validate_step(batch, model):
        x, y = batch
        return {"loss": nn.functional.mse_loss(model["second"](x), y)}

    train(run, folder, model)


@scenario
def with_closure(folder):
    """What LBFGS computes with double precision, since it makes much of a rounding."""
    run = make_run(lr=0.05, optimizer=partial(torch.optim.LBFGS, max_iter=3))

    @run.train_step
    def train_step(batch, model, optimizers):
        (x, y), optimizer = (part.double() for part in batch), optimizers["optimizer"]
        return optimizer.step(lambda: go_backward(nn.functional.mse_loss(model(x), y), optimizer))

    train(run, folder, make_model().double(), loaders=(make_loaders()[0], None), max_steps=12)


@scenario
def whole_epochs(folder):
    run = Run(random_seed=1, command_line=[])

    @run.train_epoch
    def train_epoch(data_loader, model, optimizers):
        total = count = 0.0
        for x, y in data_loader:
            loss = go_backward(nn.functional.mse_loss(model(x), y), optimizers["optimizer"])
            optimizers["optimizer"].step()
            total, count = total + loss.item() * len(x), count + len(x)
        return {"loss": total / count}

    @run.validate_step
    def validate_step(batch, model):
        x, y = batch
        return {"loss": nn.functional.mse_loss(model(x), y)}

    @run.configure_optimizers
    def configure_optimizers(model):
        return torch.optim.SGD(model.parameters(), lr=0.05)

    train(run, folder, max_samples=200)


@scenario
def whole_validations(folder):
    """Functions that drive a validation, of which a process has no samples of a batch, or none at all."""
    run, (train_loader, validate_loader) = make_run(), make_loaders()

    def validate(data_loader, model):
        total = count = 0.0
        for x, y in data_loader:
            total, count = total + nn.functional.mse_loss(model(x), y, reduction="sum").item(), count + len(x)
        return {"loss": total / count}

    run.validate_epoch(validate_loader, name="whole")(validate)
    run.validate_epoch(DataLoader(make_data(1, 2)), name="few")(validate)
    train(run, folder, loaders=(train_loader, None))


@scenario
def plateau(folder):
    """A scheduler and early stopping that look at what is measured."""
    callbacks = [{"early_stopping": {"metric": "val/loss", "patience": 2, "min_change": 0.05}}]
    train(
        make_run(lr=0.1), folder, scheduler={"plateau": {"metric": "val/loss", "patience": 0}}, max_epochs=12,
        callbacks=callbacks,
    )  # fmt: skip


@scenario
def averaged(folder):
    train(make_run(), folder, callbacks=[{"ema": {"decay": 0.9}}])


@scenario
def unused_parameter(folder):
    run, model = make_run(), make_model()
    model.register_parameter("spare", nn.Parameter(torch.ones(3)))

    @run.configure_optimizers
    def configure_optimizers(model):
        return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.5)

    train(run, folder, model)


@scenario
def several_validations(folder):
    run, (_, validate_loader) = make_run(), make_loaders()

    @run.validate_step(validate_loader, name="other", every="4 steps")
    def other_step(batch, model, log):
        x, y = batch
        log({"largest": y.max()}, reduce="max")
        log({"count": len(y)}, reduce="sum")
        return {"loss": nn.functional.l1_loss(model(x), y)}

    train(run, folder)


@scenario
def judged_alone(folder):
    """`evaluate` and `predict` outside of a run."""
    run, model = make_run(), make_model()
    _, loader = make_loaders()

    @run.predict_step
    def predict_step(batch, model):
        return model(batch[0])

    metrics = run.evaluate(model, loader)
    predictions = run.predict(model, loader, gather=True)
    model.register_buffer("predictions", predictions)
    keep(folder, model, metrics)


class Embedding(nn.Module):
    """A model whose gradients hold a few rows only."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 4, sparse=True)
        self.last = nn.Linear(4, 1)

    def forward(self, x):
        return self.last(self.table((x[:, 0].abs() * 20).long().clamp(max=49)))


@scenario
def sparse_gradients(folder):
    train(make_run(lr=0.1), folder, Embedding())


@scenario
def moments(folder):
    """What is called in all processes, and in the first alone."""
    run, heard = make_run(), []

    @run.on("epoch_end")
    def in_all(state):
        heard.append(("all", state.rank, state.world_size))

    @run.on("epoch_end", ranks="first")
    def in_first(state):
        heard.append(("first", state.rank, state.is_first))

    train(run, folder)
    (folder / f"heard-{RANK}.json").write_text(json.dumps(heard))


@scenario
def tried(folder):
    """A dry run, and a search for the largest batch."""
    run, model = make_run(), make_model()
    train_loader, validate_loader = make_loaders()
    options = {"progress": False, "save_path": str(folder / "runs"), "parallel": PARALLEL}
    result = run(model, train_loader, validate_loader, dry_run=True, **options)
    assert not (folder / "runs").exists()
    size = run.find_batch_size(model, train_loader, largest=48)
    keep(folder, model, {"size": size, "val/loss": result.metrics["val/loss"]}, result.status, result.step)


class Largest:
    """A metric object of the script's own."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.value = float("-inf")

    def update(self, values):
        self.value = max(self.value, values.max().item())

    def compute(self):
        return self.value

    def merge_state(self, others):
        self.value = max(self.value, *(other.value for other in others))

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


@scenario
def metric_objects(folder):
    run, largest, error = make_run(), Largest(), MeanAbsoluteError()

    @run.train_step
    def train_step(batch, model):
        x, y = batch
        predicted = model(x)
        largest.update(predicted.detach())
        return {"loss": nn.functional.mse_loss(predicted, y), "largest": largest}

    @run.validate_step
    def validate_step(batch, model):
        x, y = batch
        error.update(model(x), y)
        return {"loss": nn.functional.mse_loss(model(x), y), "error": error}

    train(run, folder)


@scenario
def distributed_sampler(folder):
    """A loader that was made for several processes by hand."""
    dataset, generator = make_data(103, 0), torch.Generator().manual_seed(5)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    by_hand = DistributedSampler(dataset, num_replicas=size, rank=int(RANK), shuffle=True, seed=5)
    sampler = by_hand if size > 1 else RandomSampler(dataset, generator=generator)
    train(make_run(), folder, loaders=(DataLoader(dataset, batch_size=12, sampler=sampler), make_loaders()[1]))


@scenario
def dropped_out(folder):
    """Not the same on another number of processes; the same again on this one."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 1))
    loaders = make_loaders(train=96)  # since BatchNorm refuses a share of one sample
    train(make_run(optimizer=torch.optim.AdamW), folder, model, loaders, max_epochs=2, trace=True)


if __name__ == "__main__":
    do_named(scenario)
