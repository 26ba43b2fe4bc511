"""Trials that belong to no run, and leave everything as it was."""

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from blowtorch.config.config import Config
from blowtorch.data.sources import holders_of_position
from blowtorch.options import RunOptions
from blowtorch.parallel.world import World
from blowtorch.record.metric_objects import find_metric_objects, put_aside
from blowtorch.script.script import Script
from blowtorch.streams import isolated_random
from blowtorch.training.model import choose_device, set_up_model
from blowtorch.training.snapshot import Snapshot, take_snapshot
from blowtorch.training.workspace import Surroundings, Workspace, make_workspace


def detached_workspace(
    model: nn.Module,
    options: RunOptions,
    config: Config,
    seed: int,
    world: World,
    training: Workspace | None = None,
) -> Workspace:
    """Make a workspace that belongs to no run and has no folder; the model is moved to its device.

    Args:
        model: what is tried out.
        options: those that hold.
        config: the resolved configuration.
        seed: from which every random stream is derived.
        world: the processes that take part.
        training: of the run from within which this is asked for, which may train the same model.
    """
    surroundings = Surroundings(seed, choose_device(options, world), world)
    models, _ = set_up_model(model, options, surroundings)
    is_trained = training is not None and training.state.model is models[0]
    modes = training.optimizer_modes if training is not None and is_trained else None
    return make_workspace(models, config, options, surroundings, optimizer_modes=modes)


@contextlib.contextmanager
def left_as_it_was(
    script: Script, model: nn.Module, seed: int, loaders: Iterable[Any], callbacks: Sequence[Any] = ()
) -> Iterator[None]:
    """Train inside, on random streams of this seed, and have all that it changes as it was before.

    That is the model with its modules, buffers, gradients, modes, device and attributes; modules, optimizers,
    schedulers, random generators and metric objects that the script has made itself; what the script keeps; callbacks
    that are objects; and streams and samplers, which go on from where they stood.
    """
    functions = [function.function for function in script.functions()]
    snapshot = take_snapshot(model, functions, [holder for loader in loaders for holder in _holders(loader)])
    for value in (script.kept, *script.kept.values()):
        snapshot.add(value)
    for callback in callbacks:
        if not isinstance(callback, str | Mapping):
            snapshot.add_whole(callback)
    for optimizer in _find_alive(Optimizer, lambda optimizer: _trains_some_of(snapshot, optimizer)):
        snapshot.add(optimizer)
    for scheduler in _find_alive(LRScheduler, lambda scheduler: snapshot.holds(scheduler.optimizer)):
        snapshot.add(scheduler)
    roots = {"model": model, **script.kept}
    objects = {} if script.train is None else find_metric_objects(script.train.function, roots)
    with snapshot, put_aside(objects.values()), isolated_random(seed):
        yield


def _holders(loader: Any) -> list[Any]:
    """Return what remembers how far a loader has been iterated, or each of several that are called by name."""
    loaders = loader.values() if isinstance(loader, Mapping) else [loader]
    return [holder for loader in loaders if loader is not None for holder in holders_of_position(loader)]


def _find_alive(kind: type, is_wanted: Callable[[Any], bool]) -> list[Any]:
    """Return the objects of a kind that are alive, wherever the script keeps them."""
    tracked = gc.get_objects()
    kinds = {subclass for subclass in set(map(type, tracked)) if issubclass(subclass, kind)}
    alive = [candidate for candidate in tracked if type(candidate) in kinds] if kinds else []
    return [candidate for candidate in alive if is_wanted(candidate)]


def _trains_some_of(snapshot: Snapshot, optimizer: Any) -> bool:
    """Return whether an optimizer changes a weight that the snapshot holds."""
    groups = getattr(optimizer, "param_groups", ())  # another thread may be making it right now
    return any(snapshot.holds(parameter) for group in groups for parameter in group["params"])
