"""What blowtorch raises and how it warns.

Every error says what was expected, what came, and what to do; for a name, the nearest valid one.
"""

import contextlib
import difflib
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import pluggy

# A neighbour such as blowtorch_acme is not meant; by way of the libraries, parts of blowtorch call one another.
_INSIDE = (
    f"{Path(__file__).parent}{os.sep}",
    f"{Path(pluggy.__file__).parent}{os.sep}",
    contextlib.__file__,
)


class BlowtorchError(Exception):
    """The root of every error that blowtorch itself raises."""


class ConfigError(BlowtorchError):
    """A configuration file, override or key that cannot be used."""


class MissingKeyError(ConfigError, KeyError):
    """A configuration key that no source had."""

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return Exception.__str__(self)


class OptionError(BlowtorchError):
    """A run option that is unknown or has a value that cannot be used."""


class ScriptError(BlowtorchError):
    """The training script uses blowtorch in a way that cannot work."""


class ExtensionError(BlowtorchError):
    """An extension that is missing, broken, or raised."""


class CheckpointError(BlowtorchError):
    """A checkpoint that cannot be written, read or trusted."""


class NotFiniteError(BlowtorchError):
    """The loss or the model is NaN or infinite, and the option `on_nan` says to stop."""


class RunFolderError(BlowtorchError):
    """A run folder that cannot be made, opened or continued."""


class ProcessError(BlowtorchError):
    """One of several processes that train together has failed, or can no longer be reached."""


class BlowtorchWarning(UserWarning):
    """Something that a user should know and that does not stop the run."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a sentence with the valid name closest to `name`, beginning with a space; an empty text if none is close.

    >>> nearest("max_epoch", ["max_epochs", "max_steps"])
    " Did you mean 'max_epochs'?"
    >>> nearest("colour", ["max_epochs"])
    ''
    """
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def describe(error: BaseException) -> str:
    """Return the type of an exception, and its text where it has one.

    >>> describe(ValueError("no url"))
    'ValueError: no url'
    """
    try:
        text = str(error)
    except Exception:  # a text that cannot be made must not hide the error
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def warn(message: str) -> None:
    """Warn with a `BlowtorchWarning` that points at the nearest line outside blowtorch.

    A filter may turn it into an error; a stream that does not take it is none.
    """
    frame, stacklevel = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, stacklevel = frame.f_back, stacklevel + 1
    try:
        warnings.warn(message, BlowtorchWarning, stacklevel=stacklevel)
    except BlowtorchWarning:
        raise
    except Exception:  # standard error is closed, or the user's own; to warn is no reason for a run to fail
        pass
