"""The lock of a run folder: who trains the run, and whether that process still lives."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where the age of the lock decides
    fcntl = None  # type: ignore[assignment]
_DEAD_SECONDS = 300  # a lock that nobody touched for so long is dead, where nothing better is known


def is_owned(path: Path) -> bool:
    """Whether a living process trains the run in a folder; to look takes no right to write there."""
    lock = path / "owner.lock"
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not try_lock(descriptor, lock, is_shared=True)
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


def try_lock(descriptor: int, path: Path, is_shared: bool = False) -> bool:
    """Lock without waiting; where there are no locks, an owner that lately touched the file counts as living.

    Those who only look share the lock, so that none of them takes another for the owner.
    """
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
        else:
            return True
    return not read_owner(path) or time.time() - path.stat().st_mtime > _DEAD_SECONDS


def read_owner(path: Path) -> dict[str, Any]:
    """Return what the owner has written into its lock; empty where nothing can be read."""
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}
