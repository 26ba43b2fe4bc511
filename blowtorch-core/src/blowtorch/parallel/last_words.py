"""The error that ends a process: where several end with the same one, the first process alone shows it."""

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from torch.distributed.distributed_c10d import Store

from blowtorch.errors import ProcessError, describe

_TOLD, _HEARD = "told", "heard"
_LISTENING_S = 2.0  # for which a process waits for the first one to show an error
_STAYING_S = 1.0  # for which the first one waits for the others to hear of that, since it may keep the store


class LastWords:
    """Shows the error that ends this process, in the place of `sys.excepthook`, unless the first process does.

    Args:
        store: that all processes reach.
        rank: of this process.
        size: how many there are.
        part: lets the others know of an error, and parts with them.
    """

    def __init__(self, store: Store, rank: int, size: int, part: Callable[[BaseException], None]) -> None:
        self._store = store
        self._rank = rank
        self._size = size
        self._part = part
        self._show = sys.excepthook
        sys.excepthook = self.tell

    def tell(self, kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
        """Do what `sys.excepthook` does."""
        self._part(error)
        _note_for_torchrun(error)
        if self._rank == 0:
            self._show(kind, error, frames)
            self._let_others_hear(describe(error))
        elif not self._is_shown_by_first(error):
            self._show(kind, error, frames)

    def _let_others_hear(self, text: str) -> None:
        with contextlib.suppress(RuntimeError):  # whoever keeps the store may be gone
            self._store.set(_TOLD, text)
            keys = [f"{_HEARD}/{rank}" for rank in range(1, self._size)]
            self._wait_for(keys, _STAYING_S)

    def _is_shown_by_first(self, error: BaseException) -> bool:
        """Return whether the first process shows the same error, or the one that this follows from."""
        try:
            if not self._wait_for([_TOLD], _LISTENING_S):
                return False
            text = self._store.get(_TOLD).decode()
            self._store.set(f"{_HEARD}/{self._rank}", "")
        except RuntimeError:
            return False
        return isinstance(error, ProcessError) or text == describe(error)

    def _wait_for(self, keys: list[str], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not (is_there := self._store.check(keys)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return is_there


def _note_for_torchrun(error: BaseException) -> None:
    """Write the error where torchrun looks for the reasons that it tells, unless it stands there."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file or Path(file).exists():
        return
    extra = {"py_callstack": "".join(traceback.format_exception(error)), "timestamp": str(int(time.time()))}
    with contextlib.suppress(OSError):
        Path(file).write_text(
            json.dumps({"message": {"message": describe(error), "extraInfo": extra}}), encoding="utf-8"
        )
