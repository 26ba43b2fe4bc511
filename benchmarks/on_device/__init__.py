"""The parts of `benchmarks/gpu.py`: each yields rows, one for each thing that it has checked or measured."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One thing that was checked or measured.

    Attributes:
        what: in words.
        value: what was found.
        wanted: what it has to be, in words; nothing for a figure.
        is_right: whether it is that; None for a figure, and for what this machine cannot show.
    """

    what: str
    value: str
    wanted: str = ""
    is_right: bool | None = None


@dataclass(frozen=True)
class Setting:
    """Where and how thoroughly.

    Attributes:
        device: what is checked.
        is_short: whether to do as little as shows that everything works; for a CPU, and for the tests.
    """

    device: torch.device
    is_short: bool

    @property
    def is_cuda(self) -> bool:
        """Whether this is a device of CUDA's, on which the host need not wait."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait until the device has done all that it was asked for."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
        elif self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()


Part = Callable[[Setting], Iterator[Row]]


def attempt(what: str, wanted: str, look: Callable[..., Row], *arguments: Any) -> Row:
    """Return the row of one look; where it fails, one that says how, so that the next ones are looked at too."""
    try:
        return look(*arguments)
    except Exception as error:
        return Row(what, f"{type(error).__name__}: {str(error)[:600]}", wanted, False)


@contextlib.contextmanager
def aside() -> Iterator[str]:
    """Give a folder for runs that is deleted in the end, and keep the console quiet."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.redirect_stdout(io.StringIO()):
        yield folder
