"""Runs of models that are divided among processes: `python divided.py FOLDER NAME ...`."""

import json
import os
import resource
import signal
import threading

import torch
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method

from blowtorch import BlowtorchError, CheckpointError
from tests.core.parallel.jobs import RANK, Jobs, do_named, keep, make_loaders, make_run, train

scenario = Jobs()


class Blocks(nn.Module):
    """A model of two blocks with something before and behind them, and a buffer."""

    def __init__(self, width=16, device=None):
        super().__init__()
        self.first = nn.Linear(8, width, device=device)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, 2 * width + 1, device=device),
                nn.Tanh(),
                nn.Linear(2 * width + 1, width, device=device),
            )
            for _ in range(2)
        )
        self.last = nn.Linear(width, 1, device=device)
        self.register_buffer("scale", torch.ones(width, device=device))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x * self.scale)


def make_filled_run():
    """A run that fills a model which has no numbers yet."""
    run = make_run()  # not by Adam, which makes much of a rounding

    @run.init
    def fill(model):
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        nn.init.trunc_normal_(model.last.weight, std=0.3, a=-0.4, b=0.4)  # torch may draw again what is outside
        with torch.no_grad():
            model.first.bias.copy_(0.1 * torch.randn_like(model.first.bias))
        model.scale.fill_(1.0)

    return run


@scenario
def of_blocks(folder):
    train(make_run(optimizer=torch.optim.AdamW), folder, Blocks(), clip_grad_norm=0.5)


@scenario
def computed_again(folder):
    parallel = {"fsdp": {"activation_checkpointing": True, "reshard_after_forward": False}}
    train(make_run(optimizer=torch.optim.AdamW), folder, Blocks(), clip_grad_norm=0.5, parallel=parallel)


@scenario
def replicated(folder):
    parallel = {"fsdp": {"replicas": 2}}
    train(make_run(optimizer=torch.optim.AdamW), folder, Blocks(), clip_grad_norm=0.5, parallel=parallel)


@scenario
def self_driven(folder):
    """Two networks, of which one is never called whole, and gradients of the step's own."""
    run = make_run()
    model = nn.ModuleDict({"first": Blocks(), "second": Blocks()})

    @run.configure_optimizers
    def configure_optimizers(model):
        return {name: torch.optim.SGD(part.parameters(), lr=0.05) for name, part in model.items()}

    @run.train_step
    def train_step(batch, model, optimizers, backward):
        x, y = batch
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        first = nn.functional.mse_loss(model["first"](x), y)
        backward(first)
        optimizers["first"].step()
        second = nn.functional.mse_loss(model["second"](x), model["first"](x).detach())
        backward(second)
        optimizers["second"].step()
        return {"first": first, "second": second}

    @run.validate_step
    def validate_step(batch, model):
        x, y = batch
        return {"loss": nn.functional.mse_loss(model["second"](x), y)}

    train(run, folder, model, loaders=make_loaders(batch_size=3, train=20, validate=7))


@scenario
def summed(folder):
    """Sums over samples, of which some processes have none, in a step of the loop and in one that steps itself."""
    for name, loss_is_driven in (("looped", False), ("driven", True)):
        run = make_run(lr=1e-3)

        def looped(batch, model):
            return {"loss": nn.functional.mse_loss(model(batch[0]), batch[1], reduction="sum")}

        def driven(batch, model, optimizers, backward, looped=looped):
            loss = looped(batch, model)["loss"]
            optimizers["optimizer"].zero_grad()
            backward(loss)
            optimizers["optimizer"].step()
            return {"error": loss / len(batch[0])}

        run.train_step(driven if loss_is_driven else looped)
        (folder / name).mkdir(exist_ok=True)
        options = {"loss_is": "sum", "optimize_metric": "error" if loss_is_driven else None, "validate_every": None}
        loaders = make_loaders(batch_size=3, train=20)
        train(run, folder / name, Blocks(), loaders=(loaders[0], None), **options)


@scenario
def without_memory(folder):
    train(make_filled_run(), folder, Blocks(device="meta"))


def train_in_two_parts(folder, **options):
    """A run that ends amid an epoch, and goes on from its checkpoint; some of its weights are not trained."""
    resume = "never"
    for max_steps in (13, 20):
        model = Blocks()
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                parameter.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(number))
        model.first.requires_grad_(False)
        model.blocks[0].requires_grad_(False)
        run = make_run(optimizer=torch.optim.AdamW)
        resume = train(run, folder, model, max_epochs=None, max_steps=max_steps, resume=str(resume), **options).folder


