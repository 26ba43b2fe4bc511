"""Loaders and samplers that keep a state of their own."""

import pytest
from torch.utils.data import (
    DataLoader,
)

from blowtorch.data.batches import Batches
from blowtorch.errors import BlowtorchWarning
from tests.core.data.loaders import CPU, Counted, CountedStream, Plain


@pytest.mark.parametrize("make", [Counted, lambda: DataLoader(CountedStream(), batch_size=2)])
def test_what_has_a_state_goes_on_from_it_without_drawing_again(make):
    batches = Batches(make(), 3, CPU)
    epoch = batches.iterate(1)
    before = [next(epoch), next(epoch)]
    state = batches.state_dict()
    expected = [batch.tolist() for batch in epoch]
    assert batches.state_dict() == {}  # at the end of an epoch it begins like new
    loader = make()
    again = Batches(loader, 3, CPU)
    again.load_state_dict(state)
    assert [batch.tolist() for batch in again.iterate(1, 2)] == expected
    source = loader if isinstance(loader, Counted) else loader.dataset.source
    assert source.given[0] == 1 + sum(len(batch) for batch in before)
    assert len(list(again.iterate(2))) == 2 + len(expected)


def test_a_state_of_workers_is_out_of_reach_and_they_are_drawn_forward():
    batches = Batches(DataLoader(CountedStream(), batch_size=2, num_workers=1), 3, CPU)
    with pytest.warns(BlowtorchWarning, match="2 batches are drawn again"):
        assert [batch.tolist() for batch in batches.iterate(1, 2)] == [[[5], [6]]]
    batches.close()


def test_the_indices_of_a_batch_are_kept_if_somebody_asks():
    batches = Batches(DataLoader(Plain(), batch_size=8, shuffle=True, num_workers=2), 3, CPU)
    batches.note_indices()
    for position, batch in enumerate(batches.iterate(1, 1), 1):
        indices = batches.indices_at(position)
        assert len(indices) == len(batch[0] if isinstance(batch, list) else batch)
        assert batches.indices_at(position) is None  # they are not kept any longer
    batches.close()
