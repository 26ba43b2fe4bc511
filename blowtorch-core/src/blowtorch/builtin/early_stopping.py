"""Ends a run that no longer gets better."""

from collections.abc import Mapping
from typing import Any

from blowtorch import OptionError, RunState, hookimpl


class EarlyStopping:
    """Ends the run after a number of validations without a better value of a metric.

    Args:
        patience: how many validations in a row may bring nothing better.
        metric: its recorded name, such as `val/loss`; the option `checkpoint_metric` unless given.
        smaller_is_better: the option of that name unless given.
        min_change: a smaller change for the better does not count.

    Raises:
        OptionError: patience is below 1 or min_change is negative.
    """

    def __init__(
        self,
        patience: int,
        metric: str | None = None,
        smaller_is_better: bool | None = None,
        min_change: float = 0.0,
    ) -> None:
        if patience < 1 or min_change < 0:
            raise OptionError(
                f"early stopping expects patience of at least 1 and min_change of at least 0, "
                f"got {patience!r} and {min_change!r}"
            )
        self.patience = patience
        self.metric = metric
        self.smaller_is_better = smaller_is_better
        self.min_change = min_change
        self.best: float | None = None
        self.waited = 0

    @hookimpl
    def validation_end(self, state: RunState, metrics: Mapping[str, float]) -> None:
        """Compare the metric with the best so far; one that is not a number is no improvement."""
        metric = self.metric or state.options.checkpoint_metric
        if metric not in metrics:
            return
        smaller = state.options.smaller_is_better if self.smaller_is_better is None else self.smaller_is_better
        value = metrics[metric] if smaller else -metrics[metric]
        if value == value and (self.best is None or value < self.best - self.min_change):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            state.stop_reason = f"{metric} has not improved in {self.waited} validations"

    @hookimpl
    def epoch_end(self, state: RunState) -> None:
        """Notice early that the metric does not exist."""
        metric = self.metric or state.options.checkpoint_metric
        if self.best is None and self.waited == 0 and metric not in state.metrics:
            known = ", ".join(name for name in state.metrics if not name.startswith(("train", "lr"))) or "none"
            raise OptionError(f"early stopping waits for {metric!r}, which no validation measures; there are {known}")

    def state_dict(self) -> dict[str, Any]:
        """What has to be remembered over a restart."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.best, self.waited = state["best"], state["waited"]
