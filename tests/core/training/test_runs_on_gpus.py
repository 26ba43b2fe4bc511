"""A run on a GPU, late as that may be, is to the bit the one on the CPU: its weights, its record, what it predicts."""

import copy
from collections.abc import Sequence

import pytest
import torch

from tests.core.small_runs import QUIET, assert_same, weights

EMA = [{"ema": {"decay": 0.9}}]


def measured(events, result):
    """Return what a record says of training and validation, without the time it took."""
    kept = [event["metrics"] for kind in ("metrics", "validation") for event in events(result, kind)]
    assert kept
    return [{name: value for name, value in metrics.items() if "per_second" not in name} for metrics in kept]


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_grad_norm": 0.1, "log_every": "1 steps"},
        {"accumulate": 3, "scheduler": "cosine"},
        {"callbacks": EMA, "validate_every": "5 steps"},
        {"on_nan": "skip", "clip_grad_value": 0.01},
        {"overfit_batches": 2},
    ],
    ids=["plain", "clipped", "accumulated", "averaged", "skipping", "repeated"],
)
def test_a_run_on_a_gpu_is_that_of_the_cpu(gpus, make_run, net, loader, events, options, device):
    seen = []
    for place in ("cpu", device):
        model = copy.deepcopy(net)
        result = make_run()(
            model, loader, loader, device=place, max_epochs=2, **{"log_every": "3 steps", **options}, **QUIET
        )
        seen.append(([value.cpu() for value in weights(model)], measured(events, result)))
    assert_same(seen[0][0], seen[1][0])
    assert seen[0][1] == seen[1][1]


class Noisy(Sequence):
    """Batches with noise, which is drawn when they are asked for."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError
        x, y = self.data[8 * index : 8 * index + 8]
        return x + torch.randn(x.shape), y


@pytest.mark.parametrize("is_noisy", [False, True])
def test_a_run_that_goes_on_on_a_gpu_is_that_of_the_cpu(gpus, make_run, net, data, loader, is_noisy):
    loader = Noisy(data) if is_noisy else loader
    whole, parts = copy.deepcopy(net), copy.deepcopy(net)
    make_run(validates=False)(whole, loader, device="cpu", max_steps=13, **QUIET)
    first = make_run(validates=False)(parts, loader, device="cuda:1", max_steps=5, **QUIET)
    make_run(validates=False)(parts, loader, device="cuda", max_steps=13, resume=first.folder, **QUIET)
    assert_same(weights(whole), [value.cpu() for value in weights(parts)])


def test_the_gpu_may_be_the_default_device_of_the_script(gpus, make_run, net, data):
    batches, models = [data[first : first + 8] for first in range(0, 64, 8)], [net, copy.deepcopy(net)]
    make_run(validates=False)(models[0], batches, device="cpu", max_epochs=2, **QUIET)
    with torch.device("cuda"):
        make_run(validates=False)(models[1], batches, device="cuda", max_epochs=2, log_every="1 step", **QUIET)
    assert_same(weights(models[0]), [value.cpu() for value in weights(models[1])])


def test_what_is_evaluated_predicted_and_tried_out_on_a_gpu_is_as_on_the_cpu(gpus, make_run, net, loader):
    run = make_run()
    run.predict_step(lambda batch, model: model(batch[0]))
    told = []
    for place in ("cpu", "cuda:1"):
        predicted = torch.cat(list(run.predict(net, loader, device=place)))
        size = run.find_batch_size(net, loader, largest=32, device=place)
        told.append((run.evaluate(net, loader, device=place), predicted.tolist(), size))
    assert told[0] == told[1]
