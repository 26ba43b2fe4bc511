"""The lock of a run folder: who trains the run, and whether that process still lives."""

import contextlib
import functools
import json
import os
import socket
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blowtorch.clock import now
from blowtorch.errors import RunFolderError

try:
    import fcntl
except ImportError:  # Windows, where filelock locks; elsewhere it would cost every step of a run, see decision 15
    fcntl = None  # type: ignore[assignment]

_FILE_NAME = "owner.lock"
_DEAD_SECONDS = 300  # a lock that nobody touched for so long is dead, where nothing better is known
_BEAT_SECONDS = 30  # how often an owner touches its lock
_ATTEMPTS = 5  # somebody may just be looking whether the folder is owned
_GLANCE_SECONDS = 0.02  # longer than anybody needs to look


class OwnerLock:
    """The lock of one run folder, as the process that trains the run takes it.

    It ends with the process, however that ends. The file names the owner, and its age tells of a living one where the
    file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / _FILE_NAME
        self._descriptor: int | None = None
        self._touched_at = 0.0

    def acquire(self) -> None:
        """Take the lock, unless it is taken by this very object.

        Raises:
            RunFolderError: a living process holds it, or it cannot be written.
        """
        if self._descriptor is not None:
            return
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunFolderError(
                f"the run cannot be trained here, since its lock cannot be written: {error}"
            ) from error
        try:
            self._wait_for(descriptor)
            os.truncate(descriptor, 0)
            owner = {"host": socket.gethostname(), "process": os.getpid(), "since": now()}
            os.write(descriptor, json.dumps(owner).encode())
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _held.add(self)
        _free_children()

    def beat(self) -> None:
        """Show that the owner lives, at most now and then."""
        if self._descriptor is not None and time.monotonic() - self._touched_at > _BEAT_SECONDS:
            self._touched_at = time.monotonic()
            with contextlib.suppress(OSError):  # a sign of life must not end a training
                os.utime(self._descriptor)

    def release(self) -> None:
        """Give the lock back, even if a program that this process started has not let go of it yet."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.truncate(self._descriptor, 0)
            with contextlib.suppress(OSError):
                _unlock(self._descriptor)
            self.forget()

    def forget(self) -> None:
        """Close the lock in this process; another one that shares it keeps it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _wait_for(self, descriptor: int) -> None:
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_GLANCE_SECONDS)
            if _try_lock(descriptor, self._path):
                return
        owner = _read_owner(self._path)
        raise RunFolderError(
            f"{self._folder} is being trained by process {owner.get('process', '?')} on host "
            f"{owner.get('host', '?')} since {owner.get('since', '?')}; stop that process first"
        )


# What is registered for forks is never forgotten; so there is one entry for all locks, which knows those that live.
_held: "weakref.WeakSet[OwnerLock]" = weakref.WeakSet()


@functools.cache
def _free_children() -> None:
    """Let forked children forget all locks, which a loader's worker would keep when its parent is killed."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_all)


def _forget_all() -> None:
    for lock in _held:
        lock.forget()


def is_owned(folder: Path) -> bool:
    """Whether a living process trains the run in a folder; to look takes no right to write there."""
    path = folder / _FILE_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor, path, is_shared=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked_directory(path: Path) -> Iterator[None]:
    """Let one process after the other in, where the file system can; nothing is left behind."""
    if fcntl is None:  # Windows cannot even open a directory
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, path: Path, is_shared: bool = False) -> bool:
    """Lock without waiting; where there are no locks, an owner that lately touched the file counts as living.

    Those who only look share the lock, so that none of them takes another for the owner.
    """
    try:
        return _lock(descriptor, is_shared)
    except OSError:
        return not _read_owner(path) or time.time() - path.stat().st_mtime > _DEAD_SECONDS


def _lock(descriptor: int, is_shared: bool) -> bool:
    """Lock a file unless somebody else has; where the system cannot do that, an `OSError` is raised."""
    if fcntl is None:
        from filelock import lock_descriptor

        return lock_descriptor(descriptor, blocking=False)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    if fcntl is None:
        from filelock import unlock_descriptor

        unlock_descriptor(descriptor)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _read_owner(path: Path) -> dict[str, Any]:
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}
