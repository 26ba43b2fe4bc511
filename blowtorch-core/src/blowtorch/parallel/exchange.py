"""Gradients are added up over all processes."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from blowtorch.parallel.world import World

_BUCKET_BYTES = 25 * 2**20  # as much as torch's DistributedDataParallel sends at a time
_EXACT = (torch.float32, torch.float64)  # in which whole numbers up to 2²⁴ can be added up


class Exchange:
    """Adds gradients up over all processes, with some numbers, in as few messages as there are buckets of gradients.

    The last bucket carries the numbers, and for each parameter whether the process has a gradient of it: one that no
    process has a gradient of keeps none. Gradients that hold a few rows only are sent by themselves, once it is known
    which these are.

    Args:
        world: the processes.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._sparse: set[int] = set()  # the parameters, by identity, of which some process has had a sparse gradient

    def add_up(self, parameters: Sequence[Tensor], numbers: Sequence[float] = ()) -> list[float]:
        """Put the sum of all processes' gradients in the place of each, and return the sums of the numbers.

        Args:
            parameters: the same ones in the same order on each process.
            numbers: as many on each.
        """
        dense = [parameter for parameter in parameters if id(parameter) not in self._sparse]
        buckets = [*_buckets(dense)]
        for bucket in buckets[:-1]:
            self._add_bucket(bucket, [])
        found_dense = [parameter.grad is not None and not parameter.grad.is_sparse for parameter in parameters]
        found_sparse = [parameter.grad is not None and parameter.grad.is_sparse for parameter in parameters]
        sums = self._add_bucket(buckets[-1] if buckets else [], [*numbers, *found_dense, *found_sparse])
        count = len(numbers)
        for parameter, num_dense, num_sparse in zip(
            parameters, sums[count : count + len(parameters)], sums[count + len(parameters) :], strict=True
        ):
            if num_sparse or id(parameter) in self._sparse:
                self._sparse.add(id(parameter))
                parameter.grad = self._add_sparse(parameter)
            elif not num_dense:
                parameter.grad = None
        return sums[:count]

    def _add_bucket(self, parameters: Sequence[Tensor], numbers: Sequence[float]) -> list[float]:
        """Add up the gradients of some parameters of one device and type, and numbers."""
        carries_numbers = bool(parameters) and parameters[0].is_cpu and parameters[0].dtype in _EXACT
        gradients = [_dense_gradient(parameter) for parameter in parameters]
        flat = [gradient.reshape(-1) for gradient in gradients]
        tail = torch.tensor(numbers, dtype=parameters[0].dtype if carries_numbers else torch.float64)
        if carries_numbers:
            flat.append(tail)
        elif numbers:
            self._world.add_up(tail)  # over the host, so that no device is waited for
        if parameters:
            message = torch.cat(flat)
            self._world.add_up(torch.view_as_real(message) if message.is_complex() else message)
            pieces = message.split([piece.numel() for piece in flat])
            for parameter, gradient, piece in zip(parameters, gradients, pieces, strict=False):
                if parameter.grad is None or not parameter.grad.is_sparse:
                    parameter.grad = gradient.copy_(piece.view(gradient.shape))
            tail = pieces[-1] if carries_numbers else tail
        return list(tail.tolist())

    def _add_sparse(self, parameter: Tensor) -> Tensor | None:
        """Return the sum of gradients of which some hold a few rows only; a dense one among them makes it dense."""
        total: Tensor | None = None
        for gradient in self._world.gather(None if parameter.grad is None else _portable(parameter.grad)):
            if gradient is not None:
                total = gradient if total is None else total + gradient
        if total is None:
            return None
        return (total.coalesce() if total.is_sparse else total).to(parameter.device)


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield parameters of one device and type together, as many as are sent at a time; those with numbers last."""
    waiting: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    sizes: dict[tuple[torch.device, torch.dtype], int] = {}
    for parameter in parameters:
        key = (parameter.device, parameter.dtype)
        waiting.setdefault(key, []).append(parameter)
        sizes[key] = sizes.get(key, 0) + parameter.numel() * parameter.element_size()
        if sizes[key] >= _BUCKET_BYTES:
            yield waiting.pop(key)
            del sizes[key]
    yield from sorted(waiting.values(), key=lambda bucket: bucket[0].dtype in _EXACT)


def _dense_gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None or parameter.grad.is_sparse:
        return torch.zeros_like(parameter)
    return parameter.grad


def _portable(gradient: Tensor) -> Tensor:
    gradient = gradient.detach().cpu()
    return gradient.coalesce() if gradient.is_sparse else gradient
