"""How many samples a batch has, whatever it is made of."""

import collections
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from blowtorch import BlowtorchWarning, Run
from blowtorch.data.sizes import read_size
from blowtorch.record.metrics import count_samples
from tests.core.small_runs import QUIET

X, Y = torch.zeros(6, 4), torch.zeros(6, dtype=torch.long)
Pair = collections.namedtuple("Pair", "x y")


@dataclasses.dataclass
class Both:
    x: torch.Tensor
    y: torch.Tensor


class Sized:
    def __len__(self):
        return 6


class Plain:
    pass


class Saying:
    """An object that is no container, with the attributes that it is given."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def image(size=8):
    return torch.zeros(3, size, size)


def target(boxes):
    return {"boxes": torch.zeros(boxes, 4), "id": torch.tensor(1)}


PACKED = nn.utils.rnn.pack_sequence([torch.zeros(3, 2), torch.zeros(2, 2)])

PARTS = {
    "pair": (X, Y),
    "list of parts": [X, Y],
    "mapping": {"x": X, "y": Y},
    "0-d first": {"rate": torch.tensor(0.5), "x": X},
    "number first": {"rate": 0.5, "x": X},
    "text first": {"split": "train", "x": X},
    "names first": {"id": ["a"] * 6, "x": X},
    "None first": (None, X),
    "few names": {"classes": ["cat", "dog"], "x": X},
    "few numbers": {"size": (224, 224), "x": X},
    "nested": ({"in": {"x": X}}, [Y]),
    "named tuple": Pair(X, Y),
    "dataclass": Both(X, Y),
    "arrays": (X.numpy(), Y.numpy()),
    "lists of parts": [[X, X], [Y, Y]],
    "lists with names": [[X, ["a"] * 6], [Y, ["b"] * 6]],
    "two views": [{"x": X}, {"x": X}],
    "no rows first": (torch.zeros(0, 4), X, Y),
    "crops": [X] * 10,
}
SAMPLES = {
    "pairs": list(zip(X, Y, strict=True)),
    "mappings": [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)],
    "dataclasses": [Both(x, y) for x, y in zip(X, Y, strict=True)],
    "texts cut to a length": [{"ids": torch.zeros(128), "labels": torch.zeros(128)}] * 6,
    "tokens": [{"ids": [1, 2, 3]}] * 6,
    "texts": ["a"] * 6,
    "numbers": [0.5] * 6,
    "objects": [Plain() for _ in range(6)],
    "images and targets": [(image(), target(2)) for _ in range(6)],
    "images beside targets": ((image(),) * 6, tuple(map(target, (2, 0, 1, 2, 3, 2)))),
    "images beside labels": ((image(),) * 6, (1, 2, 3, 4, 5, 6)),
    "texts beside labels": {"text": ["a"] * 6, "label": [0] * 6},
    "sequences beside names": {"x": [torch.zeros(n) for n in range(1, 7)], "name": ["a"] * 6},
}
OBJECTS = {
    "with a length": Sized(),
    "with batch_size": Saying(batch_size=6),
    "with a batch_size of several dimensions": Saying(batch_size=torch.Size([6, 3])),
    "with num_graphs": Saying(num_graphs=6, shape=(24, 3)),
    "with a shape": Saying(shape=(6, 2)),
}


@pytest.mark.parametrize("batch", [pytest.param(batch, id=name) for name, batch in (PARTS | SAMPLES | OBJECTS).items()])
def test_the_samples_of_a_batch_are_counted(batch):
    assert read_size(batch) == (6, None)
    assert count_samples(batch) == 6


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (PACKED, 2),
        ((PACKED, torch.zeros(2)), 2),
        (3, 1),
        (None, 1),
        ("text", 1),
        (torch.tensor(1.0), 1),
        ((0.5, 1.0), 1),
        ({}, 1),
        (torch.zeros(0, 3), 0),
        ((torch.zeros(0, 3), torch.zeros(0)), 0),
        (np.zeros((0, 3)), 0),
    ],
)
def test_sequences_numbers_and_batches_without_rows_have_the_size_that_they_have(batch, samples):
    assert read_size(batch) == (samples, None)
    assert count_samples(batch) == samples


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_has_as_many_samples_as_tensors(layout):
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=layout)
    assert read_size(nested) == read_size((nested, torch.zeros(2))) == (2, None)
    assert count_samples(nested) == count_samples((nested, torch.zeros(2))) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_batches_of_graphs_are_counted_in_graphs():
    data = pytest.importorskip("torch_geometric.data")
    graphs = [data.Data(x=torch.zeros(nodes, 4), y=torch.zeros(1)) for nodes in (3, 5, 2)]
    batch = data.Batch.from_data_list(graphs)
    for kind in (batch, (batch, torch.zeros(3)), (batch, batch), graphs):
        assert read_size(kind) == (3, None)
    assert read_size(graphs[0]) == (1, None)


def test_encodings_of_texts_are_counted_in_texts():
    transformers = pytest.importorskip("transformers")
    assert read_size(transformers.BatchEncoding({"input_ids": X, "labels": Y})) == (6, None)
    assert read_size(transformers.BatchEncoding({"input_ids": [[1, 2], [3]], "mask": [[1, 1], [1]]})) == (2, None)


class ShapeMethod:
    def shape(self):
        return (3, 4)


@pytest.mark.parametrize(
    ("batch", "samples", "doubt"),
    [
        ((torch.zeros(2, 7), X), 2, r"first dimensions differ, 2 at \[0\], 6 at \[1\]"),
        ({"edges": torch.zeros(2, 7), "x": X}, 2, r"first dimensions differ, 2 at \['edges'\], 6 at \['x'\]"),
        ([torch.zeros(5), torch.zeros(7)], 5, r"first dimensions differ, 5 at \[0\], 7 at \[1\]"),
        (Plain(), 1, "nothing in it has a first dimension or a length, it is a Plain"),
        (ShapeMethod(), 1, "nothing in it has a first dimension or a length, it is a ShapeMethod"),
    ],
)
def test_a_size_that_is_uncertain_is_warned_of_once_unless_the_step_says_it(batch, samples, doubt):
    def train(**returned):
        run, seen = Run(random_seed=0, command_line=[]), []

        @run.train_step
        @run.validate_step
        def step(model):
            return {"loss": model.weight.square().sum(), **returned}

        run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
        run.on("run_end")(lambda state: seen.append(state.samples))
        run(nn.Linear(1, 1), [batch] * 3, [batch], max_epochs=2, **QUIET)
        return seen

    message = f"step: how many samples a batch has is uncertain, since {doubt}; {samples} is taken. Return 'batch_size'"
    with pytest.warns(BlowtorchWarning, match=message) as caught:
        assert train() == [samples * 6]
    assert len(caught) == 1
    assert train(batch_size=6) == [36]


def test_means_of_a_validation_weigh_lists_of_samples_by_their_number():
    run = Run(random_seed=0, command_line=[])
    run.validate_step(lambda batch: {"mean": sum(x for x, _ in batch) / len(batch)})
    batches = [[(torch.tensor(1.0), 0)] * 3, [(torch.tensor(5.0), 0)]]
    assert run.evaluate(nn.Linear(1, 1), batches) == {"val/mean": 2.0}
