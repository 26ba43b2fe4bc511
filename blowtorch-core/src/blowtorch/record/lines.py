"""What a run says: lines for the console, which `console.log` keeps, and warnings, which the record keeps too."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blowtorch.errors import warn
from blowtorch.folder.secrets import mask_text


class Lines:
    """The lines that a run says; where they repeat a command, a configuration or an error, secrets are masked.

    Args:
        path: of `console.log`; None outside of a run.
        record_warning: puts a warning into the record, where there is one.
    """

    def __init__(self, path: Path | None = None, record_warning: Callable[[str], Any] = lambda text: None) -> None:
        self._path = path
        self._record_warning = record_warning
        self._show: Callable[[str], Any] | None = None
        self._is_showing = False
        self._topics: set[str] = set()

    def show_by(self, show: Callable[[str], Any]) -> None:
        """Have every line shown from now on."""
        self._show = show

    def say(self, text: str) -> None:
        """Put a line on the console and into `console.log`."""
        text = mask_text(text)
        self._keep(text)
        if self._show is None or self._is_showing:  # what is said while a line is shown is kept alone
            return
        self._is_showing = True
        try:
            self._show(text)
        finally:
            self._is_showing = False

    def warn(self, text: str) -> None:
        """Warn the user; the warning is kept in the record and in `console.log` too."""
        self._record_warning(mask_text(text))
        self.warn_unrecorded(text)

    def warn_unrecorded(self, text: str) -> None:
        """Warn after `finish`, which is the last event of a process."""
        masked = mask_text(text)
        self._keep(f"warning: {masked}")
        warn(masked)

    def say_once(self, topic: str, text: str) -> None:
        """Say a line, unless something was said of its topic before."""
        if topic not in self._topics:
            self._topics.add(topic)
            self.say(text)

    def warn_once(self, topic: str, text: str) -> None:
        """Warn, unless something was said of the topic before."""
        if topic not in self._topics:
            self._topics.add(topic)
            self.warn(text)

    def warn_new(self, text: str) -> None:
        """Warn, unless the very same was said before."""
        self.warn_once(text, text)

    def _keep(self, text: str) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        except OSError:  # a full disk is the record's to report
            pass
