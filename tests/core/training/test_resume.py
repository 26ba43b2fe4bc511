"""Runs that are stopped in the middle of epochs and continued, over every kind of loader: the same bits in the end."""

import json
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* are drawn again:blowtorch.errors.BlowtorchWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than there are cores
]

SIZE = 50
QUIET = {"progress": False, "log_every": "3 steps"}


class Augmented(Dataset):
    """Draws from every stream that there is."""

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        x = torch.full((4,), index / SIZE) + torch.rand(4) + float(np.random.rand()) + random.random()
        return x, x.sum().reshape(1)


class Stream(IterableDataset):
    """The same without an index."""

    def __iter__(self):
        return (Augmented()[index] for index in range(SIZE))


class Told(Sampler):
    """Shuffles by the epoch that it is told."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter(np.random.RandomState(self.epoch).permutation(SIZE).tolist())

    def __len__(self):
        return SIZE


class Shuffled(Sampler):
    """Draws its order from Python's global stream."""

    def __iter__(self):
        return iter(random.sample(range(SIZE), SIZE))

    def __len__(self):
        return SIZE


def batches():
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator)) for _ in range(7)]


class Drawn:
    """An iterable that can only be drawn forward."""

    def __iter__(self):
        return iter(batches())


def generator():
    return torch.Generator().manual_seed(9)


def loader(dataset=None, **settings):
    return lambda: DataLoader(dataset or Augmented(), **({"batch_size": 8} | settings))


KINDS = {
    "shuffled": loader(shuffle=True),
    "with a generator": loader(shuffle=True, generator=generator()),
    "one worker": loader(shuffle=True, num_workers=1),
    "four workers": loader(shuffle=True, num_workers=4),
    "workers that stay": loader(shuffle=True, num_workers=2, persistent_workers=True),
    "drop_last": loader(shuffle=True, drop_last=True, num_workers=1),
    "weighted": lambda: loader(sampler=WeightedRandomSampler(torch.rand(SIZE, generator=generator()), SIZE))(),
    "subset": loader(sampler=SubsetRandomSampler(range(0, 48, 2)), num_workers=1),
    "set_epoch": loader(sampler=Told()),
    "a sampler of one's own": loader(sampler=Shuffled(), num_workers=1),
    "a batch sampler": lambda: DataLoader(Augmented(), batch_sampler=BatchSampler(Shuffled(), 8, drop_last=False)),
    "a list": batches,
    "iterable": loader(Stream()),
    "iterable with a worker": loader(Stream(), num_workers=1),
    "any iterable": Drawn,
}


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.BatchNorm1d(8), nn.Linear(8, 1))


def weights(net):
    return torch.cat([value.flatten().double() for value in net.state_dict().values()])


@pytest.fixture
def train(make_run, data, events):
    """Trains two epochs in as many parts as there are stops; gives the weights and metric lines."""

    def train(make_loader, *stops, **options):
        folder = {}
        for stop in (*stops, None):
            net, run = make_net(), make_run(validates=False)
            for name in ("val", "ood"):

                @run.validate_step(DataLoader(data, batch_size=32, shuffle=True), name=name, every="4 steps")
                def validate(batch, model, step):
                    return {"loss": model(batch[0]).mean(), "drawn": torch.rand(()), "worse": float(step)}

            result = run(net, make_loader(), max_epochs=2, max_steps=stop, **folder, **QUIET, **options)
            folder = {"resume": str(result.folder)}
        return weights(net), [{**event, "time": None} for event in events(result, "metrics")]

    return train


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_in_the_middle_of_epochs_ends_with_the_same_bits(train, kind):
    expected = train(KINDS[kind])
    found = train(KINDS[kind], 2, 5, 9)
    if (
        kind == "iterable"
    ):  # it draws from the streams of training, also while it is drawn forward up to its first batch
        assert len(found[1]) == len(expected[1])
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]


def test_the_number_of_workers_may_change_between_kill_and_resume(train):
    workers = iter([1, 4, 2, 3])
    expected = train(loader(shuffle=True, num_workers=2))
    assert train(lambda: loader(shuffle=True, num_workers=next(workers))(), 2, 5, 9)[1] == expected[1]


def test_a_train_epoch_function_goes_on_between_epochs(make_run, data, events):
    def train(*limits):
        folder = {}
        for limit in limits:
            net, run = make_net(), make_run(validates=False)

            @run.train_epoch
            def epoch(data_loader, model, optimizers):
                for x, y in data_loader:
                    optimizers["optimizer"].zero_grad()
                    loss = nn.functional.mse_loss(model(x), y)
                    loss.backward()
                    optimizers["optimizer"].step()
                return {"loss": loss.detach()}

            result = run(net, DataLoader(data, 8, shuffle=True), max_epochs=limit, **folder, **QUIET)
            folder = {"resume": str(result.folder)}
        return weights(net), [{**event, "time": None} for event in events(result, "metrics")]

    expected, found = train(3), train(1, 2, 3)
    assert torch.equal(expected[0], found[0]) and expected[1] == found[1]


def test_a_schedule_that_follows_a_metric_goes_on(train):
    options = {"scheduler": {"plateau": {"patience": 0, "metric": "ood/worse"}}}
    expected = train(loader(shuffle=True), **options)
    rates = {line["metrics"]["lr"] for line in expected[1] if "lr" in line["metrics"]}
    assert len(rates) > 1  # it has changed the rate at all
    assert train(loader(shuffle=True), 5, 8, 9, **options)[1] == expected[1]


def evaluate_now_and_then(run, loader):
    net = make_net()
    torch.manual_seed(run.seed)

    @run.on("train_step_end")
    def evaluate(step):
        if step % 3 == 0:
            run.evaluate(net, loader)


def log_media(run, loader):
    @run.on("train_step_end")
    def log(step):
        run.log_image("noise", torch.zeros(3, 8, 8))
        run.log_histogram("weights", torch.arange(9.0))
        run.log_text("text", f"step {step}")


@pytest.mark.parametrize(
    ("options", "besides"),
    [
        ({"log_every": "1 steps"}, None),
        ({"checkpoint_every": "1 steps"}, None),
        ({"checkpoint_every": None, "checkpoint_async": False}, None),
        ({"validate_every": "2 steps", "validate_at_start": True}, None),
        ({"trace": True}, None),
        ({}, evaluate_now_and_then),
        ({}, log_media),
    ],
)
def test_nothing_but_training_moves_the_random_streams_of_training(make_run, options, besides):
    """Data that draws from the streams of training, in the main process, and dropout."""

    def train(besides=None, **options):
        net, run = make_net(), make_run()
        if besides is not None:
            besides(run, DataLoader(Augmented(), 25, shuffle=True))
        data = [DataLoader(Augmented(), 8, shuffle=True), DataLoader(Augmented(), 25, shuffle=True)]
        run(net, *data, max_epochs=2, progress=False, **options)
        return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])

    assert torch.equal(train(), train(besides, **options))


def test_a_trace_has_the_samples_of_every_batch_of_a_group(make_run, net, data):
    run = make_run(validates=False)
    result = run(net, DataLoader(data, 8), max_epochs=2, accumulate=3, trace=True, progress=False)
    lines = [json.loads(line) for line in (result.folder / "trace.jsonl").read_text().splitlines()]
    groups = [[list(range(8 * n, 8 * n + 8)) for n in numbers] for numbers in ((0, 1, 2), (3, 4, 5), (6, 7))]
    assert [line["indices"] for line in lines[1:]] == 2 * groups
