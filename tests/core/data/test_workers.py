"""Loader workers: seeded by what they load, and ended with the epoch."""

import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import time
from multiprocessing import util

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    get_worker_info,
)

from tests.core.data.loaders import SAMPLERS, Augmented, Plain, Stream, assert_restarts, batches_of, epoch_of, same
from tests.core.small_runs import QUIET

AGAIN = "drawn again"


class WithEpoch(Augmented):
    """Gives the epoch that it was told."""

    epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        return torch.tensor([index, self.epoch])


def streams():
    return random.getstate(), pickle.dumps(np.random.get_state()), torch.random.get_rng_state().tolist()


@pytest.mark.parametrize(("persistent", "kind"), [(False, "shuffled"), (True, "python")])
def test_workers_make_no_difference_however_many(persistent, kind):
    def make(workers):
        loader = SAMPLERS[kind](Augmented())
        keywords = {"num_workers": workers, "persistent_workers": persistent, "prefetch_factor": 3}
        return DataLoader(loader.dataset, batch_size=4, sampler=loader.sampler, **keywords)

    one = assert_restarts(lambda: make(1), places=(0, 3))
    two = assert_restarts(lambda: make(2), places=(1,))
    assert all(same(left, right) for left, right in zip(one, two, strict=True))
    draws = torch.cat([batch[:, 1:] for epoch in one for batch in epoch]).flatten()
    assert draws.unique().numel() == draws.numel()  # no draw comes twice


@pytest.mark.parametrize("kind", ["unbatched", "unbatched lists"])
def test_workers_without_batching_are_seeded_too(kind):
    def make(workers):
        loader = SAMPLERS[kind](Augmented(6))
        return DataLoader(loader.dataset, batch_size=None, sampler=loader.sampler, num_workers=workers)

    whole = epoch_of(batches_of(make(1)), 2)
    assert same(epoch_of(batches_of(make(2)), 2, 2), whole[2:])


def test_workers_are_seeded_for_a_sampler_of_batches_in_the_place_of_indices():
    class Many(Augmented):
        def __getitem__(self, indices):
            return torch.stack([Augmented.__getitem__(self, index) for index in indices])

    data = Many(12)

    def make(workers):
        return DataLoader(
            data, batch_size=None, sampler=BatchSampler(RandomSampler(data), 4, False), num_workers=workers
        )

    whole = epoch_of(batches_of(make(1)), 1)
    assert [len(batch) for batch in whole] == [4, 4, 4]
    assert same(epoch_of(batches_of(make(2)), 1, 1), whole[1:])


def note_the_dataset(worker):
    get_worker_info().dataset.size = 1000 + worker


