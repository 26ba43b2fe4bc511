"""What a run says of `torch.compile`: of a smaller last batch once, and of a model that is compiled again and again."""

import pytest
import torch
from torch import nn
from torch._dynamo.callback import callback_handler

from blowtorch import BlowtorchWarning
from tests.core.training.gradient_runs import QUIET, batches, start

EAGER = {"backend": "eager"}

# torch looks whether the input of a part has a gradient, and warns of its own look.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x)


class Broken(Net):
    """It is compiled in two parts."""

    def forward(self, x):
        x = self.layers[0](x)
        print(end="")
        return self.layers[1:](x)


class Counting(Net):
    """It is compiled for each value of its count."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, x):
        self.count += 1
        return self.layers(x) + 0 * self.count


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()


def said(model, *sizes, **options):
    """Train and validate for three epochs; return what was said of torch.compile."""
    run = start()
    run.validate_step(lambda batch, model: nn.functional.mse_loss(model(batch[0]), batch[1]))
    data = batches(*sizes)
    result = run(model, data, data, **{"compile": EAGER, "max_epochs": 3, **QUIET, **options})
    return [line for line in (result.folder / "console.log").read_text().splitlines() if "torch.compile " in line]


@pytest.mark.parametrize("make", [Net, Broken])
def test_a_smaller_last_batch_is_said_to_be_compiled_for_once(make):
    (line,) = said(make(), 8, 8, 3)
    assert "torch.compile compiled again in step 3, the last of an epoch" in line
    assert "DataLoader(drop_last=True) spares it" in line and "compile={'dynamic': True}" in line


def test_a_model_that_the_script_has_compiled_is_watched_too():
    (line,) = said(torch.compile(Net(), backend="eager"), 8, 8, 3, compile=False)
    assert "torch.compile(model, dynamic=True) compiles once" in line


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((8, 8, 8), {"compile": EAGER}),
        ((8, 8, 3), {"compile": {**EAGER, "dynamic": True}}),
        ((8, 8, 3), {"compile": False}),
        ((8, 8, 8), {"compile": EAGER, "validate_at_start": True, "sanity_batches": 2}),
    ],
    ids=["batches of one size", "dynamic", "not compiled", "validated before"],
)
def test_nothing_is_said_where_nothing_is_compiled_again(sizes, options):
    assert said(Net(), *sizes, **options) == []


def test_a_model_that_is_compiled_again_and_again_is_warned_of_once():
    with pytest.warns(BlowtorchWarning, match="torch.compile compiled in 4 steps, the last of them step 4") as caught:
        said(Counting(), *[8] * 6)
    (warning,) = [str(one.message) for one in caught if "torch.compile" in str(one.message)]
    assert "TORCH_LOGS=recompiles tells the reasons" in warning


def test_a_run_leaves_no_listener_behind():
    said(Net(), 8, 8)
    assert callback_handler.start_callbacks == []


def test_a_script_that_resets_the_compiler_in_a_run_does_no_harm():
    run = start()
    run.on("train_step_end")(torch.compiler.reset)
    assert run(Net(), batches(8, 8), compile=EAGER, **QUIET).status == "finished"
