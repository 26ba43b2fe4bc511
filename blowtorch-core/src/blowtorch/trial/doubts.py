"""Doubts of a dry run: what works, and yet looks as if a script did not mean it."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from blowtorch.data.tree import walk
from blowtorch.training.training import Training

_MOST_ROWS = 64
_MOST_NUMBERS = 10_000_000
_MOST_PAIRS = 32  # of an output and what may be its classes
_FAR_ABOVE, _FAR_BELOW = 2.0, 0.3  # times the loss of guessing
_LEAST_EXCESS = 1.0  # above the loss of guessing, which is small for two classes
_TOLERANCE = 0.01


class _BesideGuessing(NamedTuple):
    """The loss of the first step, and what guessing would give.

    Attributes:
        loss: a cross entropy.
        number: of the classes.
        best_guess: the loss of a guess that knows how often each class comes, as a bias of the last layer may.
    """

    loss: float
    number: int
    best_guess: float


class Doubts:
    """Looks at what the model gives in a dry run, and at the loss of its first step.

    Args:
        training: of the dry run.
        has_new_weights: whether nothing is known to have trained the model before.
    """

    def __init__(self, training: Training, has_new_weights: bool) -> None:
        self._training = training
        self._has_new_weights = has_new_weights
        self._outputs: list[Tensor] = []  # of the last call before the first step was done
        self._beside_guessing: _BesideGuessing | None = None
        self._are_same: list[bool] = []  # of each call after the first step: whether its output is that of any input

    def look(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any], output: Any) -> None:
        """Take note of what a call of the model was given and gave."""
        outputs = [leaf.detach() for leaf in _tensors_in(output) if leaf.is_floating_point()]
        if self._training.state.step == 0:
            self._outputs = outputs
        elif outputs:
            self._are_same.append(_ignores_input(_tensors_in((arguments, keywords)), outputs))

    def end_step(self, batch: Any, metrics: Mapping[str, Any]) -> None:
        """Compare the loss of the first step with that of guessing, if it is one of a classifier."""
        outputs, self._outputs = self._outputs, []
        loss = metrics.get(self._training.steps.loss.name)
        if self._training.state.step == 1 and isinstance(loss, Tensor | float):
            number = loss.item() if isinstance(loss, Tensor) else loss
            self._beside_guessing = _compare_with_guessing(outputs, _tensors_in(batch), number)

    def sentences(self) -> Iterator[str]:
        """Yield what there is to doubt."""
        if self._beside_guessing is not None and self._has_new_weights:
            loss, number, best_guess = self._beside_guessing
            chance = math.log(number)
            far = f"the first loss is {loss:.3g}, and to guess among {number:,} classes would give {chance:.3g}"
            if loss > _FAR_ABOVE * chance and loss > chance + _LEAST_EXCESS:
                yield f"{far}; are the inputs normalised, and the weights of the last layer small?"
            elif loss < _FAR_BELOW * best_guess:
                yield f"{far}; do the inputs tell the class, or was the model trained before?"
        if self._are_same and all(self._are_same):
            yield (
                "the output of the model does not change with its input: it is the same for all samples of a batch; "
                "is a layer dead or saturated, or the input not used?"
            )


@contextlib.contextmanager
def doubting(training: Training, has_new_weights: bool) -> Iterator[Doubts]:
    """Have the doubts of what the model gives inside; a model that is compiled as a whole is not looked at."""
    doubts, model = Doubts(training, has_new_weights), training.state.model

    def look(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        with contextlib.suppress(Exception):  # what cannot be judged is no reason for a doubt
            doubts.look(arguments, keywords, output)

    def end_step(batch: Any, metrics: Mapping[str, Any]) -> None:
        with contextlib.suppress(Exception):
            doubts.end_step(batch, metrics)

    if training.state.compiled_model is not None or isinstance(model, torch.jit.ScriptModule):
        yield doubts
        return
    training.steps.callbacks.watch_steps(end_step)
    handle = model.register_forward_hook(look, with_kwargs=True)
    try:
        yield doubts
    finally:
        handle.remove()


def _tensors_in(value: Any) -> list[Tensor]:
    return [leaf for _, leaf in walk(value) if isinstance(leaf, Tensor) and leaf.layout is torch.strided]


def _ignores_input(inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Return whether inputs differ from sample to sample, and nothing of the outputs does.

    Nothing but zeros may be a last layer that begins with zeros, and whose rate does so too.
    """
    size = next((output.shape[0] for output in outputs if output.ndim), 0)
    inputs = [tensor for tensor in inputs if tensor.ndim and tensor.shape[0] == size]
    if size < 2 or not all(output.ndim and output.shape[0] == size for output in outputs):
        return False
    is_same = all(map(_has_equal_rows, outputs)) and any(bool(output.any()) for output in outputs)
    return is_same and not all(map(_has_equal_rows, inputs))


def _has_equal_rows(tensor: Tensor) -> bool:
    most = min(_MOST_ROWS, max(2, _MOST_NUMBERS // max(1, tensor[0].numel())))
    return bool((tensor[:most] == tensor[:1]).all())


def _compare_with_guessing(outputs: list[Tensor], batch: list[Tensor], loss: float) -> _BesideGuessing | None:
    """Return the loss beside that of guessing, if it is the cross entropy of an output."""
    pairs = [(output, values) for output in outputs for values in batch if not values.is_complex()]
    for output, values in pairs[:_MOST_PAIRS]:
        for logits, targets in _readings(output, values):
            classes = logits.shape[1]
            is_within = bool(((targets < classes) & (targets >= 0) | (targets == -100)).all())
            if classes > 1 and is_within and _is_close(functional.cross_entropy(logits, targets), loss):
                counts = targets[targets >= 0].bincount(minlength=classes)
                shares = counts / counts.sum().clamp(min=1)
                return _BesideGuessing(loss, classes, -float(torch.special.xlogy(shares, shares).sum()))
        if output.numel() == values.numel() and bool(((values == 0) | (values == 1)).all()):
            wanted = values.reshape(output.shape).float()
            if _is_close(functional.binary_cross_entropy_with_logits(output.float(), wanted), loss):
                share = wanted.flatten(1).mean(0) if wanted.ndim > 1 else wanted.mean()
                chances = torch.special.xlogy(share, share) + torch.special.xlogy(1 - share, 1 - share)
                return _BesideGuessing(loss, 2, -float(chances.mean()))
    return None


def _readings(output: Tensor, values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the ways to read an output as numbers for classes, of shape (samples, classes), and values as the classes.

    Classes may come second or last; those of a text may be its words, one further than the output for them.
    """
    if values.is_floating_point() or values.dtype == torch.bool or output.ndim < 2:
        return
    targets = values.long()
    if output.shape[:-1] == targets.shape:
        yield output.flatten(0, -2).float(), targets.flatten()
    if output.ndim > 2 and (output.shape[0], *output.shape[2:]) == tuple(targets.shape):
        yield output.movedim(1, -1).flatten(0, -2).float(), targets.flatten()
    if output.ndim == 3 and targets.ndim == 2 and targets.shape[0] == output.shape[0]:
        length = targets.shape[1] - 1
        if output.shape[1] in (length, length + 1):
            yield output[:, :length].flatten(0, 1).float(), targets[:, 1:].flatten()


def _is_close(value: Tensor, loss: float) -> bool:
    return abs(value.item() - loss) <= _TOLERANCE * max(abs(loss), _TOLERANCE)
