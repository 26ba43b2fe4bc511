import pytest

from blowtorch.folder.folder import RunFolder


@pytest.fixture
def folder():
    return RunFolder.create("train_logs", "test")
