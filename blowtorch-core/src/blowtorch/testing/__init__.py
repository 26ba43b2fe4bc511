"""Contract suites for authors of extensions: subclass one, say how yours is made, and pytest does the rest.

    from blowtorch.testing import LoggerContract

    class TestAcmeLogger(LoggerContract):
        def make_logger(self, tmp_path):
            return AcmeLogger(folder=tmp_path)

The suites need pytest, on which blowtorch itself does not depend.
"""

try:
    import pytest  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("blowtorch.testing needs pytest, which is not installed: pip install pytest") from error

from blowtorch.testing.callbacks import CallbackContract
from blowtorch.testing.checkpoint_backends import CheckpointBackendContract
from blowtorch.testing.config_sources import ConfigSourceContract
from blowtorch.testing.loggers import LoggerContract
from blowtorch.testing.schedulers import SchedulerContract

__all__ = [
    "CallbackContract",
    "CheckpointBackendContract",
    "ConfigSourceContract",
    "LoggerContract",
    "SchedulerContract",
]
