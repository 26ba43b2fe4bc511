"""A blowtorch logger that appends metrics to a SQLite database."""

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from blowtorch import RunInfo, hookimpl

__all__ = ["SqliteLogger"]

_TABLES = """
create table if not exists runs (id text primary key, name text, status text);
create table if not exists metrics (
    run text, name text, step integer, epoch integer, time real, value real, primary key (run, name, step)
);
"""


class SqliteLogger:
    """One row for each value of a metric, in the table `metrics`; one for each run, in the table `runs`.

    Args:
        path: the database, shared by all runs that name it; `metrics.db` in the run's own folder unless given.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._database: sqlite3.Connection | None = None
        self._run = ""

    @hookimpl
    def log_start(self, run: RunInfo) -> None:
        """Open the database; a run that continues keeps its rows."""
        assert run.own_folder is not None
        self._close()
        self._database = sqlite3.connect(Path(self.path or run.own_folder / "metrics.db"), check_same_thread=False)
        self._database.executescript(_TABLES)
        self._run = run.id
        self._database.execute("insert or replace into runs values (?, ?, 'running')", (run.id, run.name))
        self._database.commit()

    @hookimpl
    def log_rewind(self, step: int) -> None:
        """Drop the rows of steps that the run does again."""
        self._open().execute("delete from metrics where run = ? and step > ?", (self._run, step))

    @hookimpl
    def log_metrics(self, metrics: Mapping[str, float], step: int, epoch: int, time: float) -> None:
        """One row each; one that comes a second time takes the place of the first."""
        rows = [(self._run, name, step, epoch, time, value) for name, value in metrics.items()]
        self._open().executemany("insert or replace into metrics values (?, ?, ?, ?, ?, ?)", rows)

    @hookimpl
    def log_flush(self) -> None:
        """Make what came so far visible to others."""
        if self._database is not None:
            self._database.commit()

    @hookimpl
    def log_finish(self, status: str) -> None:
        """Note how the run ended."""
        if self._database is not None:
            self._database.execute("update runs set status = ? where id = ?", (status, self._run))
            self._close()

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            raise RuntimeError("the SQLite logger was given an event before log_start")
        return self._database

    def _close(self) -> None:
        if self._database is not None:
            self._database.commit()
            self._database.close()
            self._database = None
