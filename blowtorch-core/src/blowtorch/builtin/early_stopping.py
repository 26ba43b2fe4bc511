"""Ends a run that no longer gets better."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

from blowtorch import ExtensionError, OptionError, RunState, hookimpl

_EPOCH = "train_epoch/"  # what begins so is measured at the end of an epoch


class EarlyStopping:
    """Ends the run after a number of validations, or epochs, in a row without a better value of a metric.

    Args:
        metric: its recorded name, such as `val/loss`; the option `checkpoint_metric` unless given. Only validations
            that measure it count; one of training, such as `train_epoch/loss`, is looked at after each epoch.
        patience: how many of them in a row may bring nothing better; the last of these ends the run.
        smaller_is_better: whether a smaller value is better; the option of that name unless given.
        min_change: a value must be better by more than this to count; NaN never does.

    Raises:
        OptionError: `patience` is below 1, or `min_change` is negative.
    """

    def __init__(
        self,
        metric: str | None = None,
        patience: int = 5,
        smaller_is_better: bool | None = None,
        min_change: float = 0.0,
    ) -> None:
        if not isinstance(patience, int) or patience < 1:
            raise OptionError(f"early_stopping, option patience: expected a number from 1, got {patience!r}")
        if not isinstance(min_change, int | float) or not min_change >= 0:
            raise OptionError(f"early_stopping, option min_change: expected at least 0, got {min_change!r}")
        self.metric = metric
        self.patience = patience
        self.smaller_is_better = smaller_is_better
        self.min_change = min_change
        self._judged: str | None = None  # the metric that the next two are about
        self._best: float | None = None
        self._num_waited = 0
        self._measured: set[str] = set()
        self._has_warned = False

    @hookimpl
    def run_start(self, state: RunState) -> None:
        """Make sure that the metric can be measured at all.

        Raises:
            ExtensionError: neither a validation of the run nor an epoch ever measures it.
        """
        metric = self.metric or state.options.checkpoint_metric
        if metric.startswith((_EPOCH, *(f"{name}/" for name in state.validations))):
            return
        close = difflib.get_close_matches(metric.partition("/")[0], [*state.validations, "train_epoch"], n=1)
        rest = metric.rpartition("/")[2]
        hint = f" Did you mean {f'{close[0]}/{rest}'!r}?" if close else ""
        names = ", ".join(f"{name}/…" for name in (*state.validations, "train_epoch"))
        raise ExtensionError(
            f"early_stopping waits for {metric!r}, which nothing in this run measures.{hint} It can follow {names}"
        )

    @hookimpl
    def validation_end(self, state: RunState, name: str, metrics: Mapping[str, float]) -> None:
        """Compare with the best so far.

        Raises:
            ExtensionError: this validation should measure the metric and does not, or none ever can.
        """
        metric = self.metric or state.options.checkpoint_metric
        self._measured |= metrics.keys()
        if metric in metrics:
            self._judge(state, metric, metrics[metric])
        elif self._judged is None and ("/" not in metric or metric.startswith((f"{name}/", "train/"))):
            raise ExtensionError(self._complain(metric))

    @hookimpl
    def epoch_end(self, state: RunState, metrics: Mapping[str, float]) -> None:
        """Compare a metric of the epoch with the best so far.

        Warn if none of the validations so far had the metric; one that is made less often may still have it.

        Raises:
            ExtensionError: it is a metric of an epoch, and this one has not measured it.
        """
        metric = self.metric or state.options.checkpoint_metric
        if metric.startswith(_EPOCH):
            self._measured |= metrics.keys()
            if metric in metrics:
                self._judge(state, metric, metrics[metric])
            elif self._judged is None:
                raise ExtensionError(self._complain(metric, "epoch"))
        elif self._measured and self._judged is None and not self._has_warned:
            self._has_warned = True
            state.warn(self._complain(metric))

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be remembered over a restart."""
        return {"metric": self._judged, "best": self._best, "num_waited": self._num_waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what was remembered."""
        self._judged, self._best, self._num_waited = state["metric"], state["best"], state["num_waited"]

    def _judge(self, state: RunState, metric: str, value: float) -> None:
        if self._judged != metric:  # a run may be continued with another metric
            self._judged, self._best, self._num_waited = metric, None, 0
        if self._is_better(value, state.options.smaller_is_better):
            self._best, self._num_waited = value, 0
            return
        self._num_waited += 1
        if self._num_waited >= self.patience:
            than = "" if self._best is None else f" than {self._best:.4g}"
            times = "epochs" if metric.startswith(_EPOCH) else "validations"
            state.stop(f"{metric} has not been better{than} in {self._num_waited} {times}")

    def _is_better(self, value: float, smaller_is_better: bool) -> bool:
        if self.smaller_is_better is not None:
            smaller_is_better = self.smaller_is_better
        if math.isnan(value) or self._best is None:
            return not math.isnan(value)
        gain = self._best - value if smaller_is_better else value - self._best
        return gain > self.min_change

    def _complain(self, metric: str, by: str = "validation") -> str:
        close = difflib.get_close_matches(metric, self._measured, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        measured = ", ".join(sorted(self._measured)) or "nothing"
        return f"early_stopping waits for {metric!r}, which no {by} has measured.{hint} Measured were {measured}."
