import pytest

from blowtorch.folder.folder import RunFolder


@pytest.fixture
def folder():
    """The folder of a run that nobody trains."""
    made = RunFolder.create("train_logs", "test")
    made.lock.release()
    return made
