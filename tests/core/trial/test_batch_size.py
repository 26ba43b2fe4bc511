"""The search for the largest batch size; the step plays running out of memory, and raises what torch would."""

import gc

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from blowtorch import Run, ScriptError
from blowtorch.trial.batch_size import is_out_of_memory


def dataset(size=100):
    return TensorDataset(torch.randn(size, 4), torch.randn(size, 1))


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))


def with_memory_for(most, tried=None, error=torch.OutOfMemoryError):
    """The loss, on a device that has memory for so many samples."""

    def compute(batch, model):
        if tried is not None:
            tried.append(len(batch[0]))
        if len(batch[0]) > most:
            raise error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    return compute


def start(most, tried=None, error=torch.OutOfMemoryError, is_self_driven=False):
    run = Run(random_seed=123, command_line=["train.py"])
    compute = with_memory_for(most, tried, error)

    if is_self_driven:

        @run.train_step
        def step(batch, model, optimizers, backward):
            loss = compute(batch, model)
            backward(loss)
            optimizers["optimizer"].step()
            return loss

    else:
        run.train_step(compute)
    run.configure_optimizers(lambda model: torch.optim.Adam(model.parameters(), lr=0.1))
    return run


@pytest.mark.parametrize(
    ("first", "most", "largest", "expected"),
    [
        (8, 32, None, 32),
        (8, 33, None, 32),
        (8, 5, None, 4),
        (8, 1, None, 1),
        (8, 10**6, None, 100),  # the size of the dataset
        (8, 10**6, 20, 20),
        (8, 20, 24, 16),
        (3, 13, None, 12),
        (64, 10**6, 20, 20),
        (64, 6, 20, 5),
    ],
)
def test_the_size_is_doubled_or_halved_to_the_largest_that_fits(first, most, largest, expected):
    loader = DataLoader(dataset(), batch_size=first, shuffle=True)
    assert start(most).find_batch_size(nn.Linear(4, 1), loader, largest=largest) == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("is_self_driven", [False, True])
def test_two_steps_of_any_kind_are_tried_at_each_size(precision, is_self_driven):
    tried = []
    run = start(32, tried, is_self_driven=is_self_driven)
    options = {"precision": precision, "clip_grad_norm": 1.0, "on_nan": "ignore"}
    assert run.find_batch_size(make_net(), DataLoader(dataset(), 16), **options) == 32
    assert tried == [16, 16, 32, 32, 64]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, None])
def test_everything_is_left_as_it_was(error):
    """Also where the step raises something else."""
    net = make_net()
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run, counter, loader = start(16), nn.Linear(1, 1), DataLoader(dataset(), 8, shuffle=True)
    streams = torch.get_rng_state()
    run.keep_state("counter", counter)
    kept, metric = counter.weight.clone(), Sum()
    inner = with_memory_for(16)

    @run.train_step
    def step(batch, model):
        with torch.no_grad():
            counter.weight.add_(1)
        metric.update()
        if error is None and metric.number == 2:
            raise ZeroDivisionError("a mistake")
        return {"loss": inner(batch, model), "metric": metric}

    if error is None:
        with pytest.raises(ZeroDivisionError, match="a mistake"):
            run.find_batch_size(net, loader)
    else:
        assert run.find_batch_size(net, loader) == 16
    for name, value in net.state_dict().items():
        assert torch.equal(before[name], value), name
    assert [module.training for module in net] == [True, False, True, True] and net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(streams, torch.get_rng_state())
    assert torch.equal(counter.weight, kept) and metric.number == 0


class Sum:
    """A metric object that counts how often it was updated."""

    number = 0

    def update(self):
        self.number += 1

    def compute(self):
        return self.number

    def reset(self):
        self.number = 0

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


@pytest.mark.parametrize("is_frozen", [False, True])
def test_what_the_script_has_taken_from_the_garbage_collector_stays_so(is_frozen):
    if is_frozen:
        gc.freeze()
    try:
        assert start(16).find_batch_size(make_net(), DataLoader(dataset(), 8)) == 16
        assert (gc.get_freeze_count() > 0) == is_frozen
    finally:
        gc.unfreeze()


def test_memory_that_an_accelerator_keeps_is_given_back_after_each_size(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cpu, "empty_cache", lambda: emptied.append(True), raising=False)
    assert start(32).find_batch_size(make_net(), DataLoader(dataset(), 16)) == 32
    assert len(emptied) == 3


def test_nothing_is_written(tmp_path):
    start(16).find_batch_size(make_net(), DataLoader(dataset(), 8))
    assert not list(tmp_path.iterdir())


def test_a_stream_has_no_size_that_limits_the_search():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([dataset(1)[0]] * 512)

    assert start(200).find_batch_size(make_net(), DataLoader(Stream(), 8)) == 128


def test_where_not_even_one_sample_fits_there_is_no_size():
    with pytest.raises(ScriptError, match="a step with a single sample does not fit into the memory of cpu"):
        start(0).find_batch_size(make_net(), DataLoader(dataset(), 8))


def test_another_error_of_the_step_is_raised_as_it_is():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        start(16).find_batch_size(nn.Linear(3, 1), DataLoader(dataset(), 8))


@pytest.mark.parametrize("loader", [[1, 2], DataLoader(dataset(), batch_size=None)])
def test_a_loader_without_a_batch_size_is_refused(loader):
    with pytest.raises(ScriptError, match="find_batch_size expects a DataLoader with a batch size, got"):
        start(16).find_batch_size(make_net(), loader)


def test_a_function_that_drives_an_epoch_cannot_be_tried():
    run = start(16)
    run.train_epoch(lambda data_loader: None)
    with pytest.raises(ScriptError, match="find_batch_size needs @run.train_step and @run.configure_optimizers"):
        run.find_batch_size(make_net(), DataLoader(dataset(), 8))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("Invalid buffer size: 24.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_every_device_says_it_in_words_of_its_own(error, expected):
    assert is_out_of_memory(error) is expected


def test_the_largest_batch_that_fits_into_a_gpu_is_found_and_its_memory_given_back(gpus, make_run, net, loader):
    def search(**options):
        gpus.most_bytes = 0
        found = make_run().find_batch_size(net, loader, device="cuda:1", **options)
        return found, gpus.used_bytes

    peaks, (_, used) = {}, search()  # the first moves the model there
    for size in (16, 32):
        assert search(largest=size) == (size, used)
        peaks[size] = gpus.most_bytes
    for size, peak in peaks.items():
        gpus.limit_bytes = peak
        assert search() == (size, used)


def test_what_a_size_took_is_free_again_before_memory_is_given_back_to_a_gpu(gpus, make_run, net, loader, monkeypatch):
    before, after = [], []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: after.append(gpus.used_bytes))
    run = make_run()

    @run.configure_optimizers
    def configure_optimizers(model):
        before.append(gpus.used_bytes)
        return torch.optim.Adam(model.parameters())

    assert run.find_batch_size(net, loader, device="cuda", largest=32) == 32
    assert len(after) == 3 and set(after) == {before[0]}
