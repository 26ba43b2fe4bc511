"""What a loader says of its length, and what it gives: training is that of a loop by hand, whatever it says."""

import contextlib
import signal
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, get_worker_info

from blowtorch import BlowtorchWarning, Run
from tests.core.small_runs import QUIET, assert_same, step, weights
from tests.core.training.gradient_runs import batches, start


class Saying:
    """Batches of which it says a length: a number, or an exception that it raises."""

    def __init__(self, parts, said):
        self.parts, self.said = parts, said

    def __iter__(self):
        return iter(self.parts)

    def __len__(self):
        if isinstance(self.said, type):
            raise self.said("the length is not known")
        return self.said


class Sharded(IterableDataset):
    """Says how many samples it has; each worker gives a part of them, and so a last batch of its own."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __iter__(self):
        info = get_worker_info()
        first, stride = (0, 1) if info is None else (info.id, info.num_workers)
        return iter(self.samples[first::stride])


def small_net():
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def by_hand(parts, accumulate, epochs, max_steps):
    model = small_net()
    optimizer, steps = torch.optim.SGD(model.parameters(), lr=0.1), 0
    for _ in range(epochs):
        for first in range(0, len(parts), accumulate):
            group = parts[first : first + accumulate]
            optimizer.zero_grad()
            for x, y in group:
                loss = nn.functional.mse_loss(model(x), y, reduction="sum")
                (loss / sum(len(x) for x, _ in group)).backward()
            optimizer.step()
            steps += 1
            if steps == max_steps:
                return model, steps
    return model, steps


UNKNOWN = [TypeError, NotImplementedError, ValueError, RuntimeError, KeyError, float("inf"), 2.5, -1, 10**30]


@pytest.mark.parametrize("said", UNKNOWN, ids=repr)
def test_a_length_that_is_none_is_unknown(said):
    parts, seen = batches(8, 8, 3), []
    run = start()
    run.validate_step(step)
    run.on("run_start")(lambda state: seen.append(state.total_steps))
    loader = Saying(parts, said)
    assert run(small_net(), loader, loader, max_epochs=2, **QUIET).step == 6
    assert seen == [None]
    assert run.evaluate(small_net(), loader).keys() == {"val/loss"}


COMBINATIONS: list[tuple[Any, ...]] = [
    (3, 5, 1, None),
    (3, 5, 2, None),
    (4, 6, 4, None),
    (1, 4, 3, None),
    (6, 4, 4, None),
    (0, 4, 2, None),
]
CUT: list[tuple[Any, ...]] = [(3, 5, 1, 3), (4, 6, 2, 2), (3, 5, 2, 2), (6, 4, 1, 6), (ValueError, 5, 3, 3)]


@pytest.mark.parametrize(("said", "given", "accumulate", "max_steps"), COMBINATIONS + CUT)
def test_more_or_fewer_batches_than_said_are_trained_on_as_by_hand(said, given, accumulate, max_steps):
    parts = batches(*(8, 3, 5, 8, 1, 6)[:given])
    model = small_net()
    options = {"max_epochs": 2, "max_steps": max_steps, "accumulate": accumulate, **QUIET}
    options |= {"validate_every": "1 step", "checkpoint_every": "2 steps"}
    run = start()
    run.validate_step(step)
    result = run(model, Saying(parts, said), parts[:1], **options)
    twin, steps = by_hand(parts, accumulate, 2, max_steps)
    assert result.step == steps
    for mine, other in zip(weights(model), weights(twin), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_workers_that_share_a_dataset_give_more_batches_than_their_loader_says_and_nobody_warns():
    x, y = (torch.cat(parts) for parts in zip(*batches(18), strict=True))
    loader = DataLoader(Sharded(list(zip(x, y, strict=True))), 4, num_workers=2)
    parts = list(loader.__iter__())
    model = small_net()
    result = start()(model, loader, accumulate=2, max_epochs=2, log_every="1 step", **QUIET)
    twin, steps = by_hand(parts, 2, 2, None)
    assert (len(parts), result.step) == (6, steps)
    for mine, other in zip(weights(model), weights(twin), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert len(list(loader.__iter__())) == 6  # nor later, where the script itself has not asked for the length


class Drawn:
    """Draws its five batches from the global streams, and says that there are three."""

    def __iter__(self):
        for number in range(5):
            yield torch.randn(4, 4), torch.full((4, 1), float(number))

    def __len__(self):
        return 3


class Positioned(Drawn):
    """Holds its position itself, and draws nothing."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        while self.position < 5:
            self.position += 1
            yield torch.full((4, 4), float(self.position)), torch.ones(4, 1)
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


