"""A bar that shows how far an epoch is."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from blowtorch import RunState, hookimpl

if TYPE_CHECKING:
    from tqdm import tqdm


class ProgressBar:
    """A progress bar with rate, time left and current metrics, in a terminal or a notebook.

    A run has one without naming it, unless the option `progress` is off or standard error is neither.

    Args:
        num_metrics: how many metrics stand behind the bar, those of training first.
    """

    def __init__(self, num_metrics: int = 3) -> None:
        self.num_metrics = num_metrics
        self._bar: tqdm[Any] | None = None

    @hookimpl
    def epoch_start(self, state: RunState) -> None:
        """Begin the bar of an epoch."""
        from tqdm.auto import tqdm

        of = "" if state.max_epochs is None else f"/{state.max_epochs}"
        self._bar = tqdm(
            desc=f"epoch {state.epoch}{of}",
            total=state.steps_per_epoch,
            initial=state.batch,
            unit="step",
            leave=False,
            dynamic_ncols=True,
        )
        self._bar.set_postfix_str(self._describe(state.metrics))

    @hookimpl
    def train_step_end(self, state: RunState) -> None:
        """Move the bar, which draws itself ten times a second at most."""
        if self._bar is not None and self._bar.update(1):
            self._bar.set_postfix_str(self._describe(state.metrics), refresh=False)

    @hookimpl
    def epoch_end(self, state: RunState) -> None:
        """End the bar."""
        self._close()

    @hookimpl
    def run_end(self, state: RunState) -> None:
        """End the bar of an epoch that was cut short."""
        self._close()

    def _describe(self, metrics: Mapping[str, float]) -> str:
        ranked = sorted(metrics, key=lambda name: (not name.startswith("train/"), name.startswith("train_epoch/")))
        return ", ".join(f"{name} {metrics[name]:.4g}" for name in ranked[: self.num_metrics])

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
