"""What training has spoiled is never saved, never the best, and never handed back."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from blowtorch import BlowtorchWarning, CheckpointError, NotFiniteError, find_runs, open_run
from blowtorch.checkpoint.finiteness import Finiteness
from tests.core.small_runs import QUIET, assert_same, weights

NAN, INFINITE = math.nan, math.inf
EXPECTED = pytest.mark.filterwarnings("ignore:.*(is not written|train/loss is nan|left out):blowtorch.BlowtorchWarning")


def is_finite(net):
    return all(bool(value.isfinite().all()) for value in net.state_dict().values())


def saved_finite(view):
    """By name, whether the weights of each published checkpoint are finite."""
    return {each.name: is_finite(view.load_model(nn.Linear(4, 1), each.name)) for each in view.checkpoints}


@pytest.fixture
def spoiling(make_run):
    """Makes a run whose loss is always finite, and whose gradient is NaN at one step."""

    def make(bad_step):
        run = make_run(validates=False)

        @run.train_step
        def step(batch, model, step):
            loss = F.mse_loss(model(batch[0]), batch[1])
            gap = model.weight - model.weight.detach()
            return loss + gap.square().sum().sqrt() if step == bad_step else loss

        return run

    return make


@pytest.fixture
def fresh_line():
    def make():
        torch.manual_seed(0)
        return nn.Linear(4, 1)

    return make


@pytest.mark.parametrize("is_asynchronous", [True, False])
def test_a_gradient_that_is_nan_at_the_last_step_of_a_run_spoils_no_checkpoint(
    spoiling, fresh_line, loader, is_asynchronous
):
    with pytest.raises(
        NotFiniteError,
        match=r"step-00000024 is not written: at step 24 'weight' in the model is not finite; the last good checkpoint "
        r"is step-00000016, from which run.resume=.*a-1 goes on",
    ):
        spoiling(24)(
            fresh_line(), loader, max_epochs=3, run_name="a", checkpoint_async=is_asynchronous, keep_last=1, **QUIET
        )
    (view,) = find_runs()
    assert view.status == "failed" and saved_finite(view) == {"step-00000016": True}


def test_a_mended_script_goes_on_from_the_last_good_checkpoint(spoiling, fresh_line, loader):
    straight, mended = fresh_line(), fresh_line()
    spoiling(0)(straight, loader, max_epochs=3, **QUIET)
    with pytest.raises(NotFiniteError, match="the last good checkpoint is step-00000008"):
        spoiling(16)(fresh_line(), loader, max_epochs=3, run_name="spoiled", keep_last=1, **QUIET)
    (folder,) = [view.path for view in find_runs() if view.name.startswith("spoiled-")]
    result = spoiling(0)(mended, loader, max_epochs=3, resume=str(folder), **QUIET)
    assert result.status == "finished"
    assert_same(weights(straight), weights(mended))


def test_where_there_is_no_checkpoint_yet_the_error_says_so(spoiling, fresh_line, loader):
    with pytest.raises(NotFiniteError, match="at step 8 'weight' in the model .* there is no checkpoint from before"):
        spoiling(8)(fresh_line(), loader, **QUIET)
    (view,) = find_runs()
    assert view.checkpoints == []


@EXPECTED
@pytest.mark.parametrize("on_nan", ["warn", "skip", "ignore"])
def test_the_other_values_of_on_nan_go_on_and_save_nothing_that_is_spoiled(spoiling, fresh_line, loader, on_nan):
    run = spoiling(0)

    @run.on("train_step_end")
    def spoil(model, step):
        if step == 12:
            model.weight.data[0, 0] = NAN

    with (
        pytest.warns(BlowtorchWarning, match="step-00000016 is not written: .* tried again at the next occasion"),
        pytest.raises(CheckpointError, match="the last checkpoint of the run could not be written"),
    ):
        run(fresh_line(), loader, max_epochs=3, on_nan=on_nan, keep_last=1, **QUIET)
    (view,) = find_runs()
    assert saved_finite(view) == {"step-00000008": True}


@EXPECTED
def test_a_spoiled_model_is_never_the_best_however_good_its_metric_is(spoiling, fresh_line, loader):
    """The accuracy of what is NaN can be that of a guess; here it is perfect."""
    run = spoiling(0)
    run.validate_step(lambda batch, model: {"accuracy": float(not is_finite(model))})

    @run.on("train_step_end")
    def spoil(model, step):
        if step == 9:
            model.weight.data[0, 0] = NAN

    options = {"checkpoint_metric": "val/accuracy", "smaller_is_better": False, "on_nan": "ignore"}
    with pytest.raises(CheckpointError, match="the last checkpoint of the run could not be written"):
        run(fresh_line(), loader, loader, max_epochs=2, **options, **QUIET)
    (view,) = find_runs()
    assert view.checkpoint("best").name == "step-00000008" and saved_finite(view) == {"step-00000008": True}


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
def test_the_state_of_an_optimizer_is_looked_at_too(spoiling, fresh_line, loader, key):
    run = spoiling(0)

    @run.on("train_step_end")
    def spoil(state, step):
        if step == 16:
            (first, *_) = state.optimizers["optimizer"].state.values()
            first[key][0, 0] = INFINITE

    with pytest.raises(NotFiniteError, match=rf"at step 16 'state.0.{key}' in optimizers/optimizer is not finite"):
        run(fresh_line(), loader, max_epochs=3, **QUIET)


def test_averages_are_looked_at_whoever_keeps_them(make_run, fresh_line, loader):
    net = fresh_line()
    run, kept = make_run(validates=False), AveragedModel(net)
    run.keep_state("average", kept)

    @run.on("train_step_end")
    def spoil(state, step):
        if step == 8:
            kept.state_dict()["module.weight"][0, 0] = NAN

    with pytest.raises(NotFiniteError, match="'module.weight' in kept/average is not finite"):
        run(net, loader, **QUIET)
    run = make_run(validates=False)

    @run.on("train_step_end")
    def spoil_the_other(state, step):
        if step == 8:
            state.averaged["weight"][0, 0] = NAN

    with pytest.raises(NotFiniteError, match="'weight' in its average is not finite"):
        run(fresh_line(), loader, callbacks=["ema"], **QUIET)


class Masked(nn.Module):
    """A module with masks of -inf: a buffer, a parameter without gradient, and one that the first forward makes."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.register_buffer("mask", torch.full((4,), -INFINITE).index_fill(0, torch.tensor([0, 1]), 0.0))
        self.fixed = nn.Parameter(torch.tensor([0.0, -INFINITE, 0.0, -INFINITE]), requires_grad=False)
        self.later: torch.Tensor | None
        self.register_buffer("later", None)

    def forward(self, x):
        if self.later is None:
            self.later = torch.full((3, 3), -INFINITE).triu(1)
        return (self.inner(x) + self.mask).softmax(1) + (self.inner(x) + self.fixed).softmax(1)


