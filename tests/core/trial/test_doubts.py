"""What a dry run doubts, and what it does not."""

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from blowtorch import Run
from tests.core.small_runs import step as squares

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(64, 4, generator=GENERATOR)
IMAGES = torch.rand(64, 1, 6, 6, generator=GENERATOR)
TOKENS = torch.randint(0, 11, (64, 9), generator=GENERATOR)
LABELS = torch.randint(0, 10, (64,), generator=GENERATOR)


def classify(batch, model):
    x, y = batch
    return F.cross_entropy(model(x), y)


def doubts(capsys, model, data, step=classify, validation=None, *, make=None, **options):
    """What a dry run doubts of a model and data, both a dataset or a loader, at a rate that changes little."""
    torch.manual_seed(0)
    run = Run(random_seed=0, command_line=[])
    run.train_step(step)
    if validation is not None:
        run.validate_step(step)
    rate = 1e-3
    run.configure_optimizers(make or (lambda model: torch.optim.SGD(model.parameters(), lr=rate)))
    loaders = [item if item is None or isinstance(item, list | DataLoader) else DataLoader(item, batch_size=8)
               for item in (data, validation)]  # fmt: skip
    capsys.readouterr()
    result = run(model, *loaders, dry_run=True, **{"progress": False, **options})
    assert result.status == "finished"
    lines = capsys.readouterr().out.splitlines()
    return [line.removeprefix("  doubt").strip() for line in lines if line.startswith("  doubt")]


def linear(inputs=4, classes=10):
    torch.manual_seed(0)
    return nn.Linear(inputs, classes)


# The loss of the first step.


def test_a_first_loss_far_above_that_of_guessing_is_doubted(capsys):
    (doubt,) = doubts(capsys, linear(), TensorDataset(X * 255, LABELS))
    assert doubt.startswith("the first loss is ") and "guess among 10 classes would give 2.3; are the inputs" in doubt


def test_a_first_loss_far_below_that_of_guessing_is_doubted(capsys):
    data = TensorDataset(50 * F.one_hot(LABELS, 10).float(), LABELS)
    model = nn.Linear(10, 10)
    nn.init.eye_(model.weight)
    (doubt,) = doubts(capsys, model, data)
    assert "guess among 10 classes would give 2.3; do the inputs tell the class" in doubt


def test_two_classes_by_one_number_are_classes_too(capsys):
    def step(batch, model):
        return F.binary_cross_entropy_with_logits(model(batch[0])[:, 0], batch[1].float())

    data = TensorDataset(X * 255, LABELS % 2)
    (doubt,) = doubts(capsys, linear(classes=1), data, step)
    assert "guess among 2 classes would give 0.693" in doubt
    assert doubts(capsys, linear(classes=1), TensorDataset(X, LABELS % 2), step) == []


@pytest.mark.parametrize("place", ["second", "last"])
def test_classes_of_pixels_and_of_words_are_known_wherever_they_stand(capsys, place):
    model = nn.Conv2d(1, 10, 1) if place == "second" else nn.Linear(6, 10)
    targets = torch.randint(0, 10, (64, 6, 6) if place == "second" else (64, 1, 6), generator=GENERATOR)

    def step(batch, model):
        logits = model(batch[0])
        return F.cross_entropy(logits if place == "second" else logits.movedim(-1, 1), batch[1])

    (doubt,) = doubts(capsys, model, TensorDataset(IMAGES * 1e4, targets), step)
    assert "guess among 10 classes" in doubt


def test_a_text_is_compared_with_the_words_that_follow(capsys):
    model = nn.Sequential(nn.Embedding(11, 40), nn.Linear(40, 11, bias=False))
    nn.init.normal_(model[1].weight)  # type: ignore[arg-type]

    def step(batch, model):
        logits = model(batch["tokens"])[:, :-1]
        return {"loss": F.cross_entropy(logits.flatten(0, 1), batch["tokens"][:, 1:].flatten()), "extra": 1}

    batches = [{"tokens": TOKENS[:8]}, {"tokens": TOKENS[8:16]}]
    (doubt,) = doubts(capsys, model, batches, step)
    assert "guess among 11 classes would give 2.4" in doubt


@pytest.mark.parametrize("options", [{"accumulate": 2}, {"precision": "bf16"}, {"loss_is": "mean"}], ids=str)
def test_it_is_doubted_under_options_too(capsys, options):
    assert len(doubts(capsys, linear(), TensorDataset(X * 255, LABELS), **options)) == 1


def test_weights_that_are_loaded_may_know_the_classes(capsys):
    data, model = TensorDataset(50 * F.one_hot(LABELS, 10).float(), LABELS), nn.Linear(10, 10)
    nn.init.eye_(model.weight)
    run = Run(random_seed=0, command_line=[])
    run.train_step(classify)
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.0))
    result = run(model, DataLoader(data, batch_size=8), progress=False)
    assert doubts(capsys, nn.Linear(10, 10), data, initialize_from=str(result.folder)) == []


# What the model gives.