class ShowsSize(Augmented):
    def __getitem__(self, index):
        return torch.tensor([self.size, index])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_users_worker_init_fn_sees_the_users_dataset(method):
    loader = DataLoader(ShowsSize(8), 2, num_workers=1, worker_init_fn=note_the_dataset, multiprocessing_context=method)
    batches = epoch_of(batches_of(loader), 1, 1)
    assert torch.cat(batches).tolist() == [[1000, index] for index in range(2, 8)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_is_told_the_epoch_also_in_workers_that_stay(workers):
    loader = DataLoader(WithEpoch(4), batch_size=4, num_workers=workers, persistent_workers=workers > 0)
    batches = batches_of(loader)
    assert [epoch_of(batches, epoch)[0][0, 1].item() for epoch in (1, 2, 4)] == [0, 1, 3]
    batches.close()


class ShowsProcess(Augmented):
    def __getitem__(self, index):
        return torch.tensor(os.getpid())


def has_ended(process):
    """Whether a process is gone, or does so within five seconds."""
    deadline = time.monotonic() + 5
    while process in (child.pid for child in multiprocessing.active_children()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return process not in (child.pid for child in multiprocessing.active_children())


def test_persistent_workers_are_reused_and_ended():
    batches = batches_of(DataLoader(ShowsProcess(), batch_size=4, num_workers=1, persistent_workers=True))
    (worker,) = torch.cat(epoch_of(batches, 1)).unique().tolist()
    assert torch.cat(epoch_of(batches, 2, 3)).unique().tolist() == [worker]
    batches.close()
    assert has_ended(worker)


def test_closing_ends_workers_in_the_middle_of_an_epoch():
    batches = batches_of(DataLoader(ShowsProcess(), batch_size=4, num_workers=1))
    running = batches.iterate(1)
    worker = next(running)[0].item()
    batches.close()
    assert has_ended(worker)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["sequential", "shuffled", "weighted", "python"])
def test_iterating_leaves_the_global_streams_alone(kind, workers):
    loader = SAMPLERS[kind](Plain())
    loader = DataLoader(loader.dataset, batch_size=4, sampler=loader.sampler, num_workers=workers)
    before = streams()
    epoch_of(batches_of(loader), 1, 2)
    assert streams() == before


@pytest.mark.filterwarnings(f"ignore:.*{AGAIN}")
@pytest.mark.parametrize("persistent", [False, True])
def test_an_iterable_dataset_in_workers_is_seeded_by_epoch_and_worker(persistent):
    def make():
        return DataLoader(Stream(), batch_size=3, num_workers=2, persistent_workers=persistent)

    whole = assert_restarts(make, places=(0, 3))
    assert [epoch[0][0, 0].item() for epoch in whole] == [0, 1, 2]  # set_epoch reaches the workers
    draws = torch.cat([torch.cat(epoch)[:, 1] for epoch in whole])
    assert draws.unique().numel() == draws.numel()


LEFT = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from blowtorch import Run

if __name__ == "__main__":
    run = Run(random_seed=0, command_line=[])
    run.predict_step(lambda model, batch: model(batch[0]))
    loader = DataLoader(TensorDataset(torch.zeros(64, 4)), 4, num_workers=2, persistent_workers=PERSISTENT)
    outputs = run.predict(torch.nn.Linear(4, 1), loader)
    print(next(outputs).shape)
"""


@pytest.mark.parametrize("persistent", ["True", "False"])
def test_a_script_that_leaves_batches_unread_ends(tmp_path, persistent):
    script = tmp_path / "left.py"
    script.write_text(LEFT.replace("PERSISTENT", persistent))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == ("torch.Size([4, 1])\n", "")


ENDING = """
import gc, torch
from torch.utils.data import DataLoader, Dataset
from blowtorch import Run

class Ending(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        if index >= 10:
            raise StopIteration
        return torch.ones(4)

run = Run(random_seed=0, command_line=[])
run.train_step(lambda batch, model: model(batch).square().mean())
run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
run.on("epoch_end")(lambda epoch: gc.collect())
print(run(torch.nn.Linear(4, 1), DataLoader(Ending(), 4, num_workers=1), max_epochs=1, progress=False).step)
"""


def test_a_script_whose_dataset_ends_epochs_in_its_workers_ends(tmp_path):
    """Their iterator is then part of a cycle, and torch cannot tell its workers to end any more."""
    done = subprocess.run([sys.executable, "-c", ENDING], cwd=tmp_path, stdout=subprocess.PIPE, timeout=60, check=True)
    assert done.stdout == b"2\n"


LEFT_WITH_STATE = """
import torch
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from blowtorch import Run

class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(64, 4))

run = Run(random_seed=0, command_line=[])
run.predict_step(lambda model, batch: model(batch))
outputs = run.predict(torch.nn.Linear(4, 1), StatefulDataLoader(Stream(), 4, num_workers=2))
print(next(outputs).shape)
"""


def test_a_script_that_leaves_batches_of_a_loader_with_state_unread_ends(tmp_path):
    pytest.importorskip("torchdata")
    done = subprocess.run([sys.executable, "-c", LEFT_WITH_STATE], cwd=tmp_path, stdout=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"torch.Size([4, 1])\n")


def end_badly(worker):
    util.Finalize(None, os._exit, args=(3,), exitpriority=10)


def test_workers_that_fail_as_they_end_change_nothing_about_how_the_run_went(make_run, net, data, events):
    """A library that is torn down in the wrong order, say: torch raises in the main process then, wherever that is."""
    bad = DataLoader(data, 8, num_workers=2, worker_init_fn=end_badly, persistent_workers=True)
    result = make_run(validates=False)(net, bad, max_epochs=1, **QUIET)
    assert (result.status, events(result)[-1]["event"]) == ("finished", "finish")