@scenario
def frozen(folder):
    train_in_two_parts(folder, checkpoint_frozen=False, checkpoint_every="5 steps")


@scenario
def averaged_twice(folder):
    train_in_two_parts(folder, callbacks=[{"ema": {"decay": 0.9}}])


@scenario
def averaged_late(folder):
    train_in_two_parts(folder, callbacks=[{"swa": {"start": "4 steps", "every": "2 steps"}}])


class Encoder(Blocks):
    """A model of which the step calls a method of its own."""

    def encode(self, x):
        return super().forward(x)


def make_run_by_method():
    run = make_run()

    @run.train_step
    def train_step(batch, model):
        return nn.functional.mse_loss(model.encode(batch[0]), batch[1])

    return run


@scenario
def by_method(folder):
    run = make_run_by_method()

    @run.on("run_start")
    def bring_together(state):
        register_fsdp_forward_method(state.model, "encode")

    train(run, folder, Encoder(), max_epochs=2)


@scenario
def predicted(folder):
    """What is judged after a run."""
    run = make_run(optimizer=torch.optim.AdamW)

    @run.predict_step
    def predict_step(batch, model):
        return model(batch[0])

    model = Blocks()
    loaders = make_loaders(train=39)
    result = train(run, folder, model, loaders)
    outputs = run.predict(model, loaders[1], gather=True)
    metrics = run.evaluate(model, loaders[1])
    keep(folder, model, {**result.metrics, **metrics, "sum": outputs.double().sum().item(), "count": len(outputs)})


@scenario
def without_room(folder):
    """The second process can write nothing any more, not even that."""
    if RANK == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    problems = []
    for is_async in (True, False):
        try:
            train(make_run(), folder, Blocks(), max_epochs=1, checkpoint_async=is_async)
        except CheckpointError as error:
            problems.append(str(error))
    if RANK == "0":
        (folder / "problems.json").write_text(json.dumps(problems))


@scenario
def dying(folder):
    """The second process dies while it writes its pieces of the last checkpoint."""

    save = torch.save

    def die_or_save(*arguments, **keywords):
        if RANK == "1" and threading.current_thread() is not threading.main_thread():
            os.kill(os.getpid(), signal.SIGKILL)
        save(*arguments, **keywords)

    torch.save = die_or_save
    train(make_run(), folder, Blocks(), max_epochs=1, checkpoint_every=None, validate_every=None)


@scenario
def refused(folder):
    problems = {}

    def attempt(name, run, model, **options):
        try:
            train(run, folder, model, max_epochs=1, **options)
        except (BlowtorchError, RuntimeError) as error:
            problems[name] = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])

    attempt("unfilled", make_run(), Blocks(device="meta"))
    run = make_run()
    run.init(lambda model: torch.bernoulli(model.first.weight))
    attempt("drawn", run, Blocks(device="meta"))
    attempt("sparse", make_run(), nn.Sequential(nn.Embedding(4, 8, sparse=True), nn.Linear(8, 1)))
    scaled = nn.Linear(8, 1)
    scaled.scale = nn.Parameter(torch.tensor(1.0))
    attempt("scalar", make_run(), scaled)
    attempt("class", make_run(), Blocks(), parallel={"fsdp": {"wrap": ["Lineer"]}})
    attempt("replicas", make_run(), Blocks(), parallel={"fsdp": {"replicas": 3}})
    run, loaders = make_run(), [list(loader) for loader in make_loaders(train=24, validate=24)]

    @run.validate_epoch
    def validate_epoch(data_loader, model):
        return {"loss": sum(nn.functional.mse_loss(model(x), y) for x, y in data_loader)}

    loaders[1] = loaders[1][int(RANK) :]
    attempt("unequal", run, Blocks(), loaders=loaders, split={"val": "never"})
    run = make_run()

    @run.train_step
    def train_step(batch, model, optimizers):
        return {"loss": model(batch[0]).mean()}

    attempt("backward", run, Blocks())
    attempt("method", make_run_by_method(), Encoder())
    (folder / f"problems-{RANK}.json").write_text(json.dumps(problems))


if __name__ == "__main__":
    do_named(scenario)
