"""Which GPU a process takes."""

import pytest
import torch

from blowtorch.parallel.world import take_device


@pytest.mark.parametrize(("local_rank", "num_seen", "taken"), [(1, 4, 1), (1, 1, 0), (3, 2, 1)])
def test_a_process_that_sees_fewer_gpus_than_there_are_processes_takes_one_of_those(
    monkeypatch, local_rank, num_seen, taken
):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_seen)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    take_device(local_rank)
    assert chosen == [taken]