class Saturated(nn.Module):
    """A probability of one class alone, which is 1 whatever comes."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 1)

    def forward(self, x):
        return self.inner(x).softmax(dim=1)


class Dead(nn.Module):
    def __init__(self, has_bias=True):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 1, bias=has_bias)
        nn.init.constant_(self.inner.bias, -100.0)

    def forward(self, x):
        return {"value": self.outer(self.inner(x).relu())}


@pytest.mark.parametrize("model", [Saturated, Dead], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_output_that_is_the_same_for_different_inputs_is_doubted(capsys, model, accumulate):
    def step(batch, model):
        output = model(batch[0])
        return F.mse_loss(output["value"] if isinstance(output, dict) else output, batch[1])

    data = TensorDataset(X, X.sum(dim=1, keepdim=True))
    (doubt,) = doubts(capsys, model(), data, step, accumulate=accumulate)
    assert doubt.startswith("the output of the model does not change with its input: it is the same for all samples")


class Policy(nn.Module):
    """It gives a mean that changes with its input, and a deviation that does not."""

    def __init__(self):
        super().__init__()
        self.mean, self.deviation = nn.Linear(4, 1), nn.Parameter(torch.ones(1))

    def forward(self, x):
        mean = self.mean(x)
        return mean, self.deviation.expand_as(mean)


def zero_head():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    nn.init.zeros_(model[2].weight)
    return model


# Training and validation data.


def rows(start, end):
    return TensorDataset(X[start:end], X[start:end].sum(dim=1, keepdim=True))


class Other(Dataset[Any]):
    """The same data as another object, which makes something of each sample."""

    def __init__(self, start, end, change=lambda x: x):
        self.x, self.change = X[start:end], change

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.change(self.x[index]), self.x[index].sum(dim=0, keepdim=True)


class Picture:
    """As one of a library that numpy can read."""

    def __init__(self, array):
        self.__array_interface__ = array.__array_interface__
        self.array = array


WHOLE = rows(0, 64)
SHARED = {
    "the same loader": (DataLoader(WHOLE, batch_size=8),) * 2,
    "the same dataset": (WHOLE, DataLoader(WHOLE, batch_size=4)),
    "parts of one that overlap": (Subset(WHOLE, range(40)), Subset(WHOLE, range(32, 64))),
    "parts of parts": (Subset(Subset(WHOLE, range(0, 64, 2)), range(20)), Subset(WHOLE, range(32, 64))),
    "samplers that overlap": (
        DataLoader(WHOLE, batch_size=8, sampler=SubsetRandomSampler([*range(40)])),
        DataLoader(WHOLE, batch_size=8, sampler=SubsetRandomSampler([*range(32, 64)])),
    ),
    "equal samples": (rows(0, 40), rows(32, 64)),
    "equal samples of another class": (rows(0, 40), Other(32, 64)),
    "equal samples in workers": (
        DataLoader(rows(0, 40), batch_size=8, num_workers=1),
        DataLoader(rows(32, 64), batch_size=8, num_workers=2, persistent_workers=True),
    ),
}


@pytest.mark.parametrize("kind", SHARED)
def test_samples_that_are_trained_on_and_validated_with_are_doubted(capsys, kind):
    train, validation = SHARED[kind]
    (doubt,) = doubts(capsys, linear(classes=1), train, squares, validation)
    expected = {"the same": "64 of the 64", "parts of parts": "4 of the 32"}
    number = next((text for start, text in expected.items() if kind.startswith(start)), "8 of the 32")
    assert doubt.startswith(f"{number} samples of validation 'val' that were looked at are training data too")


def test_batches_that_are_shared_are_doubted(capsys):
    batches = [(X[:8], X[:8, :1]), (X[8:16], X[8:16, :1]), (X[16:24], X[16:24, :1])]
    (doubt,) = doubts(capsys, linear(classes=1), batches[:2], squares, batches[1:])
    assert doubt.startswith("1 of the 2 samples")


@pytest.mark.parametrize("make_generator", [np.random.default_rng, random.Random])
def test_to_read_samples_changes_no_random_stream_and_no_generator(capsys, make_generator):
    class Drawn(Other):
        def __init__(self, start, end):
            super().__init__(start, end)
            self.numbers = make_generator(0)

        def __getitem__(self, index):
            return self.x[index] + float(self.numbers.random()) + random.random(), self.x[index, :1]

    data, other = Drawn(0, 8), Drawn(8, 16)
    states = []
    for validation in (other, None):
        data.numbers = make_generator(0)
        assert doubts(capsys, linear(classes=1), data, squares, validation) == []
        states.append((pickle.dumps(data.numbers), random.getstate(), torch.get_rng_state().tolist()))
    assert states[0] == states[1]


def test_pictures_are_read_as_arrays(capsys):
    def collate(samples):
        return torch.stack([torch.from_numpy(image.array.copy()) for image in samples]).flatten(1)

    def make(start, end):
        images = [Picture(image.numpy()) for image in IMAGES[start:end]]
        return DataLoader(images, batch_size=8, collate_fn=collate)  # type: ignore[arg-type]

    def step(batch, model):
        return model(batch).square().mean()

    (doubt,) = doubts(capsys, linear(36, 1), make(0, 40), step, make(32, 64))
    assert doubt.startswith("8 of the 32")
    assert doubts(capsys, linear(36, 1), make(0, 32), step, make(32, 64)) == []


class Stream(IterableDataset[Any]):
    def __iter__(self):
        return iter([(row, row[:1]) for row in X[:16]])


def noisy(x):
    return x + 0.1 * torch.randn(4)


RARE = torch.arange(64) % 16 // 15


def with_bias(layer, bias, index=slice(None)):
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    layer.bias.data[index] = bias
    return layer


SOUND: dict[str, tuple[Any, ...]] = {
    "regression": (lambda: linear(classes=1), rows(0, 32), squares, rows(32, 64)),
    "classification": (linear, TensorDataset(X[:32], LABELS[:32]), classify, TensorDataset(X[32:], LABELS[32:])),
    "one class of two": (lambda: linear(classes=2), TensorDataset(X, LABELS % 2), classify),
    "a class that is rare, and a bias that knows it": (
        lambda: with_bias(nn.Linear(4, 1), -4.0),
        TensorDataset(X, RARE.float()[:, None]),
        lambda batch, model: F.binary_cross_entropy_with_logits(model(batch[0]), batch[1]),
    ),
    "a background that is nearly everywhere": (
        lambda: with_bias(nn.Conv2d(1, 5, 1), 5.0, 0),
        TensorDataset(IMAGES, RARE[:, None, None] * F.pad(torch.ones(1, 1, dtype=torch.int64), (0, 5, 0, 5))),
        classify,
    ),
    "images": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 10)), TensorDataset(IMAGES, LABELS), classify),
    "a part and the rest": (lambda: linear(classes=1), Subset(WHOLE, range(32)), squares, Subset(WHOLE, range(32, 64))),
    "samplers that do not overlap": (
        lambda: linear(classes=1),
        DataLoader(WHOLE, batch_size=8, sampler=SubsetRandomSampler([*range(32)])),
        squares,
        DataLoader(WHOLE, batch_size=8, sampler=SubsetRandomSampler([*range(32, 64)])),
    ),
    "a last layer that begins with zeros": (zero_head, rows(0, 32), squares),
    "an output of which one part is the same": (
        Policy,
        rows(0, 32),
        lambda batch, model: -torch.distributions.Normal(*model(batch[0])).log_prob(batch[1]).mean(),
    ),
    "an augmentation": (lambda: linear(classes=1), Other(0, 64, noisy), squares, Other(0, 64)),
    "a stream": (lambda: linear(classes=1), DataLoader(Stream(), batch_size=8), squares, rows(0, 16)),
    "inputs that are all the same": (
        lambda: linear(classes=1),
        [(torch.ones(8, 4), torch.ones(8, 1))] * 4,
        squares,
        [(torch.ones(8, 4), torch.ones(8, 1))],
    ),
    "samples that repeat themselves": (
        lambda: linear(classes=1),
        TensorDataset(X[:4].repeat(8, 1), X[:4, :1].repeat(8, 1)),
        squares,
        TensorDataset(X[:4].repeat(4, 1), X[:4, :1].repeat(4, 1)),
    ),
    "indices for samples": (
        lambda: linear(1, 1),
        DataLoader(range(64), batch_size=8),  # type: ignore[arg-type]
        lambda batch, model: model(torch.randn(len(batch), 1)).square().mean(),
        DataLoader(range(16), batch_size=8),  # type: ignore[arg-type]
    ),
    "labels beside another loss": (
        linear,
        TensorDataset(X * 255, LABELS),
        lambda batch, model: F.mse_loss(model(batch[0]), F.one_hot(batch[1], 10).float()),
    ),
    "a model that is not called": (
        linear,
        TensorDataset(X, LABELS),
        lambda batch, model: F.cross_entropy(batch[0] @ model.weight.T, batch[1]),
    ),
    "samples alone": (linear, DataLoader(X, batch_size=1), lambda batch, model: model(batch).square().mean()),  # type: ignore[arg-type]
    "nothing but zeros": (
        lambda: Dead(has_bias=False),
        rows(0, 32),
        lambda batch, model: model(batch[0])["value"].mean(),
    ),
}


@pytest.mark.parametrize("script", SOUND)
def test_of_a_sound_script_nothing_is_doubted(capsys, script):
    make_model, data, step, validation = (*SOUND[script], None)[:4]
    assert doubts(capsys, make_model(), data, step, validation) == []


def test_a_model_that_is_compiled_as_a_whole_is_not_looked_at(capsys):
    data = TensorDataset(X * 255, LABELS)
    assert doubts(capsys, linear(), data, compile={"backend": "eager"}) == []


def test_nothing_hangs_on_the_model_afterwards(capsys):
    model = linear()
    doubts(capsys, model, TensorDataset(X, LABELS))
    handle = model.register_forward_hook(lambda *_: None)
    assert len(handle.hooks_dict_ref()) == 1