@pytest.mark.filterwarnings("ignore:the loader for 'train' has no position of its own")
@pytest.mark.parametrize("kind", [Drawn, Positioned])
@pytest.mark.parametrize("max_steps", [None, 8])
def test_a_run_that_is_stopped_about_the_end_that_was_said_goes_on_exactly(events, kind, max_steps):
    def train(folder, stop_at=None, fails=False):
        torch.manual_seed(0)
        run, model = start(), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        run.validate_step(step)

        @run.on("train_step_end")
        def stop(state):
            if state.step == stop_at and fails:
                raise RuntimeError("the power is gone")
            if state.step == stop_at:
                signal.raise_signal(signal.SIGTERM)

        options = {"validate_every": "3 steps", "checkpoint_every": "1 step", "log_every": "2 steps", "max_epochs": 2}
        options |= {"resume": "auto", "save_path": folder, "max_steps": max_steps, "checkpoint_async": False}
        return run(model, kind(), batches(4), **options, **QUIET), weights(model)

    straight, expected = train("straight")
    assert straight.step == (max_steps or 10)
    lines = [{**event, "time": 0} for event in events(straight, "metrics")]
    for stop_at, fails in ((3, False), (4, True), (8, False)):
        folder = f"stop-{stop_at}-{fails}"
        with pytest.raises(RuntimeError, match="the power") if fails else contextlib.nullcontext():
            train(folder, stop_at, fails)
        resumed, trained = train(folder)
        assert [{**event, "time": 0} for event in events(resumed, "metrics")] == lines
        assert_same(trained, expected)


def test_a_limit_that_falls_on_the_end_that_was_said_ends_no_epoch_that_has_more(events):
    ended, options = [], {"max_steps": 3, "max_epochs": 5, "validate_every": "1 step", **QUIET}
    for given in (3, 5):
        run = start()
        run.validate_step(step)
        run.on("epoch_end")(lambda epoch, given=given: ended.append(given))
        result = run(small_net(), Saying(batches(*[4] * given), 3), batches(4), **options)
        assert [event["step"] for event in events(result, "metrics") if "val/loss" in event["metrics"]] == [1, 2, 3]
        assert (result.status, result.step) == ("finished", 3)
    assert ended == [3]


def said_lines(result):
    return [line[9:] for line in (result.folder / "console.log").read_text().splitlines() if "loader for" in line]


def test_a_length_that_was_wrong_is_said_once():
    run = start()
    run.validate_step(step)
    result = run(small_net(), Saying(batches(4, 4, 4), 2), Saying(batches(4), 3), max_epochs=2, **QUIET)
    assert said_lines(result) == [
        "the loader for 'train' says that it has 2 batches, and has given 3; what counts on its length is off, such "
        "as the time left and schedules by steps",
        "the loader for 'val' says that it has 3 batches, and has given 1; what counts on its length is off, such as "
        "the time left and schedules by steps",
    ]


def test_lengths_that_are_right_are_not_spoken_of(data):
    for loader in (DataLoader(data, 8, shuffle=True), batches(4, 4), Saying(batches(4, 4), 2)):
        for options in ({}, {"limit_train_batches": 1, "limit_validate_batches": 1}, {"max_steps": 1}):
            run = start()
            run.validate_step(step)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert said_lines(run(small_net(), loader, loader, max_epochs=2, **options, **QUIET)) == []


