import pytest
import torch

from tests.core.schedule.torch_by_hand import PER_EPOCH


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(8, 4, generator=generator) for _ in range(PER_EPOCH)]
    return [(x, x.sum(dim=1, keepdim=True)) for x in inputs]


@pytest.fixture
def rates(events):
    """The recorded rates of a run by step; of one optimizer, or of the one named."""

    def read(result, name="lr"):
        recorded = [(event["step"], event["metrics"]) for event in events(result, "metrics")]
        return {step: metrics[name] for step, metrics in recorded if name in metrics}

    return read
