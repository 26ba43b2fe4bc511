"""A bar that shows how far an epoch is."""

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO, cast

from blowtorch import OptionError, RunState, hookimpl

if TYPE_CHECKING:
    from tqdm import tqdm

_PAUSE = 0.2  # seconds from one drawing to the next
_KNOWN_END = "{l_bar}{bar}{r_bar}"
_UNKNOWN_END = "{desc}: {n_fmt}{unit} [{elapsed}, {rate_fmt}{postfix}]"
_MARGIN = "    \x1b[3D"  # a terminal writes its ^C into these columns, so that it goes when the bar does
_TAKEN = 62  # columns for all but the metrics: a short bar, counts, times and rate


class ProgressBar:
    """A progress bar with rate, time left and current metrics, in a terminal or a notebook.

    A run has one without naming it, unless the option `progress` is off or standard error is neither. In a terminal,
    what the script prints while there is a bar takes the bar's place, and the bar comes back below. Where it can no
    longer be drawn, as in a terminal that is closed, it is given up, and the run goes on.

    Args:
        num_metrics: how many metrics stand behind the bar at most, those of training first; fewer where the terminal
            is narrow.

    Raises:
        OptionError: `num_metrics` is negative.
    """

    ranks = "first"

    def __init__(self, num_metrics: int = 3) -> None:
        if not isinstance(num_metrics, int) or num_metrics < 0:
            raise OptionError(f"progress_bar, option num_metrics: expected a number from 0, got {num_metrics!r}")
        self.num_metrics = num_metrics
        self._bar: tqdm[Any] | None = None
        self._drawn_step = 0
        self._last_step: int | None = None
        self._next_time = 0.0
        self._is_drawn = False
        self._is_amid_line = False
        self._streams: dict[str, tuple[TextIO, TextIO]] = {}  # name in sys → (what was there, what is there now)

    @hookimpl
    def epoch_resume(self, state: RunState) -> None:
        """Go on with the bar of an epoch after a restart."""
        self.epoch_start(state)

    @hookimpl
    def epoch_start(self, state: RunState) -> None:
        """Begin the bar of an epoch."""
        self._drawn_step, self._last_step = state.step, _last_step(state)
        self._is_drawn, self._is_amid_line = True, False
        if sys.stderr is not None:
            with self._giving_up():
                sys.stderr.write("")  # else a bar would be made, and fail once more when it goes
                self._bar = self._begin(state)
            self._watch_streams()

    @hookimpl
    def train_step_end(self, state: RunState) -> None:
        """Move the bar now and then; on every other step this does no more than look at the time."""
        if time.monotonic() >= self._next_time or state.step == self._last_step:
            self._draw(state)

    @hookimpl
    def epoch_end(self) -> None:
        """End the bar."""
        self._close()

    @hookimpl
    def run_end(self) -> None:
        """End the bar of an epoch that was cut short."""
        self._close()

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Give the bar up if it cannot be drawn; whatever that raises is no reason for a run to fail."""
        try:
            yield
        except Exception:
            if self._bar is not None:
                self._bar.disable = True  # or it would try again when it is closed, and when it goes
                self._bar = None

    def _begin(self, state: RunState) -> "tqdm[Any]":
        from tqdm.auto import tqdm

        line = _UNKNOWN_END if self._last_step is None else _KNOWN_END
        return tqdm(
            desc=f"epoch {state.epoch}" + ("" if state.max_epochs is None else f"/{state.max_epochs}"),
            total=None if self._last_step is None else state.batch + self._last_step - state.step,
            initial=state.batch,
            unit=" steps",
            leave=False,
            dynamic_ncols=True,
            bar_format=line + (_MARGIN if _is_terminal(sys.stderr) else ""),
            miniters=1,  # when to draw is decided here
            mininterval=0,
        )

    def _draw(self, state: RunState) -> None:
        self._next_time = time.monotonic() + _PAUSE
        if self._bar is None or self._is_amid_line:
            return
        with self._giving_up():
            columns = self._bar.ncols if isinstance(self._bar.ncols, int) else 120  # a notebook's bar has none
            self._bar.set_postfix_str(self._choose(state.metrics, max(0, columns - _TAKEN)), refresh=False)
            self._bar.update(state.step - self._drawn_step)
            self._drawn_step = state.step
            self._is_drawn = True

    def _choose(self, metrics: Mapping[str, float], room: int) -> str:
        """As many metrics as have room: those of training first, then those of validations."""
        ranked = sorted(metrics, key=lambda name: not name.startswith("train/"))
        shown = [f"{name} {metrics[name]:.4g}" for name in ranked if not name.startswith(("train_epoch/", "lr"))]
        chosen = shown[: self.num_metrics]
        while len(", ".join(chosen)) > room:
            chosen.pop()
        return ", ".join(chosen)

    def _close(self) -> None:
        with self._giving_up():
            if self._bar is not None:
                self._bar.close()
        self._bar = None
        for name, (before, watched) in self._streams.items():
            if getattr(sys, name) is watched:
                setattr(sys, name, before)
        self._streams.clear()

    def _watch_streams(self) -> None:
        """Have the bar leave the terminal whenever something else is written to it."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if _is_terminal(stream):
                watched = cast(TextIO, _WatchedStream(stream, self._make_room))
                self._streams[name] = (stream, watched)
                setattr(sys, name, watched)

    def _make_room(self, text: str) -> None:
        if self._bar is not None and self._is_drawn:
            with self._giving_up():
                self._bar.clear(nolock=True)  # a forked worker that prints, and is killed, must not keep the lock
            self._is_drawn = False
        self._is_amid_line = not text.endswith("\n")


class _WatchedStream(io.TextIOBase):
    """Stands for a stream of text and tells of every text before it is written; all else the stream does itself.

    What `io.TextIOBase` has is passed on by name, since `__getattr__` is asked only for what is missing. `close` is
    not passed on: Python calls it when this object goes, and the stream stays.
    """

    def __init__(self, stream: TextIO, before_write: Callable[[str], None]) -> None:
        self._stream = stream
        self._before_write = before_write

    def write(self, text: str) -> int:  # `writelines` calls it too
        if text:
            self._before_write(text)
        return self._stream.write(text)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    @property
    def newlines(self) -> Any:  # type: ignore[override]
        return self._stream.newlines

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def readable(self) -> bool:
        return self._stream.readable()

    def writable(self) -> bool:
        return self._stream.writable()

    def seekable(self) -> bool:
        return self._stream.seekable()

    def read(self, size: int | None = -1) -> str:
        return self._stream.read(-1 if size is None else size)

    def readline(self, size: int = -1) -> str:  # type: ignore[override]  # iteration and `readlines` call it too
        return self._stream.readline(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def truncate(self, size: int | None = None) -> int:
        return self._stream.truncate(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_terminal(stream: Any) -> bool:
    """Return whether a stream is a terminal; one that cannot tell, being None, closed or the user's own, is none."""
    try:
        return bool(stream.isatty())
    except Exception:
        return False


def _last_step(state: RunState) -> int | None:
    """Return the step at which the epoch under way ends, which may be because the run does; None when unknown."""
    ends = [] if state.total_steps is None else [state.total_steps]
    if state.steps_per_epoch is not None:
        ends.append(state.step - state.batch + state.steps_per_epoch)
    return min(ends, default=None)
