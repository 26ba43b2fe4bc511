"""Metric objects that steps update and return, such as those of torchmetrics: computed at the end, and saved.

What makes a metric object are its methods `update`, `compute` and `reset`; torchmetrics itself is never imported.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from blowtorch.errors import CheckpointError, ScriptError
from blowtorch.tree import children_of, move, walk


class MetricObjects:
    """Metric objects that a step updates and returns, such as those of torchmetrics: `update`, `compute`, `reset`.

    Args:
        find: finds, by the place where each lies, those that a step may return. By its place an object is known before
            the step has returned it, which a run that is continued needs: its state must be back before it is updated.
            None where nothing is saved.
    """

    def __init__(self, find: Callable[[], Mapping[str, Any]] | None = None) -> None:
        self._find = find
        self._returned: dict[str, Any] = {}
        self._places: dict[str, str] = {}

    def add(self, name: str, metric: Any) -> None:
        """Take note of one that was returned under a name.

        Raises:
            ScriptError: it could not be continued after a restart.
        """
        if self._returned.get(name) is metric:
            return
        if self._find is not None:
            self._places[name] = _place_of(name, metric, self._find())
        self._returned[name] = metric

    def compute(self) -> dict[str, float]:
        """The value of each, of which those that are mappings or have several elements make several."""
        values: dict[str, float] = {}
        for name, metric in self._returned.items():
            values |= _flatten(name, metric.compute())
        return values

    def put_aside(self) -> contextlib.AbstractContextManager[None]:
        """Let something else use the same objects meanwhile, beginning with nothing."""
        found = {} if self._find is None else self._find()  # also those that have not been returned yet
        return put_aside({id(each): each for each in (*self._returned.values(), *found.values())}.values())

    def reset(self) -> None:
        """Begin all of them anew."""
        for metric in self._returned.values():
            metric.reset()
        self._returned.clear()

    def state_dict(self) -> dict[str, Any]:
        """By the name and place of each that has something to be remembered."""
        return {
            name: [self._places[name], read_metric_object(metric)]
            for name, metric in self._returned.items()
            if name in self._places
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        found = self._find() if state and self._find is not None else {}
        for name, (place, values) in state.items():
            if place not in found:
                raise CheckpointError(f"there is no metric object at {place}, which was returned as {name!r}")
            write_metric_object(found[place], values)
            self._returned[name], self._places[name] = found[place], place


@contextlib.contextmanager
def put_aside(metrics: Iterable[Any]) -> Iterator[None]:
    """Let something else use metric objects meanwhile, beginning with nothing."""
    kept = [(metric, read_metric_object(metric)) for metric in metrics if _has_state(metric)]
    for metric, _ in kept:
        metric.reset()
    try:
        yield
    finally:
        for metric, state in kept:
            write_metric_object(metric, state)


def _place_of(name: str, metric: Any, found: Mapping[str, Any]) -> str:
    if not _has_state(metric):
        raise ScriptError(
            f"the metric object returned as {name!r} has no state_dict and load_state_dict, so a run that is stopped "
            f"would forget what it has gathered"
        )
    for place, each in found.items():
        if each is metric:
            return place
    raise ScriptError(
        f"the metric object returned as {name!r} could not be found again when the run is continued; keep it in a "
        f"variable that the step names, or in the model"
    )


def _has_state(metric: Any) -> bool:
    return all(callable(getattr(metric, name, None)) for name in ("state_dict", "load_state_dict"))


def find_metric_objects(function: Callable[..., Any], roots: Mapping[str, Any]) -> dict[str, Any]:
    """The metric objects in the variables that a function names and in `roots`, by the place where each lies."""
    function = inspect.unwrap(function)
    variables: dict[str, Any] = {"self": getattr(function, "__self__", function)}
    plain = getattr(function, "__func__", function)
    if inspect.isfunction(plain):
        named = inspect.getclosurevars(plain)
        variables |= {**named.globals, **named.nonlocals}
    found: dict[str, Any] = {}
    for place, value in {**variables, **roots}.items():
        _collect(place, value, found, depth=2)
    return found


def _collect(place: str, value: Any, found: dict[str, Any], depth: int) -> None:
    if isinstance(value, type | ModuleType) or depth < 0:
        return
    if is_metric_object(value):
        found[place] = value
    elif isinstance(value, nn.Module):
        found |= {f"{place}.{name}": module for name, module in value.named_modules() if is_metric_object(module)}
    elif isinstance(value, Mapping | list | tuple):
        for key, child in children_of(value) or ():
            _collect(f"{place}[{key!r}]", child, found, depth - 1)
    elif hasattr(value, "__dict__") and not inspect.isroutine(value):
        for name, item in vars(value).items():
            _collect(f"{place}.{name}", item, found, depth - 2)


def is_metric_object(value: Any) -> bool:
    """Whether it can be updated, computed and reset."""
    return all(callable(getattr(value, name, None)) for name in ("update", "compute", "reset"))


def read_metric_object(metric: Any) -> Any:
    """A copy of what a metric object has gathered, in tensors and plain values."""
    metrics = _torchmetrics_in(metric)
    if not metrics:
        return _cloned(metric.state_dict())
    # A torchmetrics object leaves its state out of its state_dict unless told otherwise.
    return {
        place: _cloned({**each.metric_state, "_update_count": each._update_count}) for place, each in metrics.items()
    }


def write_metric_object(metric: Any, state: Any) -> None:
    """Give it what `read_metric_object` gave."""
    metrics = _torchmetrics_in(metric)
    if not metrics:
        metric.load_state_dict(_cloned(state))
        return
    for place, values in state.items():
        for name, value in values.items():
            setattr(metrics[place], name, move(_cloned(value), metrics[place].device))


def _torchmetrics_in(metric: Any) -> dict[str, Any]:
    """The objects of torchmetrics that it is made of, itself included unless it is only a collection."""
    modules = metric.named_modules() if isinstance(metric, nn.Module) else ()
    return {place: module for place, module in modules if hasattr(module, "_update_count")}


def _cloned(value: Any) -> Any:
    """Return a copy in plain containers: a checkpoint holds no other mappings, so `map_leaves` would keep too much."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _cloned(item) for key, item in value.items()}
    return type(value)(map(_cloned, value)) if type(value) in (list, tuple) else value


def _flatten(name: str, value: Any) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for keys, leaf in walk(value, is_leaf=lambda value: not isinstance(value, Mapping)):
        label = name + "".join(f"/{key}" for key in keys)
        if isinstance(leaf, Tensor) and leaf.numel() != 1:
            numbers |= {f"{label}/{index}": number for index, number in enumerate(leaf.flatten().tolist())}
        else:
            numbers[label] = float(leaf)
    return numbers