@pytest.mark.parametrize("callbacks", [[], ["ema"], [{"swa": {"start": "4 steps", "every": "2 steps"}}]], ids=str)
def test_what_was_infinite_before_training_is_no_fault(make_run, loader, callbacks):
    options = {"callbacks": callbacks, "checkpoint_every": "3 steps", "log_every": "1 steps", **QUIET}

    def begin(net):
        run = make_run()
        run.train_step(lambda batch, model: {"loss": model(batch[0]).square().mean(), "beside": NAN})
        run.validate_step(lambda batch, model: model(batch[0]).square().mean())
        return run, net

    torch.manual_seed(0)
    run, net = begin(Masked())
    result = run(net, loader, loader, max_epochs=2, **options)
    assert result.status == "finished" and result.best is not None and math.isfinite(result.metrics["val/loss"])
    assert net.mask.tolist() == [0.0, 0.0, -INFINITE, -INFINITE]
    twin = Masked()
    twin.later = torch.zeros(3, 3)
    twin.inner = nn.Linear(4, 4)
    open_run(result.folder).load_model(twin, "latest")
    assert twin.fixed.tolist() == [0.0, -INFINITE, 0.0, -INFINITE]
    again = Masked()
    again.later = torch.zeros(3, 3)
    run, again = begin(again)
    assert run(again, loader, loader, max_epochs=3, resume=str(result.folder), **options).step == 24


def test_a_mask_may_not_become_worse(make_run, loader):
    run = make_run(validates=False)
    run.train_step(lambda batch, model: model(batch[0]).square().mean())

    @run.on("train_step_end")
    def spoil(model, step):
        if step == 8:
            model.mask[0] = -INFINITE

    with pytest.raises(NotFiniteError, match="'mask' in the model is not finite"):
        run(Masked(), loader, **QUIET)


def test_the_record_of_a_loss_names_no_mask(make_run, loader):
    run = make_run(validates=False)
    run.train_step(lambda batch, model: model(batch[0]).square().mean() + INFINITE)
    with pytest.raises(NotFiniteError, match="train/loss is inf at step 1, and the model is still finite"):
        run(Masked(), loader, log_every="1 steps", **QUIET)


SPOILED = [
    torch.tensor([1.0, NAN]).half(),
    torch.tensor([1.0, INFINITE]).bfloat16(),
    torch.tensor([[0.0, NAN]]).to_sparse(),
    torch.complex(torch.tensor([1.0]), torch.tensor([NAN])),
    torch.tensor([1.0, NAN]).to(torch.float8_e4m3fn),
    torch.tensor(-INFINITE),
    torch.randn(3, 4).t().index_fill(0, torch.tensor(1), NAN),
    torch.nested.nested_tensor([torch.tensor([1.0, NAN]), torch.tensor([2.0])], layout=torch.jagged),
    NAN,
]


@pytest.mark.parametrize("value", SPOILED, ids=lambda value: str(getattr(value, "dtype", value)))
def test_tensors_of_all_kinds_are_looked_at(value):
    state, finiteness = {"group": [{"value": value}]}, Finiteness(is_made_by_training=True)
    assert finiteness.find_spoiled(state) == ("group", 0, "value")
    finiteness.remember(state)
    assert finiteness.find_spoiled(state) is None


def test_what_holds_no_numbers_that_could_be_infinite_is_passed_over():
    lazy = nn.LazyLinear(2)
    state = {**lazy.state_dict(), "count": torch.tensor(3), "none": None, "word": "nan", "empty": torch.empty(0)}
    finiteness = Finiteness()
    finiteness.remember(state)
    assert finiteness.find_spoiled(state) is None
    lazy(torch.randn(1, 3))
    lazy.weight.data[0, 0] = INFINITE
    assert finiteness.find_spoiled(lazy.state_dict()) == ("weight",)


class Elsewhere(torch.Tensor):
    """A tensor on a stand-in for an accelerator that lacks an operation."""

    is_cpu = False  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        if function is torch.aminmax:
            raise NotImplementedError("The operator 'aten::aminmax.out' is not currently implemented for this device")
        made = super().__torch_function__(function, types, arguments, keywords or {})
        return made.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else made


def test_what_an_accelerator_cannot_look_into_is_looked_at_on_the_cpu():
    state, finiteness = {"mask": torch.tensor([0.0, NAN]).as_subclass(Elsewhere)}, Finiteness(is_made_by_training=True)
    assert finiteness.find_spoiled(state) == ("mask",)
    finiteness.remember(state)
    assert finiteness.find_spoiled(state) is None
