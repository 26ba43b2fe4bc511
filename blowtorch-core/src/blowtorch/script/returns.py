"""What steps return: names, a scalar for each, the size of the batch, and the loss among them."""

import math
from collections.abc import Callable, Container, Mapping
from typing import Any

import torch
from torch import Tensor

from blowtorch.data.sizes import read_size
from blowtorch.errors import ScriptError, nearest
from blowtorch.record.logged import Logged, as_number, check_name, describe_value, is_rounded, read_number
from blowtorch.record.metric_objects import MetricObjects, is_metric_object
from blowtorch.record.metrics import Window, count_samples
from blowtorch.script.functions import Function

_PAIRS = (tuple, list)  # batches whose first element counts
_OF_BATCH = ("batch_size", "weight")  # what is said of a batch, and is no metric
_EXACT = 2**53  # up to here, a float holds each whole number
LEFT_OUT = "left_out_batches"  # the metric that counts the batches of which a step returned nothing

Reader = Callable[[Any, Any], tuple[Any, int, dict[str, Any] | None]]


class Returns:
    """Reads what steps return: names, a scalar for each, and the size of the batch; and keeps their means.

    One of these belongs to one function, whose first return is looked at closely.

    Args:
        function: the name of the function.
        logged: what is logged while the function runs is read with what it returns.
        warn: warns of values that are no scalars.
        objects: takes the metric objects that the function returns.
        window: takes the values.
        summed: names the metric that is a sum over the samples, and not their mean; None where none is.
        has_no_return: whether the function cannot return anything, so that its first None is a mistake.

    Attributes:
        weight: what the last batch weighs, where its step returned `weight`; whoever weighs its gradient takes it out.
        window: the means of what was taken since it was last closed.
        objects: the metric objects that were returned.
        counts_left_out: whether a batch is left out if nothing is returned of it; several processes have to agree.
    """

    def __init__(
        self,
        function: str,
        logged: Logged,
        warn: Callable[[str], None],
        objects: MetricObjects | None = None,
        window: Window | None = None,
        summed: "Loss | None" = None,
        has_no_return: bool = False,
    ) -> None:
        self.weight: float | None = None
        self.counts_left_out = True
        self._summed = summed
        self._has_no_return = has_no_return
        self.window = window or Window()
        self.objects = objects or MetricObjects()
        self._logged = logged.values
        self._reductions = logged.reductions
        self._function = function
        self._warn = warn
        self._scalars: set[str] = set()  # the metrics that were scalars on the CPU when they were last looked at
        self._names: set[str] = set()  # that have been looked at
        self._rounded: set[str] = set()  # whole numbers that no float holds, which has been said
        self._reserved = {LEFT_OUT: "counts the batches that are left out"}
        self._is_first = True
        self._has_warned = False
        self._has_doubted = False
        self._is_size_due = True
        self._loss: Loss | None = None

    def reserve(self, name: str, purpose: str) -> None:
        """Refuse a metric of this name from a step, since the loop adds it itself for a purpose."""
        self._reserved[name] = purpose

    def reader(self, loss: "Loss | None" = None) -> Reader:
        """Return the function that reads what a step returned and logged, and adds it to the window.

        It runs on every step, where each call counts, and each look at an attribute, a dict or a tensor too. So it is a
        closure, what was found to be scalars on the CPU is read right in it, and the sum of a lone loss stays in its
        variables until somebody looks at the window.

        Args:
            loss: which metric is minimised; None where none is.

        Returns:
            A function of what was returned and the batch. It gives the tensor to minimise, or None without `loss`; the
            number of samples in the batch; and the metrics, without `batch_size` and `weight`, or None for a lone
            tensor. Of a batch that is left out it gives None, 0 and no metrics. It raises a `ScriptError` for what is
            nothing of that kind.
        """
        self._loss = loss
        if loss is not None:
            loss.choose_anew()
        self._is_size_due = True
        logged, window, scalars = self._logged, self.window, self._scalars
        is_lone = is_lent = False  # whether the step returned a lone loss on the CPU; whether these hold its total:
        value, weight = 0.0, 0.0

        def give_back() -> tuple[float, float]:
            nonlocal is_lent
            is_lent = False
            return value, weight

        def read(returned: Any, batch: Any) -> tuple[Any, int, dict[str, Any] | None]:
            nonlocal is_lone, is_lent, value, weight
            if is_lone and type(returned) is Tensor and not logged:
                try:
                    first = batch[0] if type(batch) in _PAIRS else batch
                    samples = first.shape[0] if type(first) is Tensor else count_samples(batch)
                    if not samples:
                        return self._take_anything(returned, batch, loss)
                    if not is_lent:
                        value, weight = window.lend("loss", give_back)
                        is_lent = True
                    value += returned.item() * samples
                except (IndexError, RuntimeError):  # the batch is empty or has no dimension, or the loss has several
                    return self._take_anything(returned, batch, loss)
                weight += samples
                return returned, samples, None
            if type(returned) is dict and not logged and returned.keys() <= scalars:
                samples = count_samples(batch)
                if samples and window.add_scalars(returned, samples):
                    return (None if loss is None else loss.of(returned)), samples, returned
            reading = self._take_anything(returned, batch, loss)
            is_lone = type(returned) is Tensor and scalars == {"loss"}
            return reading

        return read

    def read_stand_in(self, returned: Any) -> Any:
        """Return the tensor to minimise of what a step returned for samples that count nothing, or None."""
        self._logged.clear()
        self.weight = None
        if returned is None or self._loss is None:
            return None
        return self._loss.of(self.as_scalars(returned))

    def _take_anything(self, returned: Any, batch: Any, loss: "Loss | None") -> tuple[Any, int, dict[str, Any]]:
        """Take what a step returned, whatever it is."""
        if returned is None and (loss is not None or not self._logged):
            return self._leave_out(self._read_logged())
        metrics = self.as_scalars(returned)
        if not self._reserved.keys().isdisjoint(metrics):
            name = next(name for name in metrics if name in self._reserved)
            raise ScriptError(
                f"{self._function} returned or logged {name!r}, which {self._reserved[name]} here; give it another name"
            )
        samples = metrics.pop("batch_size") if "batch_size" in metrics else self.count_samples(batch)
        self.weight = metrics.pop("weight", None)
        if not samples or self.weight == 0:
            return self._leave_out(metrics, is_counted=samples > 0)
        self._scalars.clear()
        looks_at_each = self._has_warned or self.window.only_finite or self._summed is not None
        if not looks_at_each and self.weight is None:  # a batch after one with a weight may have none
            self._scalars.update(name for name, value in metrics.items() if _is_plain(value))
        chosen = None if loss is None else loss.of(metrics)
        weight = samples if self.weight is None else self.weight
        if self._summed is not None and self._summed.name in metrics:
            self.window.add({**metrics, self._summed.name: metrics[self._summed.name] / weight}, weight)
        else:
            self.window.add(metrics, weight)
        return chosen, samples, metrics

    def _read_logged(self) -> dict[str, Any]:
        """Return what was logged in a step that returned nothing.

        Raises:
            ScriptError: it has no return that gives anything, so that its author must have forgotten it.
        """
        if self._has_no_return and self._is_first:
            raise self._refusal(None)
        return self.as_scalars({}) if self._logged else {}

    def _leave_out(self, metrics: dict[str, Any], is_counted: bool = True) -> tuple[None, int, dict[str, Any]]:
        """Leave a batch out: it has no gradient and no weight; only its logged sums, largest and smallest count."""
        self.weight = None
        self.window.add(metrics, 0)
        if is_counted and self.counts_left_out:
            self.count_left_out()
        return None, 0, {}

    def count_left_out(self) -> None:
        """Count a batch that is left out."""
        self.window.reductions[LEFT_OUT] = "sum"
        self.window.add({LEFT_OUT: 1}, 1)

    def count_samples(self, batch: Any) -> int:
        """Return the number of samples in a batch; the first one of an epoch is looked at closely."""
        if not self._is_size_due:
            return count_samples(batch)
        self._is_size_due = False
        samples, doubt = read_size(batch)
        if doubt is not None and not self._has_doubted:
            self._has_doubted = True
            self._warn(
                f"{self._function}: how many samples a batch has is uncertain, since {doubt}; {samples} is taken. "
                f"Return 'batch_size' to say it"
            )
        return samples

    def add(self, returned: Any, weight: int, earlier: Container[str] = ()) -> None:
        """Read what belongs to no single batch, and add it to the window.

        Raises:
            ScriptError: it is nothing of that kind, or what is returned is among the `earlier` metrics.
        """
        metrics = self.as_scalars(returned)
        for name in metrics if returned else ():
            if name in earlier or name in self.window.totals:
                raise ScriptError(f"{self._function} returns {name!r} and logs it too; give one of them another name")
        size = metrics.pop("batch_size", weight)
        self.window.add(metrics, metrics.pop("weight", size))

    def as_scalars(self, returned: Any) -> dict[str, Any]:
        """Return name → scalar tensor or number, of what a step returned and logged; a lone tensor is called `loss`.

        Raises:
            ScriptError: it is nothing of that kind.
        """
        is_plain = type(returned) is dict and not self._logged and returned.keys().isdisjoint(_OF_BATCH)
        metrics = returned if is_plain else self._merge(returned)
        for value in metrics.values():
            if isinstance(value, Tensor):
                if value.ndim:
                    metrics = self._tidy(metrics)
                    break
            elif type(value) is not float and (type(value) is not int or abs(value) > _EXACT):
                metrics = self._tidy(metrics)
                break
        if not metrics.keys() <= self._names:
            self._check_names(metrics)
        self._is_first = False
        return metrics

    def _merge(self, returned: Any) -> dict[str, Any]:
        logged = self._logged
        if isinstance(returned, Tensor):
            returned = {"loss": returned}
        elif returned is None and logged:
            returned = {}
        elif not isinstance(returned, Mapping):
            raise self._refusal(returned)
        for name in logged:
            if name in returned:
                raise ScriptError(f"{self._function} returns {name!r} and logs it too; give one of them another name")
            reduce = self._reductions.get(name, "mean")
            if reduce != "mean":
                self.window.reductions[name] = reduce
        metrics = {**returned, **logged}
        logged.clear()
        if "batch_size" in metrics:
            metrics["batch_size"] = self._read_size(metrics["batch_size"])
        if "weight" in metrics:
            metrics["weight"] = self._read_weight(metrics["weight"])
        return metrics

    def _read_size(self, value: Any) -> int:
        try:
            size = int(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            size = 0
        if size < 1:
            raise ScriptError(
                f"{self._function} returned 'batch_size' as {describe_value(value)}; it is a number above 0. To leave "
                f"a batch out, return None"
            )
        return size

    def _read_weight(self, value: Any) -> float:
        try:
            weight = as_number(value.item() if hasattr(value, "item") else value)
            if weight is not None and weight >= 0 and math.isfinite(weight):
                return weight
        except (TypeError, ValueError, RuntimeError, OverflowError):
            pass
        raise ScriptError(
            f"{self._function} returned 'weight' as {describe_value(value)}; it is what the batch weighs in means and "
            f"in gradients, such as its number of tokens: a finite number from 0 up. Give a metric another name"
        )

    def _refusal(self, returned: Any) -> ScriptError:
        return ScriptError(
            f"{self._function} returned {describe_value(returned)}; expected a scalar tensor or a dict of name to "
            f"tensor or number, such as {{'loss': loss}}"
        )

    def _tidy(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """A copy with a scalar for every tensor, and a plain number for every other value."""
        tidy = dict(metrics)
        for name, value in metrics.items():
            if isinstance(value, Tensor):
                tidy[name] = self._average(name, value) if value.ndim else value
            elif is_metric_object(value):
                self.objects.add(name, value)
                del tidy[name]
            elif name not in _OF_BATCH:
                tidy[name] = self._read_number(name, value)
        return tidy

    def _read_number(self, name: str, value: Any) -> float:
        number = read_number(value, f"{self._function} returned {name!r}")
        if is_rounded(value, number) and name not in self._rounded:
            self._rounded.add(name)
            self._warn(
                f"{self._function} returned {name!r} as {value}, of which a float holds {number:.0f}; metrics are "
                f"floats, so digits of whole numbers above 2**53 are lost"
            )
        return number

    def _average(self, name: str, value: Tensor) -> Tensor:
        if not self._has_warned:
            self._has_warned = True
            self._warn(
                f"{self._function} returned {name!r} with shape {tuple(value.shape)}; values that are no scalars are "
                f"averaged"
            )
        return value.mean() if value.is_floating_point() else value.float().mean()

    def _check_names(self, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            check_name(name, f"{self._function} returned")
            if isinstance(value, Tensor) and value.is_complex():
                raise ScriptError(f"{self._function} returned {name!r} as a complex number; take its absolute value")
            if isinstance(value, Tensor) and value.is_cpu and value.dtype == torch.int64 and not value.ndim:
                self._read_number(name, value.item())
        self._names.update(metrics)


class Loss:
    """Which of a train step's metrics is minimised.

    Args:
        step: the train step.
        metric: its name; None for `loss`, or the only one that carries a gradient.

    Attributes:
        name: what was chosen; before that, what will most likely be.
    """

    def __init__(self, step: Function, metric: str | None) -> None:
        self._function = step.name
        self._metric = metric
        self.name = "loss" if metric is None else metric
        self._is_chosen = False

    def choose_anew(self) -> None:
        """Choose by what the next step returns, as at the beginning of each epoch."""
        self._is_chosen = False

    def of(self, metrics: Mapping[str, Any]) -> Any:
        """Return the metric that is minimised, which is chosen by what the first step of an epoch returned.

        Raises:
            ScriptError: there is no such metric, it is not clear which, or it carries no gradient.
        """
        if not self._is_chosen or self.name not in metrics:
            self.name = self._find(metrics)
            self._is_chosen = True
        return metrics[self.name]

    def _find(self, metrics: Mapping[str, Any]) -> str:
        wanted = "loss" if self._metric is None and "loss" in metrics else self._metric
        with_gradient = [name for name, value in metrics.items() if isinstance(value, Tensor) and value.requires_grad]
        if wanted is None and len(with_gradient) == 1:
            return with_gradient[0]
        names = ", ".join(map(repr, metrics)) or "nothing"
        if wanted is None:
            carrying = ", ".join(map(repr, with_gradient)) or "none"
            raise ScriptError(
                f"{self._function} returned {names}, of which {carrying} carry a gradient; return one called 'loss' "
                f"or set the option optimize_metric"
            )
        if wanted not in metrics:
            raise ScriptError(
                f"optimize_metric is {wanted!r}, but {self._function} returned {names}.{nearest(wanted, metrics)}"
            )
        if wanted not in with_gradient:
            raise ScriptError(
                f"{self._function} returned {wanted!r} without a gradient; it must be a tensor computed from the "
                f"model's parameters, not detached and not a number"
            )
        return wanted


def _is_plain(value: Any) -> bool:
    return value.is_cpu if isinstance(value, Tensor) else type(value) is float
