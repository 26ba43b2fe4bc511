"""Finds out which process keeps the others waiting, and where in its code it is."""

import contextlib
import os
import sys
import threading
import time
import traceback
from pathlib import Path

import torch
from torch.distributed.distributed_c10d import Store

import blowtorch

_SECONDS = 2.0  # how often a process looks whether others miss it
_PATIENCE = 3 * _SECONDS  # for an answer
_RAISED, _WAITING, _STACK = "alarm/raised", "alarm/waiting", "alarm/stack"


class Alarm:
    """Lets processes that have waited in vain ask the others what they are doing.

    A thread of each process looks now and then whether anybody has asked, and then tells where the main thread is.

    Args:
        store: that all of them reach.
        rank: of this process.
        size: how many there are.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store = store
        self._rank = rank
        self._size = size
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="blowtorch alarm", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more. A thread that Python ends amid a call of the store would abort the process."""
        self._is_over.set()
        self._thread.join()

    def is_raised(self) -> bool:
        """Tell whether one of the processes has waited in vain."""
        return bool(self._store.check([_RAISED]))

    def find_missing(self) -> str | None:
        """Return which processes have not come, and where each is, in a sentence; None where that cannot be told.

        Where all have come, they wait for one another in different places.
        """
        try:
            self._store.set(f"{_WAITING}/{self._rank}", _describe_place(_own_frames(traceback.extract_stack())))
            self._store.set(_RAISED, "")
            time.sleep(_PATIENCE)
            missing = [rank for rank in range(self._size) if not self._store.check([f"{_WAITING}/{rank}"])]
            return "; ".join(map(self._describe, missing)) or self._describe_waiting()
        except RuntimeError:  # the process that keeps the store is gone
            return None

    def _describe_waiting(self) -> str | None:
        places = [self._store.get(f"{_WAITING}/{rank}").decode() for rank in range(self._size)]
        if len(set(places)) == 1:
            return None
        told = "; ".join(f"process {rank} {place}" for rank, place in enumerate(places))
        return (
            f"the processes wait for one another in different places: {told}; each has to step its optimizers, log and "
            f"validate as often as the others"
        )

    def _describe(self, rank: int) -> str:
        key = f"{_STACK}/{rank}"
        place = self._store.get(key).decode() if self._store.check([key]) else "where, it does not say"
        return f"process {rank} of {self._size} did not come: it is {place}"

    def _watch(self) -> None:
        main = threading.main_thread().ident
        while not self._is_over.wait(_SECONDS):
            try:
                if not self._store.check([_RAISED]):
                    continue
                frame = sys._current_frames().get(main or 0)
                if frame is not None and not self._store.check([f"{_WAITING}/{self._rank}"]):
                    self._store.set(f"{_STACK}/{self._rank}", _describe_place(traceback.extract_stack(frame)))
            except RuntimeError:
                pass
            return


def _own_frames(stack: traceback.StackSummary) -> traceback.StackSummary:
    """Return the frames of a stack that are neither of torch nor of blowtorch, nor of what these call."""
    folders = [str(Path(module.__file__ or "").parent) + os.sep for module in (torch, blowtorch)]
    others = (*folders, contextlib.__file__)
    return traceback.StackSummary.from_list([frame for frame in stack if not frame.filename.startswith(others)])


def _describe_place(stack: traceback.StackSummary) -> str:
    """Return where the innermost frames of a stack are."""
    frames = [f"{frame.name} ({frame.filename}, line {frame.lineno})" for frame in reversed(stack[-2:])]
    return "in " + ", called by ".join(frames)
