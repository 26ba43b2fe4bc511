"""How long training has waited for data is told at its end, where that is much, and never where it is not so."""

import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from blowtorch.training.waiting import Waiting
from tests.core.training.gradient_runs import QUIET, start

GPU = torch.device("cuda")


class Clock:
    """A time that passes where somebody says so, for the host and for a GPU that works off a queue.

    Attributes:
        now: on the host.
        is_free: when the GPU will have done all that it was asked for.
    """

    def __init__(self):
        self.now = self.is_free = 0.0

    def pass_by(self, seconds):
        self.now += seconds

    def compute(self, seconds):
        """Ask the GPU for work that takes so long."""
        self.is_free = max(self.now, self.is_free) + seconds

    def reached(self):
        """When the GPU comes to what it is asked for now."""
        return max(self.now, self.is_free)


@pytest.fixture
def clock(monkeypatch):
    """The clock that counts; torch is given a GPU that goes by it."""
    clock = Clock()

    class Event:
        def __init__(self, enable_timing):
            self.at = clock.reached()

        def query(self):
            return self.at <= clock.now

        def elapsed_time(self, later):
            return 1000 * (later.at - self.at)

    class Stream:
        def record_event(self, event):
            event.at = clock.reached()
            return event

    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    return clock


class Slow(Dataset):
    """Its samples take their time, in the process that loads them."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def __len__(self):
        return 16

    def __getitem__(self, index):
        self.clock.pass_by(self.seconds)
        return torch.randn(4), torch.randn(1)


def trained(clock, loader, seconds, **options):
    """Train steps that take so long, and return what was said of waiting."""
    run = start()

    @run.train_step
    def step(batch, model):
        clock.pass_by(seconds)
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    result = run(nn.Linear(4, 1), loader, **options, **QUIET)
    lines = (result.folder / "console.log").read_text().splitlines()
    return [line.partition(" ")[2] for line in lines if "waiting for" in line]


def test_data_that_takes_long_is_told_at_the_end_with_what_to_do(clock):
    (line,) = trained(clock, DataLoader(Slow(clock, 1.0), batch_size=4), 12.0, max_epochs=2)
    assert line.startswith(
        "25 % of the time of the training steps was spent waiting for data, which was loaded in between"
    )
    assert "DataLoader(num_workers=...)" in line


@pytest.mark.parametrize(
    ("of_a_sample", "of_a_step"),
    [(1.0, 20.0), (0.0, 1.0), (0.1, 0.1)],
    ids=["a small share", "no time at all", "a large share of a short run"],
)
def test_little_waiting_is_not_worth_a_word(clock, of_a_sample, of_a_step):
    assert trained(clock, DataLoader(Slow(clock, of_a_sample), batch_size=4), of_a_step, max_epochs=2) == []


def test_a_list_of_batches_makes_nobody_wait(clock):
    batches = [(torch.randn(8, 4), torch.randn(8, 1))] * 4
    assert trained(clock, batches, 10.0) == []
    iterator = iter(batches)
    assert Waiting(torch.device("cpu"), batches).watch(iterator) is iterator


def test_a_run_that_is_stopped_tells_it_too(clock):
    loader = DataLoader(Slow(clock, 10.0), batch_size=4)
    assert len(trained(clock, loader, 1.0, max_steps=2)) == 1


def test_a_wait_counts_once_the_time_of_its_step_is_known(clock):
    """The last step of a run that is stopped has no end."""
    loader = DataLoader(Slow(clock, 10.0), batch_size=1)
    assert trained(clock, loader, 10.0, max_steps=1) == []
    (line,) = trained(clock, loader, 10.0, max_steps=3)
    assert line.startswith("50 % of the time")


def waited(
    clock, loader, *, fetch, work, launch=0.0, first=0.0, device=GPU, num_epochs=2, num_batches=40, num_launches=1
):
    """Go through epochs by hand, and return what is said in the end; times are in seconds."""
    waiting = Waiting(device, loader)

    def batches():
        clock.pass_by(first)
        for number in range(num_batches):
            clock.pass_by(fetch(number) if callable(fetch) else fetch)
            yield number

    for _ in range(num_epochs):
        for _ in waiting.watch(batches()):
            for _ in range(num_launches):
                clock.pass_by(launch / num_launches)
                clock.compute(work / num_launches)
    clock.now = clock.reached()
    return waiting.describe()


WORKERS = DataLoader([torch.zeros(1)] * 4, num_workers=2)


def test_a_gpu_that_is_busy_while_the_host_waits_does_not_wait(clock):
    assert waited(clock, WORKERS, fetch=0.9, work=1.0) is None


def test_a_gpu_without_work_while_a_batch_is_fetched_waits_for_it(clock):
    line = waited(clock, WORKERS, fetch=1.0, work=0.5, launch=0.1)
    assert line.startswith(
        "46 % of the time of the training steps was spent waiting for data: more workers (num_workers is 2)"
    )


def test_a_gpu_that_waits_for_one_batch_of_many_is_told_of_by_that_share(clock):
    """Two workers deliver two batches at a time, after two seconds."""
    line = waited(clock, WORKERS, fetch=lambda number: 2.0 * (number % 2), work=0.5, num_batches=400)
    share = int(line.partition(" ")[0])
    assert 44 <= share <= 56  # it works one second of each two


def test_a_gpu_that_waits_for_the_host_is_told_of(clock):
    line = waited(clock, WORKERS, fetch=0.01, launch=1.0, work=0.2, num_launches=100)
    assert line.startswith("the GPU had nothing left to do before 100 % of the training steps")
    assert "larger batches" in line and "compile" in line


def test_a_gpu_whose_work_the_host_launches_ahead_does_not_wait_for_it(clock):
    assert waited(clock, WORKERS, fetch=0.01, launch=0.2, work=1.0, num_launches=100) is None


def test_a_gpu_that_waits_for_data_now_and_then_is_not_said_to_wait_for_the_host(clock):
    assert waited(clock, WORKERS, fetch=0.15, launch=0.6, work=0.6, num_launches=100) is None


def test_epochs_of_few_steps_are_not_taken_for_long_ones(clock):
    line = waited(clock, WORKERS, fetch=1.0, work=0.1, launch=1.0, num_batches=3, num_epochs=20)
    assert 44 <= int(line.partition(" ")[0]) <= 46


def test_workers_that_begin_anew_in_each_epoch_are_named(clock):
    line = waited(clock, WORKERS, fetch=0.0, work=1.0, launch=1.0, first=30.0, num_batches=10)
    assert line.startswith(
        "74 % of the time of the training steps was spent waiting for data, most of it for the first batch"
    )
    assert "DataLoader(persistent_workers=True)" in line


@pytest.mark.parametrize("num_workers", [0, 2])
def test_of_a_loader_that_is_slow_once_nothing_is_promised_from_workers(clock, num_workers):
    loader = DataLoader([torch.zeros(1)] * 4, num_workers=num_workers)
    line = waited(clock, loader, fetch=0.0, work=1.0, launch=1.0, first=60.0, num_batches=10, num_epochs=1)
    assert line == "86 % of the time of the training steps was spent waiting for data, most of it for the first batch"


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


class Foreign:
    """A loader of another library, with workers of its own."""

    num_workers = 2

    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    "loader", [iter(()), Foreign(), DataLoader(Stream())], ids=["no loader", "none of torch's", "a stream"]
)
def test_of_a_loader_that_more_workers_may_not_help_the_share_is_told(clock, loader):
    line = waited(clock, loader, fetch=1.0, work=0.0, launch=1.0, first=60.0, device=torch.device("cpu"))
    assert line == "71 % of the time of the training steps was spent waiting for batches of the loader"


def test_of_accelerators_that_do_not_tell_nothing_is_said(clock):
    assert waited(clock, WORKERS, fetch=1.0, work=0.1, device=torch.device("mps")) is None
