"""Trials that belong to no run, and leave everything as it was."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from blowtorch.checkpoint.tensors import WarmCopies
from blowtorch.config.config import Config
from blowtorch.options import RunOptions
from blowtorch.record.metric_objects import find_metric_objects, put_aside
from blowtorch.script.script import Script
from blowtorch.streams import isolated_random
from blowtorch.training.lazy import left_uninitialized
from blowtorch.training.model import choose_device, compile_model
from blowtorch.training.modes import read_modes, set_modes
from blowtorch.training.workspace import Workspace, make_workspace


def detached_workspace(
    model: nn.Module, options: RunOptions, config: Config, seed: int, training: Workspace | None = None
) -> Workspace:
    """Make a workspace that belongs to no run and has no folder; the model is moved to its device.

    Args:
        model: what is tried out.
        options: those that hold.
        config: the resolved configuration.
        seed: from which every random stream is derived.
        training: of the run from within which this is asked for, which may train the same model.
    """
    device = choose_device(options.device)
    models = compile_model(model.to(device), options)
    is_trained = training is not None and training.state.model is models[0]
    modes = training.optimizer_modes if training is not None and is_trained else None
    return make_workspace(models, config, options, seed, device, optimizer_modes=modes)


@contextlib.contextmanager
def left_as_it_was(script: Script, model: nn.Module, seed: int, callbacks: Sequence[Any] = ()) -> Iterator[None]:
    """Train inside, on random streams of this seed, and have all that it changes as it was before.

    That is the model with its modules, their modes, their device and what needs gradients; metric objects; and whatever
    the script keeps, callbacks that are objects with a state among it.
    """
    structure = [(module, _members(module)) for module in model.modules()]
    needs = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    stateful: dict[str, Any] = {"model": model, **script.kept}
    for callback in callbacks:
        if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
            stateful[str(id(callback))] = callback
    before = WarmCopies().take({name: owner.state_dict() for name, owner in stateful.items()})
    modes = read_modes(model)
    device = next((parameter.device for parameter in model.parameters()), None)
    objects = {} if script.train is None else find_metric_objects(script.train.function, stateful)
    with put_aside(objects.values()), isolated_random(seed):
        try:
            with left_uninitialized(*(owner for owner in stateful.values() if isinstance(owner, nn.Module))):
                yield
        finally:
            for module, members in structure:
                for name, earlier in members.items():
                    getattr(module, name).clear()
                    getattr(module, name).update(earlier)
            for parameter, needs_gradient in needs:
                parameter.requires_grad = needs_gradient
            model.to(device)
            for name, owner in stateful.items():
                owner.load_state_dict(before[name])
            set_modes(modes)


def _members(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the modules, parameters and buffers that a module is made of, by the attributes that hold them."""
    return {name: dict(getattr(module, name)) for name in ("_modules", "_parameters", "_buffers")}