class Ending(Dataset):
    """Has 16 samples, and raises StopIteration for those after the tenth."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        if index >= 10:
            raise StopIteration
        return torch.ones(4), torch.ones(1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_that_ends_an_epoch_before_its_length_is_warned_of(workers):
    loader, run = DataLoader(Ending(), 4, num_workers=workers), start()
    with pytest.warns(BlowtorchWarning, match="'train' has 4 batches, and an epoch ended after 2; a dataset that"):
        assert run(small_net(), loader, max_epochs=2, **QUIET).step == 4
    run.validate_step(step)
    with pytest.warns(BlowtorchWarning, match="'val' has 4 batches, and an epoch ended after 2"):
        run.evaluate(small_net(), loader)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("stopped_at", "size"), [(3, 4), (3, 16), (3, 32), (4, 4), (3, 8)])
def test_a_run_that_goes_on_within_an_epoch_of_another_length_says_so(data, stopped_at, size):
    few, run, options = Subset(data, range(32)), start(), {"max_epochs": 2, **QUIET}
    run.on("train_step_end")(lambda step: signal.raise_signal(signal.SIGTERM) if step == stopped_at else None)
    stopped = run(small_net(), DataLoader(few, 8, shuffle=True), **options)
    result = start()(small_net(), DataLoader(few, size, shuffle=True), resume=str(stopped.folder), **options)
    said = [line for line in (result.folder / "console.log").read_text().splitlines() if "goes on behind" in line]
    if size == 8:
        assert said == []
    else:
        place = f"of {size} samples now and had 8 before: epoch 1 goes on behind its batch {8 * stopped_at // size}"
        assert len(said) == 1 and place in said[0]


def rates_of(events, result):
    metrics = [event["metrics"] for event in events(result, "metrics")]
    return [each["lr"] for each in metrics if "train/loss" in each and "train_epoch/loss" not in each]


@pytest.mark.parametrize(
    "scheduler", ["cosine", "one_cycle", [{"exponential": {"factor": 0.5}, "for": "1 step"}, "linear"]]
)
def test_a_schedule_that_runs_past_its_end_says_so_once_and_holds_its_last_rates(events, scheduler):
    run, loader = start(), Saying(batches(4, 4, 4, 4), 2)
    with pytest.warns(BlowtorchWarning, match="has come to its end, and step 5 is past it") as caught:
        result = run(small_net(), loader, max_epochs=2, scheduler=scheduler, log_every="1 step", **QUIET)
    assert len(caught) == 1
    rates = rates_of(events, result)
    planned = start()(small_net(), batches(4, 4), max_epochs=2, scheduler=scheduler, log_every="1 step", **QUIET)
    assert rates[:4] == rates_of(events, planned)
    assert len(rates) == 8 and len(set(rates[4:])) == 1


@pytest.mark.parametrize("every", ["1 step", "1 epoch"])
def test_a_schedule_that_has_no_end_goes_on(events, every):
    options = {"scheduler": {"exponential": {"factor": 0.5, "every": every}}, "max_epochs": 2, "log_every": "1 step"}
    assert rates_of(events, start()(small_net(), Saying(batches(4, 4, 4, 4), 2), **options, **QUIET)) == rates_of(
        events, start()(small_net(), batches(4, 4, 4, 4), **options, **QUIET)
    )


def test_a_one_cycle_of_the_scripts_own_is_held_at_its_end_too():
    run = Run(random_seed=0, command_line=[])
    run.train_step(step)

    @run.configure_optimizers
    def configure_optimizers(model):
        from blowtorch import Schedule

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return optimizer, Schedule(torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3), every="1 step")

    with pytest.warns(BlowtorchWarning, match="the schedule of 'scheduler' has come to its end, and step 4 is past it"):
        assert run(small_net(), batches(*[4] * 6), **QUIET).status == "finished"
