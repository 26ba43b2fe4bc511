"""Objects as they were before something is only tried: each is put back in place, and stays the object that it is."""

import contextlib
import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from blowtorch.data.samplers import has_state
from blowtorch.errors import warn
from blowtorch.record.metric_objects import find_objects, is_metric_object, variables_of
from blowtorch.streams import GENERATORS, KeptGenerator

_MAPPINGS = (dict, OrderedDict, defaultdict)
_CONTAINERS = (*_MAPPINGS, list, set, deque)  # no subclasses, which may do more than to hold what they are given
_MOST_VALUES = 1000  # a container of more is data that is kept, unless it holds modules or what belongs to a weight
_MEMBERS = ("_modules", "_parameters", "_buffers")  # what a module consists of
_WITH_ATTRIBUTES = (nn.Module, Optimizer, LRScheduler)


class Snapshot(contextlib.AbstractContextManager[None]):
    """Objects as they were when they were added, with all that belongs to them; a `with` puts them back in its end.

    Modules, optimizers and schedulers are put back attribute by attribute: so are the tensors, containers and random
    generators among these, and what a module consists of. Anything else is asked for its state, if it has methods for
    that, or is left alone.

    Args:
        is_trained: whether weights and gradients may change. Where they cannot, they are not copied.
    """

    def __init__(self, *values: Any, is_trained: bool = True) -> None:
        self._is_trained = is_trained
        self._seen: dict[int, Any] = {}  # by identity, and held so that no other object gets the same one
        self._empty: list[Any] = []
        self._tensors: list[Tensor] = []
        self._to_put_back: list[Callable[[], None]] = []
        self._add_all(values)

    def __exit__(self, *error: object) -> None:
        self.put_back()

    def add(self, value: Any) -> None:
        """Add an object as it is now; one that was added before stays as it was then."""
        if type(value) in (int, float, str, bool, type(None)) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, _WITH_ATTRIBUTES):
            self._add_attributes(value)
        elif type(value) in _CONTAINERS:
            self._add_container(value)
        elif type(value) is tuple:
            self._add_all(value)
        elif (state := _read_state(value)) is not None:
            self._to_put_back.append(lambda: state.write(value))

    def add_whole(self, value: Any) -> None:
        """Add an object of any class; one that cannot be asked for its state has its attributes put back."""
        self.add(value)
        if not isinstance(value, (*_WITH_ATTRIBUTES, type)) and not has_state(value):
            self._add_attributes(value)

    def holds(self, value: Any) -> bool:
        """Return whether an object was added, or belongs to one that was."""
        return id(value) in self._seen

    def _add_attributes(self, owner: Any) -> None:
        if isinstance(owner, torch.jit.ScriptModule):  # what it consists of lies elsewhere
            self._add_all([*owner.parameters(), *owner.buffers()])
            return
        if not hasattr(owner, "__dict__"):
            return
        kind, attributes = type(owner), dict(owner.__dict__)
        # To judge a model changes no hooks, but those of a lazy module go once it has seen a batch.
        keeps_hooks = not self._is_trained and isinstance(owner, nn.Module) and not isinstance(owner, LazyModuleMixin)
        for name, value in attributes.items():
            if not keeps_hooks or name[:1] != "_" or name in _MEMBERS:
                self.add(value)

        def put_back() -> None:
            if type(owner) is not kind:  # a lazy module has become another
                owner.__class__ = kind
            owner.__dict__.clear()
            owner.__dict__.update(attributes)

        self._to_put_back.append(put_back)

    def put_back(self) -> None:
        """Put everything back as it was."""
        for put_back in self._to_put_back:
            put_back()
        for container in self._empty:
            container.clear()

    def versions(self) -> list[int | None]:
        """Return numbers of which one differs once somebody has changed a tensor in place."""
        return [_version(tensor) for tensor in self._tensors]

    def _add_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.add(value)

    def _add_container(self, container: Any) -> None:
        if not container:  # as are most that belong to a module
            self._empty.append(container)
            return
        content = container.copy()
        values = list(content.values() if type(container) in _MAPPINGS else content)
        if len(values) <= _MOST_VALUES or isinstance(values[0], nn.Module | nn.Parameter | dict):
            self._add_all(values)

        def put_back() -> None:
            container.clear()
            container.extend(content) if isinstance(container, list | deque) else container.update(content)

        self._to_put_back.append(put_back)

    def _add_tensor(self, tensor: Tensor) -> None:
        if is_lazy(tensor):
            lazy = type(tensor)
            self._to_put_back.append(lambda: _make_lazy(tensor, lazy))
            return
        self._tensors.append(tensor)
        memory, version = tensor.data, _version(tensor)  # the tensor shares the memory
        content = None
        if self._is_trained and not tensor.is_meta:
            content = memory.to("cpu", copy=True)  # what is tried has the memory of the device for itself
        elif not tensor.requires_grad:
            content = memory.clone()
        needs_gradient, gradient = tensor.requires_grad, tensor.grad if tensor.is_leaf else None
        if self._is_trained and gradient is not None:
            tensor.grad = None

        def put_back() -> None:
            has_moved = not _share_memory(tensor, memory)
            if has_moved:
                tensor.data = memory
            may_differ = self._is_trained or has_moved or version is None or _version(tensor) != version
            if content is not None and may_differ:
                with torch.no_grad(), torch.inference_mode(tensor.is_inference()):
                    memory.copy_(content)
            if tensor.is_leaf and tensor.requires_grad != needs_gradient:
                tensor.requires_grad_(needs_gradient)
            if tensor.is_leaf and tensor.grad is not gradient:
                tensor.grad = gradient

        self._to_put_back.append(put_back)


