"""Means and other reductions of metrics, whose values stay on the device until they are recorded.

To read a tensor, the host must wait for the accelerator. So values on one are only kept, and all of them are read in
one transfer when a window is recorded, or some time after it was cut off for that. Values on the CPU cost nothing to
read and are summed at once. Either way the values are summed one after the other in Python floats, so a checkpoint that
cuts a window in two changes no bit.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blowtorch.data.sizes import read_size
from blowtorch.record.logged import REDUCTIONS

_CHUNK = 1024  # so many values are kept as tensors of their own before they are packed into one

_WIDE = (torch.float64, torch.int64, torch.int32)  # which single precision would round


@dataclass(slots=True)
class Total:
    """What the values of one name come to so far.

    Attributes:
        value: the sum of weight × value, or the reduced value.
        weight: the sum of the weights, or 1 of what is reduced.
    """

    value: float = 0.0
    weight: float = 0.0


Totals = dict[str, Total]


class Window:
    """Means of named scalars, weighted by batch size, since the window was opened.

    Args:
        reductions: `sum`, `max`, `min` or `last` by the name of each metric that is not reduced to its mean; it may
            grow, and two windows of the same metrics share it.
        only_finite: whether values that are NaN or infinite are left out.
        pool: makes the totals of all processes of those of this one, whenever the window is closed; None where it is
            alone.

    Attributes:
        is_waiting: whether there are values on an accelerator, for which whoever reads the window has to wait.
        lost: the names of which this process had a total that was not finite when those of all were made last.
    """

    def __init__(
        self,
        reductions: dict[str, str] | None = None,
        only_finite: bool = False,
        pool: Callable[[Totals, dict[str, str]], Totals] | None = None,
    ) -> None:
        self.is_waiting = False
        self.lost: set[str] = set()
        self._pool = pool
        self.totals: Totals = {}  # of the values that have been read
        self.only_finite = only_finite
        self.reductions: dict[str, str] = {} if reductions is None else reductions
        self._lent: tuple[Total, Callable[[], tuple[float, float]]] | None = None
        self._waiting: list[tuple[str, float, Tensor]] = []
        self._packed: list[tuple[list[tuple[str, float]], Tensor]] = []
        self._arriving: tuple[list[tuple[str, float]], Callable[[], list[float]]] | None = None

    def lend(self, name: str, give_back: Callable[[], tuple[float, float]]) -> tuple[float, float]:
        """Lend the value and the weight of a total to somebody who adds to it, until anybody else needs it."""
        total = self.totals.setdefault(name, Total(0.0, 0))
        self._lent = total, give_back
        return total.value, total.weight

    def add(self, metrics: Mapping[str, Any], weight: float) -> None:
        """Add the metrics of one batch: name → scalar tensor, which is not waited for, or number.

        Without weight, only those count of which no mean is taken.
        """
        self._take_back()
        for name, value in metrics.items():
            if not weight and name not in self.reductions:
                continue
            if isinstance(value, Tensor):
                if not value.is_cpu:
                    self._wait_for(name, weight, value)
                    continue
                value = value.item()
            self._add(name, value, weight)

    def add_scalars(self, metrics: Mapping[str, Any], weight: float) -> bool:
        """Add the metrics of one batch that are floats or scalar tensors on the CPU.

        Returns:
            Whether they are that; if not, none is added.
        """
        try:
            scalars = [value if type(value) is float else value.item() for value in metrics.values()]
        except (AttributeError, RuntimeError, ValueError):
            return False
        self._take_back()
        totals = self.totals
        for name, scalar in zip(metrics, scalars, strict=True):
            if name in totals:
                total = totals[name]
                total.value += scalar * weight
                total.weight += weight
            else:
                totals[name] = Total(scalar * weight, weight)
        return True

    def close(self) -> Totals:
        """Return the totals and empty the window; this waits for an accelerator that has values."""
        totals = self._pooled()
        self.totals = {}
        return totals

    def clear(self) -> None:
        """Empty the window."""
        self._read()
        self.totals = {}

    def close_into(self, longer: "Window", prefix: str) -> dict[str, float]:
        """Return the means under names that begin with `prefix`, and move the totals to a longer window."""
        totals, self.totals = self._read() if self._pool is None else self._pooled(), {}
        means = {}  # in one pass, since a run may record each step
        for name, total in totals.items():
            means[prefix + name] = total.value / total.weight if total.weight else math.nan
            if name not in longer.totals:
                longer.totals[name] = total
            elif name not in longer.reductions:
                longer.totals[name].value += total.value
                longer.totals[name].weight += total.weight
            elif total.weight:
                longer._add(name, total.value, total.weight)
        return means

    def cut_off(self) -> "Window":
        """Empty the window, and return one that has what was in it, to be read later.

        Its values are on their way from the accelerator, and nothing waits for them until they are read.
        """
        self._take_back()
        earlier = Window(self.reductions, self.only_finite, self._pool)
        earlier.totals, self.totals = self.totals, {}
        keys, values = self._gather()
        if values is not None:
            earlier._arriving = keys, send_to_host(values)
        return earlier

    def means(self) -> dict[str, float]:
        """Return the means so far."""
        return means(self._pooled())

    def state_dict(self) -> dict[str, list[Any]]:
        """Return total, weight and reduction of each name, as plain values."""
        return {
            name: [total.value, total.weight, self.reductions.get(name, "mean")] for name, total in self._read().items()
        }

    def load_state_dict(self, state: Mapping[str, list[Any]]) -> None:
        """Restore the totals that `state_dict` returned."""
        self.totals = {name: Total(value, weight) for name, (value, weight, _) in state.items()}
        self.reductions |= {name: reduce for name, (_, _, reduce) in state.items() if reduce != "mean"}
        self._waiting, self._packed, self.is_waiting = [], [], False

    def _add(self, name: str, value: float, weight: float) -> None:
        if self.only_finite and not math.isfinite(value):
            return
        total = self.totals.setdefault(name, Total())
        if name not in self.reductions:
            total.value += value * weight
            total.weight += weight
        else:
            reduce = REDUCTIONS[self.reductions[name]]
            total.value = reduce(total.value, value) if total.weight else value
            total.weight = 1.0

    def _wait_for(self, name: str, weight: float, value: Tensor) -> None:
        self.is_waiting = True
        self._waiting.append((name, weight, value.detach()))
        if len(self._waiting) >= _CHUNK:
            self._pack()

    def _pack(self) -> None:
        """Put the values that wait into one tensor on the device of the first, which the host does not wait for."""
        keys = [(name, weight) for name, weight, _ in self._waiting]
        values = [value for _, _, value in self._waiting]
        is_wide = any(value.dtype in _WIDE for value in values) and _has_doubles(values[0].device)
        kind = torch.float64 if is_wide else torch.float32
        device = (self._packed[0][1] if self._packed else values[0]).device  # a model may lie on several
        self._packed.append((keys, torch.stack([value.to(device, kind) for value in values])))
        self._waiting = []

    def _pooled(self) -> Totals:
        totals = self._read()
        if self._pool is None:
            return totals
        self.lost = {name for name, total in totals.items() if not math.isfinite(total.value)}
        return self._pool(totals, self.reductions)

    def _take_back(self) -> None:
        if self._lent is not None:
            (total, give_back), self._lent = self._lent, None
            total.value, total.weight = give_back()

    def _read(self) -> Totals:
        self._take_back()
        if self._arriving is not None:
            (keys, receive), self._arriving = self._arriving, None
            self._add_all(keys, receive())
        if self.is_waiting:
            keys, values = self._gather()
            self._add_all(keys, [] if values is None else values.tolist())
        return self.totals

    def _gather(self) -> tuple[list[tuple[str, float]], Tensor | None]:
        """Take out all values that wait, in one tensor on their device, and what each of them is."""
        if self._waiting:
            self._pack()
        packed, self._packed, self.is_waiting = self._packed, [], False
        keys = [key for keys, _ in packed for key in keys]
        return keys, torch.cat([tensor for _, tensor in packed]) if packed else None

    def _add_all(self, keys: list[tuple[str, float]], values: list[float]) -> None:
        for (name, weight), value in zip(keys, values, strict=True):
            self._add(name, value, weight)


def send_to_host(values: Tensor) -> Callable[[], list[float]]:
    """Ask for a copy of values on the host, and wait for nothing; return what waits for the copy and reads it.

    Only what CUDA was asked for before the copy is waited for, not what it is asked for after it. Any other accelerator
    is asked for the values when they are read.
    """
    if not values.is_cuda:
        return values.tolist
    copy = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
    copy.copy_(values, non_blocking=True)
    is_complete = torch.cuda.current_stream(values.device).record_event()

    def receive() -> list[float]:
        is_complete.synchronize()
        return copy.tolist()

    return receive


def _has_doubles(device: torch.device) -> bool:
    """Return whether an accelerator has numbers of double width; that of Apple has none."""
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def means(totals: Totals) -> dict[str, float]:
    """Return the weighted means of totals; NaN where all weights are zero.

    >>> means({"loss": Total(6.0, 4.0)})
    {'loss': 1.5}
    """
    return {name: total.value / total.weight if total.weight else math.nan for name, total in totals.items()}


def count_samples(batch: Any) -> int:
    """Return the first dimension of the first tensor in a batch, or else what its parts say; 1 where nothing does."""
    kind, first = type(batch), batch
    if kind is tuple or kind is list:  # the common cases need no closer look, which would cost time on every step
        first = batch[0] if batch else None
    elif kind is dict:
        first = next(iter(batch.values()), None)
    if type(first) is Tensor and first.ndim and (samples := first.size(0)):
        return samples
    return read_size(batch).samples
