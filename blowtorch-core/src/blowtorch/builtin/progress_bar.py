"""A bar that shows how far an epoch is."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from blowtorch import OptionError, RunState, hookimpl

if TYPE_CHECKING:
    from tqdm import tqdm

_PAUSE = 0.2  # seconds from one drawing to the next
_TAKEN = 62  # columns for all but the metrics: a small bar, counts, times and rate


class ProgressBar:
    """A progress bar with rate, time left and current metrics, in a terminal or a notebook.

    A run has one without naming it, unless the option `progress` is off or standard error is neither.

    Args:
        num_metrics: how many metrics stand behind the bar at most, those of training first; fewer where the terminal
            is narrow.

    Raises:
        OptionError: `num_metrics` is negative.
    """

    def __init__(self, num_metrics: int = 3) -> None:
        if not isinstance(num_metrics, int) or num_metrics < 0:
            raise OptionError(f"progress_bar, option num_metrics: expected a number from 0, got {num_metrics!r}")
        self.num_metrics = num_metrics
        self._bar: tqdm[Any] | None = None
        self._drawn_step = 0
        self._last_step: int | None = None
        self._next_time = 0.0

    @hookimpl
    def epoch_start(self, state: RunState) -> None:
        """Begin the bar of an epoch, which may end early because the run does."""
        from tqdm.auto import tqdm

        ends = [] if state.steps_per_epoch is None else [state.step - state.batch + state.steps_per_epoch]
        ends += [] if state.total_steps is None else [state.total_steps]
        self._last_step = min(ends, default=None)
        self._drawn_step = state.step
        self._bar = tqdm(
            desc=f"epoch {state.epoch}" + ("" if state.max_epochs is None else f"/{state.max_epochs}"),
            total=None if self._last_step is None else state.batch + self._last_step - state.step,
            initial=state.batch,
            unit=" steps",
            leave=False,
            dynamic_ncols=True,
            miniters=1,  # when to draw is decided here
            mininterval=0,
        )

    @hookimpl
    def train_step_end(self, state: RunState) -> None:
        """Move the bar, now and then: this is called on every step."""
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

    def _draw(self, state: RunState) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(self._choose(state.metrics, (self._bar.ncols or 80) - _TAKEN), refresh=False)
            self._bar.update(state.step - self._drawn_step)
        self._drawn_step = state.step
        self._next_time = time.monotonic() + _PAUSE

    def _choose(self, metrics: Mapping[str, float], room: int) -> str:
        """As many metrics as there is room for: those of training first, then those of validations."""
        ranked = sorted(metrics, key=lambda name: not name.startswith("train/"))
        shown = [f"{name} {metrics[name]:.4g}" for name in ranked if not name.startswith(("train_epoch/", "lr"))]
        chosen = shown[: self.num_metrics]
        while len(", ".join(chosen)) > max(0, room):
            chosen.pop()
        return ", ".join(chosen)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
