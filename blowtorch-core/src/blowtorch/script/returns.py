"""What steps return: names, a scalar for each, the size of the batch, and the loss among them."""

import numbers
from collections.abc import Callable, Container, Mapping
from typing import Any

from torch import Tensor

from blowtorch.errors import ScriptError, nearest
from blowtorch.record.logged import Logged
from blowtorch.record.metric_objects import MetricObjects, is_metric_object
from blowtorch.record.metrics import Window, count_samples
from blowtorch.script.functions import Function


class Returns:
    """Reads what steps return: names, a scalar for each, and the size of the batch; and keeps their means.

    One of these belongs to one function, whose first return is looked at closely.

    Args:
        function: the name of the function.
        logged: what is logged while the function runs is read with what it returns.
        warn: warns of values that are no scalars.
        objects: takes the metric objects that the function returns.
        only_finite: leave values out that are not finite.

    Attributes:
        window: the means of what was taken since it was last closed.
        objects: the metric objects that were returned.
    """

    def __init__(
        self,
        function: str,
        logged: Logged,
        warn: Callable[[str], None],
        objects: MetricObjects | None = None,
        only_finite: bool = False,
    ) -> None:
        self.window = Window(only_finite=only_finite)
        self.objects = objects or MetricObjects()
        self._logged = logged.values
        self._reductions = logged.reductions
        self._function = function
        self._warn = warn
        self._plain: set[str] = set()  # the metrics that were scalars on the CPU when they were last looked at
        self._is_first = True
        self._has_warned = False

    def take(self, returned: Any, batch: Any) -> tuple[dict[str, Any], int]:
        """Read what a step returned and logged, and add it to the window, weighted by the size of the batch.

        What was found to be scalars on the CPU is read right here: this runs on every step, where each call counts,
        and each look at a tensor too.

        Returns:
            The metrics as `read` gives them, without `batch_size`; and the number of samples.

        Raises:
            ScriptError: it is nothing of that kind.
        """
        plain, totals, logged = self._plain, self.window.totals, self._logged
        if type(returned) is Tensor and not logged and "loss" in plain:
            metrics: dict[str, Any] = {"loss": returned}
        elif type(returned) is dict and not logged and returned.keys() <= plain:
            metrics = returned
        else:
            return self._take_anything(returned, batch)
        first = batch[0] if (type(batch) is tuple or type(batch) is list) and batch else batch
        try:
            samples = first.size(0) if type(first) is Tensor else count_samples(batch)
        except IndexError:  # it has no dimension, which to ask for on every step would cost more
            samples = 1
        for name, value in metrics.items():
            try:
                number = value if type(value) is float else value.item()
            except (AttributeError, RuntimeError, ValueError):  # no longer what it was found to be
                return self._take_anything(returned, batch, begin=name)
            if name in totals:
                total = totals[name]
                totals[name] = (total[0] + number * samples, total[1] + samples)
            else:
                totals[name] = (number * samples, samples)
        return metrics, samples

    def _take_anything(self, returned: Any, batch: Any, begin: str | None = None) -> tuple[dict[str, Any], int]:
        """Like `take`, for anything; metrics before the one called `begin` are in the window already."""
        metrics = self.read(returned)
        samples = metrics.pop("batch_size") if "batch_size" in metrics else count_samples(batch)
        is_scalar = not self._has_warned and not self.window.only_finite  # else each value needs a closer look
        self._plain = {name for name, value in metrics.items() if is_scalar and _is_plain(value)}
        names = list(metrics)
        self.window.add({name: metrics[name] for name in names[names.index(begin) if begin else 0 :]}, samples)
        return metrics, samples

    def add(self, returned: Any, weight: int, earlier: Container[str] = ()) -> None:
        """Read what belongs to no single batch, and add it to the window.

        Raises:
            ScriptError: it is nothing of that kind, or what is returned is among the `earlier` metrics.
        """
        metrics = self.read(returned)
        for name in metrics if returned else ():
            if name in earlier or name in self.window.totals:
                raise ScriptError(f"{self._function} returns {name!r} and logs it too; give one of them another name")
        self.window.add(metrics, metrics.pop("batch_size", weight))

    def read(self, returned: Any) -> dict[str, Any]:
        """Name → scalar tensor or number, of what a step returned and logged; a lone tensor is called `loss`.

        Raises:
            ScriptError: it is nothing of that kind.
        """
        is_plain = type(returned) is dict and not self._logged and "batch_size" not in returned
        metrics = returned if is_plain else self._merge(returned)
        for value in metrics.values():
            if isinstance(value, Tensor):
                if value.ndim:
                    metrics = self._tidy(metrics)
                    break
            elif type(value) is not float and type(value) is not int:
                metrics = self._tidy(metrics)
                break
        if self._is_first:
            self._check_names(metrics)
        return metrics

    def _merge(self, returned: Any) -> dict[str, Any]:
        logged = self._logged
        if isinstance(returned, Tensor):
            returned = {"loss": returned}
        elif returned is None and logged:
            returned = {}
        elif not isinstance(returned, Mapping):
            raise ScriptError(
                f"{self._function} returned {_described(returned)}; expected a scalar tensor or a dict of name to "
                f"tensor or number, such as {{'loss': loss}}"
            )
        for name in logged:
            if name in returned:
                raise ScriptError(f"{self._function} returns {name!r} and logs it too; give one of them another name")
            reduce = self._reductions.get(name, "mean")
            if reduce != "mean":
                self.window.reductions[name] = reduce
        metrics = {**returned, **logged}
        logged.clear()
        if "batch_size" in metrics:
            size = int(metrics["batch_size"])
            if size < 1:
                raise ScriptError(f"{self._function} returned 'batch_size' as {size}; it is a number above 0")
            metrics["batch_size"] = size
        return metrics

    def _tidy(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """A copy with a scalar for every tensor, and a plain number for every other value."""
        tidy = dict(metrics)
        for name, value in metrics.items():
            if isinstance(value, Tensor):
                tidy[name] = self._average(name, value) if value.ndim else value
            elif isinstance(value, numbers.Real):
                tidy[name] = value if name == "batch_size" else float(value)
            elif is_metric_object(value):
                self.objects.add(name, value)
                del tidy[name]
            else:
                raise ScriptError(
                    f"{self._function} returned {name!r} as {_described(value)}; a metric is a tensor or a number"
                )
        return tidy

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
            if not isinstance(name, str):
                raise ScriptError(f"{self._function} returned a metric named {name!r}; names are strings")
            if isinstance(value, Tensor) and value.is_complex():
                raise ScriptError(f"{self._function} returned {name!r} as a complex number; take its absolute value")
        self._is_first = False


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
        self.name = metric or "loss"

    def choose(self, metrics: Mapping[str, Any]) -> str:
        """The name of the metric, by what the first step returned.

        Raises:
            ScriptError: there is no such metric, it is not clear which, or it carries no gradient.
        """
        self.name = self._find(metrics)
        return self.name

    def _find(self, metrics: Mapping[str, Any]) -> str:
        wanted = self._metric or ("loss" if "loss" in metrics else None)
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


def _described(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__} ({value!r:.60})"
