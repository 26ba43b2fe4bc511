"""The device of a run, and what it may lack: a precision, or numbers of double width."""

import warnings

import pytest
import torch
from torch import nn

from blowtorch import CheckpointError, OptionError, Run
from tests.core.accelerators import WithoutDoubles, stand_in_for_mps
from tests.core.training.gradient_runs import QUIET, batches, sgd, start


def test_auto_takes_the_accelerator_that_torch_finds(net, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("meta"))  # of which all have
    monkeypatch.setattr(torch, "meta", torch.cpu, raising=False)
    monkeypatch.setattr(torch.cpu, "get_rng_state", torch.get_rng_state, raising=False)
    run, seen = start(), []
    run.init(lambda device: seen.append(device.type) or 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        run(net, batches(8), **QUIET)
    assert seen == ["meta"]


def test_a_device_that_is_not_there_is_an_error_in_one_line(net):
    with pytest.raises(OptionError, match="got 'mps': Could not run .* sees no accelerator on this machine") as caught:
        start()(net, batches(8), device="mps", **QUIET)
    assert len(str(caught.value)) < 300


def test_a_precision_that_torch_only_warns_of_is_refused_before_anything_is_done(net, monkeypatch, tmp_path):
    class Older(torch.autocast):
        def __init__(self, device_type, dtype=None, enabled=True):
            warnings.warn("the target dtype is not supported. Disabling autocast.", stacklevel=2)
            super().__init__(device_type, dtype, enabled=False)

    monkeypatch.setattr(torch, "autocast", Older)
    expected = r"option precision: cpu does not train in 'bf16' by torch .*not supported.*leave the option out"
    with pytest.raises(OptionError, match=expected):
        start()(net, batches(8), precision="bf16", save_path=str(tmp_path / "runs"), **QUIET)
    assert not (tmp_path / "runs").exists()


def test_losses_that_cannot_be_scaled_are_an_error_before_the_first_step(net, tmp_path):
    """As by a torch whose scaler computes in double width, on a device without it."""
    expected = "option precision: cpu does not train in 'fp16' .*TypeError: Cannot convert a MPS Tensor to float64"
    with WithoutDoubles(), pytest.raises(OptionError, match=expected):
        start()(net, batches(8), precision="fp16", save_path=str(tmp_path / "runs"), **QUIET)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("method", ["__call__", "evaluate", "find_batch_size"])
def test_a_model_of_numbers_that_the_device_lacks_is_named_and_stays_where_it_was(net, method):
    net[0].register_buffer("scale", torch.ones(3, dtype=torch.float64))
    run = start()
    if method == "evaluate":
        run.validate_step(lambda batch, model: model(batch[0]).mean())
    expected = r"model is in part made of torch.float64, such as '0.scale', and meta is not: Cannot .*model.float\(\)"
    with WithoutDoubles(), pytest.raises(OptionError, match=expected):
        getattr(run, method)(net, torch.utils.data.DataLoader(batches(8)), device="meta", **QUIET)
    assert {tensor.device.type for tensor in net.state_dict().values()} == {"cpu"}


OPTIONS = {
    "plain": {},
    "bf16": {"precision": "bf16"},
    "clipped": {"clip_grad_norm": 1.0, "clip_grad_value": 1.0, "accumulate": 2, "on_nan": "skip"},
    "averaged": {"callbacks": ["ema"], "validate_every": "2 steps"},
    "late average": {"callbacks": [{"swa": {"start": 0.0, "every": "1 step"}}]},
    "frozen": {"checkpoint_frozen": False, "checkpoint_every": "2 steps", "sanity_batches": 1},
    "scheduled": {"scheduler": ["one_cycle"]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_no_option_makes_numbers_of_double_width(net, options, optimizer):
    net[0].weight.requires_grad_(False)
    run = start(lambda model: optimizer(model.parameters(), lr=0.01))
    run.validate_step(lambda batch, model: {"loss": nn.functional.mse_loss(model(batch[0]), batch[1])})
    with WithoutDoubles():
        assert run(net, batches(8, 8, 8, 8), batches(8), max_epochs=2, **QUIET, **options).step >= 4


def train(seed, folder, stream, stop=None, **options):
    """Train with noise from the stream of an accelerator; return the weights, and the folder of the run."""
    run = Run(random_seed=seed, command_line=["train.py"])
    torch.manual_seed(seed)
    model = nn.Linear(4, 1)
    run.configure_optimizers(sgd)

    @run.train_step
    @run.validate_step
    def step(batch, model, state):
        noise = torch.rand(1, generator=stream)
        if state.step + 1 == stop:
            state.stop("enough")
        return nn.functional.mse_loss(model(batch[0]) + noise, batch[1])

    result = run(model, batches(8, 8, 8, 8), batches(8), save_path=str(folder), device="cpu", **QUIET, **options)
    return model.weight, str(result.folder)


def test_the_stream_of_an_accelerator_goes_on_after_a_restart_and_no_validation_moves_it(monkeypatch, tmp_path):
    stream = stand_in_for_mps(monkeypatch)
    straight, _ = train(7, tmp_path / "straight", stream)
    often, _ = train(7, tmp_path / "often", stream, validate_every="1 step")
    _, folder = train(7, tmp_path, stream, stop=2)
    stream.manual_seed(99)
    resumed, _ = train(7, tmp_path, stream, resume=folder)
    assert torch.equal(straight, often) and torch.equal(straight, resumed)
    assert not torch.equal(straight, train(8, tmp_path / "other", stream)[0])


def test_a_run_goes_on_without_the_accelerator_when_its_stream_is_named(tmp_path):
    with pytest.MonkeyPatch.context() as patches:
        _, folder = train(7, tmp_path, stand_in_for_mps(patches), stop=2)
    with pytest.raises(CheckpointError, match="'random/mps'"):
        train(7, tmp_path, None, resume=folder)
    train(7, tmp_path, None, resume=folder, resume_without=["random/mps"])


def test_what_is_predicted_draws_from_a_stream_of_its_own_on_an_accelerator_too(monkeypatch):
    stream = stand_in_for_mps(monkeypatch)
    run = Run(random_seed=7, command_line=["train.py"])
    run.predict_step(lambda batch, model: torch.rand(2, generator=stream))
    stream.manual_seed(5)
    options = {"gather": True, "device": "cpu", **QUIET}
    before, first = stream.get_state(), run.predict(nn.Linear(1, 1), [1, 2], **options)
    assert torch.equal(stream.get_state(), before)
    stream.manual_seed(6)
    assert torch.equal(run.predict(nn.Linear(1, 1), [1, 2], **options), first)
    assert not torch.equal(first[:2], first[2:])
