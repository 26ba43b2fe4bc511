"""On the CPU, and on an accelerator that is none of CUDA, nothing is asked of CUDA."""

import pytest
import torch

from tests.core.accelerators import stand_in_for_mps
from tests.core.small_runs import QUIET
from tests.core.stand_in import Gpus

# What only tells whether CUDA is there, and what torch itself calls for whatever device, such as in `manual_seed`.
ALLOWED = ("device_count", "is_available", "is_initialized", "is_bf16_supported", "manual_seed_all")


@pytest.fixture(autouse=True)
def nothing_of_cuda(monkeypatch):
    """Make all that is public in `torch.cuda` fail, as pinned memory does."""

    def refuse(name):
        def fail(*_, **__):
            raise AssertionError(f"{name} was asked for, and the device is none of CUDA")

        return fail

    for name, value in list(vars(torch.cuda).items()):
        is_own = str(getattr(value, "__module__", "")).startswith("torch.cuda")
        if callable(value) and is_own and not name.startswith("_") and name not in ALLOWED:
            monkeypatch.setattr(torch.cuda, name, refuse(f"torch.cuda.{name}"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse("pin_memory"))


def do_everything(make_run, net, loader, device, **options):
    """Train with whatever looks at the device, go on, and do what is done beside a run."""
    batches = [(torch.ones(4, 4), torch.ones(4, 1))] * 4
    shared = {"device": device, "log_every": "3 steps", "checkpoint_every": "5 steps", **options, **QUIET}
    callbacks = ["ema"]
    net.train()
    first = make_run()(net, loader, batches, max_steps=10, callbacks=callbacks, clip_grad_norm=1.0, **shared)
    result = make_run()(net, loader, batches, max_steps=20, callbacks=callbacks, resume=first.folder, **shared)
    run = make_run()
    run.evaluate(net, batches, device=device)
    run.predict_step(lambda batch, model: model(batch[0]))
    assert len(list(run.predict(net, batches, device=device))) == 4
    run.find_batch_size(net, loader, largest=16, device=device)
    return result


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_the_cpu_nothing_is_asked_of_cuda(make_run, net, loader, precision):
    assert do_everything(make_run, net, loader, "cpu", precision=precision).step == 20


@pytest.mark.parametrize("slow", ["copies", "computations"])
def test_on_another_accelerator_nothing_is_asked_of_cuda(make_run, net, loader, slow, monkeypatch):
    stand_in_for_mps(monkeypatch)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: None)
    with Gpus(slow, kind="mps"):
        assert do_everything(make_run, net, loader, "mps").step == 20
        assert all(value.device.type == "mps" for value in net.state_dict().values())
