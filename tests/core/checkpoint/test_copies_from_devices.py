"""The copy of a state on GPUs is complete when it is taken, whatever the devices had still to do, and do next."""

from pathlib import Path

import pytest
import torch
from torch import nn

from blowtorch.checkpoint.tensors import WarmCopies
from tests.core.small_runs import QUIET

PLACES = [torch.device("cuda", 0), torch.device("cuda", 1)]


@pytest.mark.parametrize("current", [0, 1])
def test_a_copy_holds_what_each_device_was_asked_for_before_it_and_nothing_after(gpus, current):
    copies = WarmCopies()
    state = [torch.zeros(4, 2, device=place) for place in PLACES]
    with torch.cuda.device(current):
        for number in (1.0, 2.0, 3.0):  # from the second time on, into the memory of the last copy
            for tensor in state:
                tensor.fill_(number)
            copy = copies.take({"weights": state, "transposed": [tensor.t() for tensor in state]})
            for tensor in state:
                tensor.fill_(-1.0)
            assert [value.tolist() for value in copy["weights"]] == [[[number] * 2] * 4] * 2
            assert [value.tolist() for value in copy["transposed"]] == [[[number] * 4] * 2] * 2


def test_a_copy_takes_one_wait_for_each_device(gpus):
    state = [torch.zeros(4, device=place) for place in PLACES for _ in range(5)]
    gpus.host_waits.clear()
    WarmCopies().take(state)
    assert gpus.host_waits == {"synchronize": 2}


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_checkpoints_of_a_run_on_a_device_are_those_of_the_cpu(gpus, make_run, net, loader, device):
    weights = [value.clone() for value in net.state_dict().values()]
    saved = []
    for place in ("cpu", device):
        twin = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 1))
        twin.load_state_dict(dict(zip(twin.state_dict(), weights, strict=True)))
        options = {"device": place, "max_epochs": 2, "checkpoint_every": "3 steps", "keep_last": 9}
        result = make_run()(twin, loader, loader, **options, **QUIET)
        saved.append([torch.load(path) for path in sorted(Path(result.folder).rglob("model.pt"))])
    assert len(saved[0]) > 4
    for on_cpu, on_device in zip(*saved, strict=True):
        assert all(torch.equal(on_cpu[name], on_device[name]) for name in on_cpu)
