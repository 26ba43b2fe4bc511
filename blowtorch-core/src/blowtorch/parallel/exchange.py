"""Gradients are added up over all processes."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from blowtorch.parallel.world import World

_BUCKET_BYTES = 25 * 2**20  # as much as torch's DistributedDataParallel sends at a time

_NONE, _DENSE, _SPARSE = 0, 1, 2  # what a process has of a gradient


def add_up_gradients(world: World, parameters: Sequence[Tensor], numbers: Sequence[float]) -> list[float]:
    """Put the sum of all processes' gradients in the place of each; a parameter that has none anywhere keeps none.

    Args:
        world: the processes.
        parameters: the same ones in the same order on each of them.
        numbers: to be added up along with them.

    Returns:
        The sums of the numbers, added in the order of the processes.
    """
    kinds = [_kind(parameter) for parameter in parameters]
    rows = world.gather_numbers([*numbers, *kinds])
    columns = list(zip(*rows, strict=True))
    dense = []
    for parameter, found in zip(parameters, columns[len(numbers) :], strict=True):
        if _SPARSE in found:
            parameter.grad = _add_sparse(world, parameter)
        elif _DENSE in found:
            dense.append(parameter)
    for bucket in _buckets(dense):
        _add_bucket(world, bucket)
    return [sum(column) for column in columns[: len(numbers)]]


def _kind(parameter: Tensor) -> int:
    if parameter.grad is None:
        return _NONE
    return _SPARSE if parameter.grad.is_sparse else _DENSE


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield parameters of one device and one type together, as many as are sent at a time."""
    waiting: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    sizes: dict[tuple[torch.device, torch.dtype], int] = {}
    for parameter in parameters:
        key = (parameter.device, parameter.dtype)
        waiting.setdefault(key, []).append(parameter)
        sizes[key] = sizes.get(key, 0) + parameter.numel() * parameter.element_size()
        if sizes[key] >= _BUCKET_BYTES:
            yield waiting.pop(key)
            del sizes[key]
    yield from waiting.values()


def _add_bucket(world: World, parameters: Sequence[Tensor]) -> None:
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    world.add_up(torch.view_as_real(flat) if flat.is_complex() else flat)
    for parameter, gradient, summed in zip(parameters, gradients, _split(flat, gradients), strict=True):
        parameter.grad = gradient.copy_(summed)


def _split(flat: Tensor, like: Sequence[Tensor]) -> Iterator[Tensor]:
    pieces = flat.split([tensor.numel() for tensor in like])
    return (piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True))


def _add_sparse(world: World, parameter: Tensor) -> Tensor:
    """Return the sum of gradients of which some hold a few rows only; a dense one among them makes it dense."""
    own = None if parameter.grad is None else _portable(parameter.grad)
    total: Tensor | None = None
    for gradient in world.gather(own):
        if gradient is not None:
            total = gradient if total is None else total + gradient
    assert total is not None
    return (total.coalesce() if total.is_sparse else total).to(parameter.device)


def _portable(gradient: Tensor) -> Tensor:
    gradient = gradient.detach().cpu()
    return gradient.coalesce() if gradient.is_sparse else gradient
