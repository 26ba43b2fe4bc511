"""Metric objects that steps update and return, such as those of torchmetrics: computed at the end, and saved.

An object is one if it has the methods `update`, `compute` and `reset`; torchmetrics itself is never imported.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from blowtorch.data.tree import children_of, move, walk
from blowtorch.errors import CheckpointError, ScriptError
from blowtorch.parallel.world import World


class MetricObjects:
    """The metric objects that a step has returned, by the name under which it returned them.

    Args:
        find: returns all objects that a step may return, by the place where each lies; None where nothing is saved. A
            run that continues restores an object before the step updates it. The step has not returned it by then, so
            only its place tells which one it is.
        world: the processes, whose objects are brought together when they are computed: by torchmetrics itself, or by
            a method `merge_state` that takes the objects of the other processes, as those of torcheval have.
    """

    def __init__(self, find: Callable[[], Mapping[str, Any]] | None = None, world: World | None = None) -> None:
        self._world = world or World()
        self._find = find
        self._returned: dict[str, Any] = {}
        self._places: dict[str, str] = {}

    def add(self, name: str, metric: Any) -> None:
        """Note an object that the step returned under a name.

        Raises:
            ScriptError: a run that continues could not restore it, or the objects of several processes cannot be
                brought together.
        """
        if self._returned.get(name) is metric:
            return
        if self._world.is_shared and not _can_be_joined(metric):
            raise ScriptError(
                f"the metric object returned as {name!r}, a {type(metric).__name__}, has no method "
                f"merge_state(others), so what {self._world.size} processes have gathered cannot be brought together"
            )
        if self._find is not None:
            self._places[name] = _place_of(name, metric, self._find())
        self._returned[name] = metric

    def compute(self) -> dict[str, float]:
        """Return the value of each object; a mapping or a tensor of several elements makes several values.

        Raises:
            ScriptError: a process has had no samples, and so no object to be brought together with the others.
        """
        values: dict[str, float] = {}
        for name in self._names_of_all():
            values |= _flatten(name, self._of_all(self._returned[name]).compute())
        return self._world.decide(lambda: values)

    def _names_of_all(self) -> list[str]:
        if not self._world.is_shared:
            return [*self._returned]
        first, *others = self._world.gather(sorted(self._returned))
        for rank, names in enumerate(others, 1):
            if names != first:
                self._world.refuse(
                    ScriptError(
                        f"processes 0 and {rank} have returned the metric objects {first} and {names}, so they cannot "
                        f"be brought together; does one of them have no samples, since there are so few?"
                    )
                )
        return first

    def _of_all(self, metric: Any) -> Any:
        """Return an object that computes what those of all processes have gathered."""
        if not self._world.is_shared or _torchmetrics_in(metric):  # which bring their processes together themselves
            return metric
        joined, *others = self._world.gather(metric)
        joined.merge_state(others)
        return joined

    def put_aside(self) -> contextlib.AbstractContextManager[None]:
        """Reset the objects, and restore their values at the end, so that something else can use them inside."""
        by_place = {} if self._find is None else self._find()  # objects that the step has not returned yet, too
        metrics = (*self._returned.values(), *by_place.values())
        return put_aside({id(metric): metric for metric in metrics}.values())

    def reset(self) -> None:
        """Reset every object that was returned, and forget it."""
        for metric in self._returned.values():
            metric.reset()
        self._returned.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return place and values of each object, by the name under which it was returned."""
        return {
            name: [self._places[name], read_metric_object(metric)]
            for name, metric in self._returned.items()
            if name in self._places
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the values of each object at its place.

        Raises:
            CheckpointError: there is no metric object at one of the places.
        """
        by_place = self._find() if state and self._find is not None else {}
        for name, (place, values) in state.items():
            if place not in by_place:
                raise CheckpointError(f"there is no metric object at {place}, which was returned as {name!r}")
            write_metric_object(by_place[place], values)
            self._returned[name], self._places[name] = by_place[place], place


@contextlib.contextmanager
def put_aside(metrics: Iterable[Any]) -> Iterator[None]:
    """Reset metric objects, and restore their values at the end, so that something else can use them inside."""
    kept = [(metric, read_metric_object(metric)) for metric in metrics if _has_state(metric)]
    for metric, _ in kept:
        metric.reset()
    try:
        yield
    finally:
        for metric, state in kept:
            write_metric_object(metric, state)


def _place_of(name: str, metric: Any, by_place: Mapping[str, Any]) -> str:
    if not _has_state(metric):
        raise ScriptError(
            f"the metric object returned as {name!r} has no state_dict and load_state_dict, so a run that is stopped "
            f"would forget what it has gathered"
        )
    for place, candidate in by_place.items():
        if candidate is metric:
            return place
    raise ScriptError(
        f"the metric object returned as {name!r} could not be found again when the run is continued; keep it in a "
        f"variable that the step names, or in the model"
    )


def _can_be_joined(metric: Any) -> bool:
    return bool(_torchmetrics_in(metric)) or callable(getattr(metric, "merge_state", None))


def _has_state(metric: Any) -> bool:
    return all(callable(getattr(metric, name, None)) for name in ("state_dict", "load_state_dict"))


def find_metric_objects(function: Callable[..., Any], roots: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metric objects in the variables that a function names and in `roots`, by the place where each lies."""
    return find_objects({**variables_of(function), **roots}, is_metric_object)


def variables_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the variables that a function names, and what it is a method of."""
    function = inspect.unwrap(function)
    variables: dict[str, Any] = {"self": getattr(function, "__self__", function)}
    plain = getattr(function, "__func__", function)
    if inspect.isfunction(plain):
        named = inspect.getclosurevars(plain)
        variables |= {**named.globals, **named.nonlocals}
    return variables


def find_objects(roots: Mapping[str, Any], is_wanted: Callable[[Any], bool]) -> dict[str, Any]:
    """Return what is wanted inside of `roots`, by the place where each lies."""
    by_place: dict[str, Any] = {}
    for place, value in roots.items():
        _collect(place, value, is_wanted, by_place, depth=2)
    return by_place


def _collect(place: str, value: Any, is_wanted: Callable[[Any], bool], by_place: dict[str, Any], depth: int) -> None:
    """Add what is wanted inside of a value; an attribute costs two of the depth, an item one."""
    if isinstance(value, type | ModuleType) or depth < 0:
        return
    if is_wanted(value):
        by_place[place] = value
    elif isinstance(value, nn.Module):
        modules = {f"{place}.{name}": module for name, module in value.named_modules()}
        by_place |= {name: module for name, module in modules.items() if is_wanted(module)}
    elif isinstance(value, Mapping | list | tuple):
        for key, child in children_of(value) or ():
            _collect(f"{place}[{key!r}]", child, is_wanted, by_place, depth - 1)
    elif hasattr(value, "__dict__") and not inspect.isroutine(value):
        for name, item in vars(value).items():
            _collect(f"{place}.{name}", item, is_wanted, by_place, depth - 2)


def is_metric_object(value: Any) -> bool:
    """Return whether a value has the methods `update`, `compute` and `reset`."""
    return all(callable(getattr(value, name, None)) for name in ("update", "compute", "reset"))


def read_metric_object(metric: Any) -> Any:
    """Return a copy of the values that a metric object has gathered, in tensors and plain values."""
    metrics = _torchmetrics_in(metric)
    if not metrics:
        return _cloned(metric.state_dict())
    # A torchmetrics object leaves its state out of its state_dict unless told otherwise.
    return {
        name: _cloned({**member.metric_state, "_update_count": member._update_count})
        for name, member in metrics.items()
    }


def write_metric_object(metric: Any, state: Any) -> None:
    """Restore the values that `read_metric_object` returned."""
    metrics = _torchmetrics_in(metric)
    if not metrics:
        metric.load_state_dict(_cloned(state))
        return
    for name, values in state.items():
        for attribute, value in values.items():
            setattr(metrics[name], attribute, move(_cloned(value), metrics[name].device))


def _torchmetrics_in(metric: Any) -> dict[str, Any]:
    """Return the torchmetrics objects that a metric object consists of: itself, or the members of a collection."""
    modules = metric.named_modules() if isinstance(metric, nn.Module) else ()
    return {name: module for name, module in modules if hasattr(module, "_update_count")}


def _cloned(value: Any) -> Any:
    """Return a copy whose mappings are dicts: a checkpoint holds no others, and `map_leaves` would keep their types."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _cloned(item) for key, item in value.items()}
    return type(value)(map(_cloned, value)) if type(value) in (list, tuple) else value


def _flatten(name: str, value: Any) -> dict[str, float]:
    """Return the numbers in the value of a metric object, each under a name of its own."""
    numbers: dict[str, float] = {}
    for keys, leaf in walk(value, is_leaf=lambda value: not isinstance(value, Mapping)):
        label = name + "".join(f"/{key}" for key in keys)
        if isinstance(leaf, Tensor) and leaf.numel() != 1:
            numbers |= {f"{label}/{index}": number for index, number in enumerate(leaf.flatten().tolist())}
        else:
            numbers[label] = float(leaf)
    return numbers
