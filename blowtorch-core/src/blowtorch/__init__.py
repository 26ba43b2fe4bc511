"""blowtorch: a small PyTorch training loop whose every other part is a package.

The public names are imported on first use, so that `import blowtorch` costs nothing and imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blowtorch.clock import Interval
    from blowtorch.config.config import Config
    from blowtorch.config.yaml12 import parse_yaml
    from blowtorch.errors import (
        BlowtorchError,
        BlowtorchWarning,
        CheckpointError,
        ConfigError,
        ExtensionError,
        MissingKeyError,
        NotFiniteError,
        OptionError,
        ProcessError,
        RunFolderError,
        ScriptError,
    )
    from blowtorch.hookspecs import Schedule, hookimpl
    from blowtorch.options import RunOptions
    from blowtorch.progress import Checkpoint
    from blowtorch.run import Run, RunResult
    from blowtorch.runs.view import RunView, Series, find_runs, open_run
    from blowtorch.state import RunInfo, RunState

__version__ = "0.1.0"

_HOMES = {
    "BlowtorchError": "errors",
    "BlowtorchWarning": "errors",
    "Checkpoint": "progress",
    "CheckpointError": "errors",
    "Config": "config.config",
    "ConfigError": "errors",
    "ExtensionError": "errors",
    "Interval": "clock",
    "MissingKeyError": "errors",
    "NotFiniteError": "errors",
    "OptionError": "errors",
    "ProcessError": "errors",
    "Run": "run",
    "RunFolderError": "errors",
    "RunInfo": "state",
    "RunOptions": "options",
    "RunResult": "run",
    "RunState": "state",
    "RunView": "runs.view",
    "Schedule": "hookspecs",
    "ScriptError": "errors",
    "Series": "runs.view",
    "find_runs": "runs.view",
    "hookimpl": "hookspecs",
    "open_run": "runs.view",
    "parse_yaml": "config.yaml12",
}

__all__ = [
    "BlowtorchError",
    "BlowtorchWarning",
    "Checkpoint",
    "CheckpointError",
    "Config",
    "ConfigError",
    "ExtensionError",
    "Interval",
    "MissingKeyError",
    "NotFiniteError",
    "OptionError",
    "ProcessError",
    "Run",
    "RunFolderError",
    "RunInfo",
    "RunOptions",
    "RunResult",
    "RunState",
    "RunView",
    "Schedule",
    "ScriptError",
    "Series",
    "find_runs",
    "hookimpl",
    "open_run",
    "parse_yaml",
]

if not TYPE_CHECKING:  # a visible __getattr__ would make type checkers accept misspelt names

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'blowtorch' has no attribute {name!r}")
        value = getattr(import_module(f"blowtorch.{_HOMES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted(__all__)
