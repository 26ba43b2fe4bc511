"""In which mode each module of a model is, and each optimizer that has modes: training or evaluation.

A module may have a method `train` of its own, which keeps a BatchNorm in evaluation mode or merges weights, say. It is
called as by `model.train()` and `model.eval()`. One that does something else, such as training on data that it is
given, is not called.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

ModulesInModes = Sequence[tuple[nn.Module, bool]]  # parents before their parts; True for training


def read_modes(model: nn.Module) -> ModulesInModes:
    """Return each module of a model with whether it is in training mode."""
    return [(module, module.training) for module in model.modules()]


def put_in_training_mode(model: nn.Module) -> None:
    """Have a model in training mode, but for those of its modules that are in evaluation mode: they stay so."""
    modes = read_modes(model)
    _ask_for_training(model)
    set_modes([(module, is_training) for module, is_training in modes if not is_training])


def begin_evaluation(model: nn.Module) -> None:
    """Have a whole model in evaluation mode."""
    if _is_own(model, "eval") and not inspect.signature(model.eval).parameters:
        model.eval()
    _ask_for_evaluation(model)
    for module in model.modules():
        module.training = False


def set_modes(modes: ModulesInModes) -> None:
    """Have each of these modules in its mode."""
    for module, is_training in modes:
        if module.training != is_training and _has_own_train(module):
            module.train(is_training)  # which may change the modes of its parts
    for module, is_training in modes:
        module.training = is_training


def find_evaluating(model: nn.Module) -> Iterator[str]:
    """Yield the names of the outermost modules that are in evaluation mode as a whole; an empty one for the model."""
    evaluating = {id(module) for module, is_training in read_modes(model) if not is_training}
    whole = {
        name: all(id(part) in evaluating for part in module.modules())
        for name, module in model.named_modules(remove_duplicate=False)
    }
    for name, is_whole in whole.items():
        if is_whole and not (name and whole[name.rpartition(".")[0]]):
            yield name


def _ask_for_training(module: nn.Module) -> None:
    if module.training and _has_own_train(module):
        module.train(True)
    else:
        for child in module.children():
            _ask_for_training(child)


def _ask_for_evaluation(module: nn.Module) -> None:
    if _has_own_train(module):
        module.train(False)
    else:
        for child in module.children():
            _ask_for_evaluation(child)


def _has_own_train(module: nn.Module) -> bool:
    """Return whether a module has a `train` of its own that takes what torch's does: a mode, whatever it is called."""
    if not _is_own(module, "train"):
        return False
    signature = inspect.signature(module.train)
    try:
        signature.bind(True)
    except TypeError:
        return False
    parameters: list[Any] = list(signature.parameters.values())
    return any(
        parameter.kind is parameter.VAR_POSITIONAL or isinstance(parameter.default, bool) or "mode" in parameter.name
        for parameter in parameters
    )


def _is_own(module: nn.Module, method: str) -> bool:
    return method in vars(module) or getattr(type(module), method) is not getattr(nn.Module, method)


class OptimizerModes:
    """The modes of optimizers that have weights for judging besides those for training: methods `train` and `eval`.

    Args:
        optimizers: by name; those that have no such methods are left alone.
    """

    def __init__(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers
        self._are_training = False

    def begin_training(self) -> None:
        """Have the weights for training in the model; to be called before a state is loaded, which is of this mode."""
        for optimizer in self._find():
            optimizer.train()
        self._are_training = True

    def end_training(self) -> None:
        """Leave the weights for judging in the model."""
        for optimizer in self._find():
            optimizer.eval()
        self._are_training = False

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Have the weights for judging in the model, and then those for training again, bit for bit.

        Optimizers compute one from the other, so they come back only nearly to where they were.
        """
        if not self._are_training or not self._find():
            yield
            return
        parameters = [parameter for parameter in self._find_parameters() if not is_lazy(parameter)]
        kept = [parameter.detach().clone() for parameter in parameters]
        self.end_training()
        try:
            yield
        finally:
            self.begin_training()
            for parameter, values in zip(parameters, kept, strict=True):
                parameter.detach().copy_(values)

    def read_judged(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return copies of the weights for judging, by their names in a model, where they differ from those in it."""
        if not self._are_training or not self._find():
            return {}
        with self.evaluating():
            parameters = [parameter for parameter in self._find_parameters() if not is_lazy(parameter)]
            copies = {id(parameter): parameter.detach().clone() for parameter in parameters}
            names = {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}
            return {name: copies[key] for name, key in names.items() if key in copies}

    def _find(self) -> list[Any]:
        return [
            optimizer
            for optimizer in self._optimizers.values()
            if callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))
        ]

    def _find_parameters(self) -> Iterator[nn.Parameter]:
        for optimizer in self._find():
            for group in optimizer.param_groups:
                yield from group["params"]
