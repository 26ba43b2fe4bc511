"""Averages of the weights along the way, which often are better than the last ones.

Wherever the model is judged, in validations, `model.pt` and when the run is over, the average stands in for the weights
of training, from when it begins. Training itself is untouched. Running statistics, such as those of a BatchNorm, are
averaged like weights, and counters are those of the model.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from blowtorch import ExtensionError, Interval, OptionError, RunState, hookimpl
from blowtorch.builtin.checks import check_fraction, count_steps, is_number, read_interval

if TYPE_CHECKING:
    from torch import Tensor


class WeightAverage:
    """What both averages share; a subclass says by `average` how the next weights are taken in.

    Args:
        name: of the callback, for messages.
        start: when averaging begins.
        every: how often it takes in the weights.
    """

    def __init__(self, name: str, start: str | float, every: str) -> None:
        self._name = name
        self.start = start
        self.every = every
        self._start = read_interval(name, "start", start) if isinstance(start, str) else start
        self._every = read_interval(name, "every", every)
        self._num_averaged = 0

    @hookimpl
    def run_start(self, state: RunState) -> None:
        """Make room for the average, or go on with that of the checkpoint.

        Raises:
            ExtensionError: another callback averages too.
            OptionError: an interval cannot be counted in steps.
        """
        if state.averaged is not None:
            raise ExtensionError(f"{self._name} averages the weights, and so does another callback; keep one of them")
        self._first_step = self._count_start(state)
        self._steps = count_steps(self._name, "every", self._every, state.steps_per_epoch)
        total = state.total_steps
        if total is not None and total - total % self._steps <= self._first_step:
            state.warn(
                f"{self._name} averages nothing: it begins after step {self._first_step}, takes in the weights every "
                f"{self._steps} steps, and the run has {total}"
            )
        average: dict[str, Tensor] = {}
        earlier = state.judge_with(average)
        if earlier is None or not self._num_averaged:
            self._num_averaged = 0
        else:
            weights = {name: own for name, own in _floating(state).items() if _is_finite(earlier[name])}
            average |= {name: earlier[name].to(own.device) for name, own in weights.items()}
        self._average = average
        self._known = set(_floating(state)) if average else set()  # a mask of infinities is known, and not averaged

    @hookimpl
    def train_step_end(self, state: RunState) -> None:
        """Take in the weights, if it is time to."""
        if state.step <= self._first_step or state.step % self._steps:
            return
        weights = _floating(state)
        if self._num_averaged:
            self._follow(state, weights)
            averages, own = list(self._average.values()), [weights[name] for name in self._average]
            # Each process averages its pieces, since torch takes no divided tensors together with others.
            self.average([*map(_own_piece, averages)], [*map(_own_piece, own)])
        else:
            self._average |= {name: own.clone() for name, own in weights.items() if _is_finite(own)}
            self._known.update(weights)
        self._num_averaged += 1

    def _follow(self, state: RunState, weights: "Mapping[str, Tensor]") -> None:
        """Average what the model has now, if its layers were replaced, appended or taken out during the run."""
        shapes = {name: own.shape for name, own in weights.items()}
        gone = [name for name in self._average if name not in weights]
        fresh = [
            name
            for name, own in weights.items()
            if (name not in self._average and name not in self._known and _is_finite(own))
            or (name in self._average and self._average[name].shape != shapes[name])
        ]
        self._known.update(weights)
        for name in gone:
            del self._average[name]
        self._average |= {name: weights[name].clone() for name in fresh}
        if gone or fresh:
            state.warn(
                f"{self._name}: layers of the model have changed during the run, so the averages of "
                f"{', '.join(map(repr, [*fresh, *gone][:3]))} begin anew with step {state.step}, or end"
            )

    def average(self, averages: "list[Tensor]", weights: "list[Tensor]") -> None:
        """Change the averages by the weights of now."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return how many times weights were taken in; the average itself is the `model.pt` of a checkpoint."""
        return {"num_averaged": self._num_averaged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from that number."""
        self._num_averaged = state["num_averaged"]

    def _count_start(self, state: RunState) -> int:
        if isinstance(self._start, Interval):
            return count_steps(self._name, "start", self._start, state.steps_per_epoch)
        if self._start == 0:
            return 0
        if state.total_steps is None:
            raise OptionError(
                f"{self._name}, option start: {self.start} of a run whose length is unknown; write an interval, such "
                f"as '1000 steps'"
            )
        return round(self._start * state.total_steps)


class ExponentialMovingAverage(WeightAverage):
    """Judge an exponential moving average of the weights: `torch.optim.swa_utils.get_ema_multi_avg_fn`.

    Args:
        decay: how much of the average stays at each step; it looks back over about 1 / (1 - decay) of them.
        start: when it begins: an interval from the beginning of the run, or a fraction of it.
        every: how often it takes in the weights.

    Raises:
        OptionError: `decay` or `start` is no fraction, or an interval is none of steps or epochs.
    """

    def __init__(self, decay: float = 0.999, start: str | float = 0.0, every: str = "1 step") -> None:
        super().__init__("ema", _check_start("ema", start), every)
        self.decay = check_fraction("ema", "decay", decay)

    def average(self, averages: "list[Tensor]", weights: "list[Tensor]") -> None:
        """average = decay × average + (1 - decay) × weights."""
        from torch.optim.swa_utils import get_ema_multi_avg_fn

        get_ema_multi_avg_fn(self.decay)(averages, weights, self._num_averaged)


class StochasticWeightAveraging(WeightAverage):
    """Judge the plain mean of the weights at several moments late in a run, after Izmailov and others (2018).

    It is that of `torch.optim.swa_utils.AveragedModel(model, use_buffers=True)`. A constant or cyclic learning rate
    while it averages is part of the method, and is up to the scheduler.

    Args:
        start: when it begins: an interval from the beginning of the run, or a fraction of it.
        every: how often it takes in the weights.

    Raises:
        OptionError: `start` is no fraction, or an interval is none of steps or epochs.
    """

    def __init__(self, start: str | float = 0.75, every: str = "1 epoch") -> None:
        super().__init__("swa", _check_start("swa", start), every)

    def average(self, averages: "list[Tensor]", weights: "list[Tensor]") -> None:
        """Of n + 1 weights: average + (weights - average) / (n + 1)."""
        from torch.optim.swa_utils import get_swa_avg_fn

        for average, own in zip(averages, weights, strict=True):
            average.copy_(get_swa_avg_fn()(average, own, self._num_averaged))


def _floating(state: RunState) -> "dict[str, Tensor]":
    """Return what is averaged of a model; anew each time, since modules may replace their buffers by other tensors."""
    import torch
    from torch.nn.parameter import is_lazy

    weights = state.model.state_dict()
    return {
        name: own
        for name, own in weights.items()
        if isinstance(own, torch.Tensor) and own.is_floating_point() and not is_lazy(own)
    }


def _own_piece(weights: "Tensor") -> "Tensor":
    """Return what this process has of weights that may be divided among several, in the same memory."""
    if not hasattr(weights, "to_local"):
        return weights
    own: Tensor = weights.detach().to_local()  # type: ignore[attr-defined]
    return own


def _is_finite(weights: "Tensor") -> bool:
    """Return whether weights can be averaged: the mean of -inf and -inf is NaN, so a mask stays that of the model."""
    return bool(weights.isfinite().all())


def _check_start(owner: str, start: str | float) -> str | float:
    """Return when averaging begins, or raise an `OptionError` if it is neither a text nor a fraction."""
    if isinstance(start, str) or (is_number(start) and 0 <= start <= 1):
        return start
    raise OptionError(
        f"{owner}, option start: expected a fraction from 0 to 1, or an interval such as '1000 steps', got {start!r}"
    )