def _make_lazy(tensor: Tensor, kind: type) -> None:
    """Let a parameter or buffer be without a shape again, as it was before its module had seen a batch."""
    if not is_lazy(tensor):
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        tensor.grad = None
        tensor.__class__ = kind


def take_snapshot(
    model: nn.Module,
    functions: Iterable[Callable[..., Any]],
    holders_of_position: Iterable[Any],
    is_trained: bool = True,
) -> Snapshot:
    """Return a snapshot of a model and of what else functions of the script may change.

    Args:
        model: of the run.
        functions: those that are tried; modules, optimizers, schedulers, metric objects and random generators in the
            variables that they name are put back too.
        holders_of_position: what remembers how far a loader has been iterated.
        is_trained: whether weights and gradients may change.
    """
    snapshot = Snapshot(model, is_trained=is_trained)
    for function in functions:
        for value in find_objects(variables_of(function), _is_changed_by_use).values():
            snapshot.add_whole(value)
    for holder in holders_of_position:
        snapshot.add_whole(holder)
    return snapshot


def left_uninitialized(model: nn.Module) -> Snapshot:
    """Return a snapshot of what has no shape yet, so that the first step of training draws its numbers."""
    lazy = [
        module
        for module in model.modules()
        if any(map(is_lazy, [*module.parameters(recurse=False), *module.buffers(recurse=False)]))
    ]
    return Snapshot(*lazy, is_trained=False)


def _is_changed_by_use(value: Any) -> bool:
    return isinstance(value, (*_WITH_ATTRIBUTES, *GENERATORS)) or is_metric_object(value)


class _State:
    """The state of an object that can be asked for it."""

    def __init__(self, value: Any, write: Callable[[Any, Any], Any]) -> None:
        self._value = copy.deepcopy(value)
        self._write = write

    def write(self, owner: Any) -> None:
        """Give it back to the object; say so where that cannot be done."""
        try:
            self._write(owner, copy.deepcopy(self._value))
        except Exception as error:
            warn(f"a {type(owner).__name__} cannot be put back as it was before something was tried: {error}")


def _read_state(value: Any) -> _State | None:
    """Return the state of an object; None where it has none, or does not tell."""
    if isinstance(value, type | DataLoader):
        return None  # of a loader, a copy is iterated
    try:
        if isinstance(value, np.ndarray):
            return _State(value, np.copyto)
        if isinstance(value, GENERATORS):
            kept = KeptGenerator(value)
            return _State(kept.state_dict(), lambda _, state: kept.load_state_dict(state))
        if has_state(value):
            return _State(value.state_dict(), lambda owner, state: owner.load_state_dict(state))
    except Exception:  # whatever the author of the object raises, it has to show where the object is used
        return None
    return None


def _version(tensor: Tensor) -> int | None:
    """Return a number that each change of the tensor in place increases; None where there is none."""
    return None if tensor.is_inference() else tensor._version


def _share_memory(tensor: Tensor, memory: Tensor) -> bool:
    if tensor.layout is not torch.strided or memory.layout is not torch.strided:
        return False
    one, other = ((each.device, each.dtype, each.shape, each.stride()) for each in (tensor, memory))
    return one == other and tensor.data_ptr() == memory.data_ptr()
