"""What a run on a GPU is advised to do; there is none here, so torch is asked what it would say of one."""

import pytest
import torch
from torch import nn

from blowtorch import RunOptions
from blowtorch.training.advice import advise
from tests.core.script.states import make_state
from tests.core.training.gradient_runs import QUIET, batches, start

PRECISION = "this GPU multiplies matrices of float32 several times faster with a little less precision"


def deep():
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(10)))


def advice(monkeypatch, *optimizers, model=None, capability=(8, 0), device="cuda", **options):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    model = deep() if model is None else model
    by_name = {str(number): make(model.parameters()) for number, make in enumerate(optimizers)}
    state = make_state(model=model, device=torch.device(device), optimizers=by_name, options=RunOptions(**options))
    return list(advise(state))


def test_a_gpu_that_could_multiply_faster_is_named_with_what_to_do(monkeypatch):
    (line,) = advice(monkeypatch)
    assert line.startswith(PRECISION)
    assert "torch.set_float32_matmul_precision('high') in the script, or run.precision=bf16" in line


@pytest.mark.parametrize(
    "values",
    [
        {"device": "cpu"},
        {"capability": (7, 5)},
        {"precision": "bf16"},
        {"model": deep().bfloat16()},
        {"model": nn.LayerNorm(4)},
        {"model": nn.LazyLinear(4)},
    ],
    ids=str,
)
def test_nothing_is_said_of_products_where_there_is_no_faster_way(monkeypatch, values):
    assert advice(monkeypatch, **values) == []


@pytest.mark.parametrize("setting", ["high", "tf32"])
def test_nothing_is_said_of_products_that_the_script_has_made_faster(monkeypatch, setting):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: setting)
    assert advice(monkeypatch) == []


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_that_could_be_fused_is_named(monkeypatch, make):
    lines = advice(monkeypatch, make, torch.optim.RMSprop, precision="bf16")
    assert lines == [f"{make.__name__}(..., fused=True) would step its 20 parameters with fewer launches"]


class Own(torch.optim.AdamW):
    """It may be anything."""


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.AdamW(list(parameters)[:4]),
        lambda parameters: torch.optim.AdamW(parameters, fused=False),
        lambda parameters: torch.optim.AdamW(parameters, fused=True),
        lambda parameters: torch.optim.AdamW(parameters, foreach=True),
        lambda parameters: torch.optim.AdamW(parameters, capturable=True),
        Own,
    ],
    ids=["few parameters", "fused off", "fused", "foreach", "capturable", "a class of one's own"],
)
def test_nothing_is_said_of_optimizers_of_which_the_script_has_decided(monkeypatch, make):
    assert advice(monkeypatch, make, precision="bf16") == []


def test_a_new_run_says_it_once_and_one_that_goes_on_does_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def train(**options):
        run = start()
        run.init(
            lambda state: object.__setattr__(state, "device", torch.device("cuda"))
        )  # so it says, and computes as ever
        result = run(nn.Linear(4, 1), batches(8, 8), **options, **QUIET)
        return result.folder, (result.folder / "console.log").read_text().count(PRECISION)

    folder, said = train(max_steps=1)
    assert said == 1
    assert train(max_steps=2, resume=str(folder)) == (folder, 1)
