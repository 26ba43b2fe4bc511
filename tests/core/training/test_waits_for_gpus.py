"""On a GPU, the host waits for nothing on a step that is not recorded, unless an option asks for what is computed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from blowtorch import hookimpl
from tests.core.small_runs import QUIET

NUM_STEPS = 6


class Waits:
    """Notes how often the host has waited, from the end of one step to that of the next."""

    def __init__(self, gpus: Any) -> None:
        self._gpus = gpus
        self.counts: list[int] = []
        self.kinds: set[str] = set()

    @hookimpl
    def train_step_end(self) -> None:
        self.counts.append(self._gpus.host_waits.total())
        self.kinds |= set(self._gpus.host_waits)
        self._gpus.host_waits.clear()

    @property
    def of_a_step(self) -> set[int]:
        return set(self.counts[2:])  # before the first, the model was moved; then averages ask once what is finite


def sgd(model: nn.Module) -> Any:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def adam(model: nn.Module) -> Any:
    return torch.optim.Adam(model.parameters(), foreach=True)


def two_optimizers(model: Any) -> Any:
    return {
        "first": torch.optim.SGD(model[0].parameters(), lr=0.1),
        "last": torch.optim.SGD(model[3].parameters(), lr=0.1),
    }


def torchs_scheduler(model: nn.Module) -> Any:
    optimizer = sgd(model)
    return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer)


def describe(options: Any) -> str | None:
    """Return how a test is called; an address in it would differ between the processes that share the tests."""
    if not isinstance(options, dict):
        return None
    return "-".join(f"{name}={getattr(value, '__name__', value)}" for name, value in options.items()) or "plain"


def waits_of(
    gpus: Any, make_run: Any, net: nn.Module, loader: Any, configure: Callable[..., Any] = sgd, **options: Any
) -> set[int]:
    run, waits = make_run(validates=False), Waits(gpus)
    run.configure_optimizers(configure)
    callbacks = [waits, *options.pop("callbacks", ())]
    defaults = {"device": "cuda", "log_every": "1000 steps", "max_steps": NUM_STEPS // options.get("accumulate", 1)}
    run(net, loader, callbacks=callbacks, **{**defaults, **options}, **QUIET)
    assert len(waits.counts) >= 3
    return waits.of_a_step


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_grad_norm": 0.1},
        {"clip_grad_value": 0.1},
        {"accumulate": 2},
        {"precision": "bf16"},
        {"precision": "bf16", "accumulate": 2, "clip_grad_norm": 0.1},
        {"on_nan": "warn"},
        {"on_nan": "ignore"},
        {"scheduler": "cosine"},
        {"callbacks": ["ema"]},
        {"callbacks": [{"swa": {"start": 0.0, "every": "1 step"}}]},
        {"configure": adam},
        {"configure": adam, "clip_grad_norm": 0.1},
        {"configure": two_optimizers, "clip_grad_norm": 0.1},
        {"configure": torchs_scheduler},
    ],
    ids=describe,
)
def test_the_host_waits_for_nothing_on_a_step_that_is_not_recorded(gpus, make_run, net, loader, options):
    assert waits_of(gpus, make_run, net, loader, **options) == {0}


@pytest.mark.parametrize(
    "make",
    [
        lambda data: [data[first : first + 8] for first in range(0, 64, 8)],
        lambda data: DataLoader(data, batch_size=8, shuffle=True, num_workers=1),
        lambda data: DataLoader(
            data, batch_size=8, collate_fn=lambda samples: torch.utils.data.default_collate(samples)
        ),
        lambda data: (data[first : first + 8] for first in range(0, 64, 8)),
    ],
    ids=["list", "worker", "collated", "generator"],
)
def test_no_kind_of_loader_makes_the_host_wait(gpus, make_run, net, data, make):
    assert waits_of(gpus, make_run, net, make(data)) == {0}


@pytest.mark.filterwarnings("ignore:step returned 'many'")
@pytest.mark.parametrize(
    "returned",
    [
        lambda loss: loss,
        lambda loss: {"loss": loss, "double": loss * 2},
        lambda loss: {"loss": loss, "whole": torch.ones((), dtype=torch.int64, device=loss.device)},
        lambda loss: {"loss": loss, "many": torch.stack([loss, loss]), "number": 3.0},
    ],
    ids=["lone", "several", "whole", "vector"],
)
def test_nothing_that_a_step_returns_or_logs_is_read_before_it_is_recorded(gpus, make_run, net, loader, returned):
    run, waits = make_run(validates=False), Waits(gpus)

    @run.train_step
    def step(batch, model):
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        run.log({"largest": loss.detach()}, reduce="max")
        return returned(loss)

    run(net, loader, device="cuda", log_every="1000 steps", max_steps=NUM_STEPS, callbacks=[waits], **QUIET)
    assert waits.of_a_step == {0}


@pytest.mark.parametrize(
    ("options", "num_waits"),
    [
        ({"on_nan": "skip"}, {1}),  # whether all gradients are finite decides on the step
        ({"precision": "fp16"}, {1}),  # so it does here
        ({"log_every": "2 steps"}, {0, 1}),
    ],
    ids=describe,
)
def test_what_asks_for_computed_values_waits_and_no_more_often_than_it_must(
    gpus, make_run, net, loader, options, num_waits
):
    assert waits_of(gpus, make_run, net, loader, **options) == num_waits
