"""Gradients are added up over all processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from blowtorch.parallel.world import World

_EXACT = (torch.float32, torch.float64)  # in which whole numbers up to 2²⁴ can be added up


class Exchange:
    """Adds gradients up over all processes, with some numbers, in as few messages as there are buckets of gradients.

    All send the buckets in one order, those of the last layers first, since the backward comes to these first; after
    `begin`, each is on its way while the backward makes the next. The last one carries the numbers, and for each
    parameter whether the process has a gradient of it: one that no process has a gradient of keeps none. Gradients that
    hold a few rows only are sent by themselves, once it is known which these are.

    Args:
        world: the processes.
        bucket_bytes: so many bytes of gradients are sent at a time.

    Attributes:
        sends_early: whether there is anything to send before the backward ends, and nothing speaks against it.
    """

    sends_early = False

    def __init__(self, world: World, bucket_bytes: int) -> None:
        self._world = world
        self._bucket_bytes = bucket_bytes
        self._sparse: set[int] = set()  # the parameters, by identity, of which some process has had a sparse gradient
        self._early: list[_Bucket] = []  # that the backward sends, all but the last one of the step
        self._bucket_of: dict[int, _Bucket] = {}  # of each parameter, by identity, while the backward sends
        self._hooks: dict[int, Any] = {}  # by which the backward tells of a gradient, of parameters by identity
        self._is_refused = False

    def begin(self, parameters: Sequence[Tensor]) -> None:
        """Send what is complete during the backward that follows, which is the last one before `add_up`.

        Args:
            parameters: those that `add_up` will be given.
        """
        self._early = self._make_buckets(parameters)[:-1]
        self._bucket_of = {id(parameter): bucket for bucket in self._early for parameter in bucket.parameters}
        for bucket in self._early:
            for parameter in bucket.parameters:
                if id(parameter) not in self._hooks and parameter.requires_grad:
                    self._hooks[id(parameter)] = parameter.register_post_accumulate_grad_hook(self._take_note)

    def _take_note(self, parameter: Tensor) -> None:
        """Send the buckets that are complete with the gradient of this parameter, in their order."""
        bucket = self._bucket_of.get(id(parameter))
        if bucket is None:
            return
        bucket.note(parameter)
        for each in self._early:
            if each.is_sent:
                continue
            if not each.is_complete:
                return
            each.send(self._world)

    def add_up(self, parameters: Sequence[Tensor], numbers: Sequence[float] = ()) -> list[float]:
        """Put the sum of all processes' gradients in the place of each, and return the sums of the numbers.

        Args:
            parameters: the same ones in the same order on each process.
            numbers: as many on each.
        """
        buckets = self._make_buckets(parameters)
        buckets[: len(self._early)] = self._early
        is_late = any(bucket.is_late for bucket in self._early)
        self._early, self._bucket_of = [], {}
        found_dense = [parameter.grad is not None and not parameter.grad.is_sparse for parameter in parameters]
        found_sparse = [parameter.grad is not None and parameter.grad.is_sparse for parameter in parameters]
        for bucket in buckets[:-1]:
            if not bucket.is_sent:
                bucket.send(self._world)
        told = buckets[-1].send_with([*numbers, is_late, *found_dense, *found_sparse], self._world)
        sums, num_late = told[: len(numbers)], told[len(numbers)]
        self._is_refused |= bool(num_late)
        self.sends_early = len(buckets) > 1 and not self._is_refused
        if num_late:
            return self.add_up(parameters, numbers)
        for bucket in buckets:
            bucket.receive()
        flags = told[len(numbers) + 1 :]
        for parameter, num_dense, num_sparse in zip(
            parameters, flags[: len(parameters)], flags[len(parameters) :], strict=True
        ):
            if num_sparse or id(parameter) in self._sparse:
                self._sparse.add(id(parameter))
                parameter.grad = self._add_sparse(parameter)
            elif not num_dense:
                parameter.grad = None
        return sums

    def close(self) -> None:
        """Leave the parameters as they were found."""
        for hook in self._hooks.values():
            hook.remove()

    def _make_buckets(self, parameters: Sequence[Tensor]) -> "list[_Bucket]":
        dense = [parameter for parameter in reversed(parameters) if id(parameter) not in self._sparse]
        return [_Bucket(each) for each in _group(dense, self._bucket_bytes)] or [_Bucket([])]

    def _add_sparse(self, parameter: Tensor) -> Tensor | None:
        """Return the sum of gradients of which some hold a few rows only; a dense one among them makes it dense."""
        total: Tensor | None = None
        for gradient in self._world.gather(None if parameter.grad is None else _portable(parameter.grad)):
            if gradient is not None:
                total = gradient if total is None else total + gradient
        if total is None:
            return None
        return (total.coalesce() if total.is_sparse else total).to(parameter.device)


class _Bucket:
    """The gradients of parameters of one device and type, which are sent together.

    Attributes:
        is_late: a gradient was added to after it was sent, as where activations are computed again by a backward of
            their own, so that all has to be sent anew. Until `receive`, the gradients are those of this process.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.is_late = False
        self._missing = {id(parameter) for parameter in parameters}
        self._gradients: list[Tensor] = []
        self._message: Tensor | None = None
        self._wait: Callable[[], None] | None = None

    @property
    def is_sent(self) -> bool:
        """Whether the gradients are on their way, as they were then."""
        return self._wait is not None

    @property
    def is_complete(self) -> bool:
        """Whether the backward has made every gradient."""
        return not self._missing

    def note(self, parameter: Tensor) -> None:
        """Take note that the backward has made a gradient."""
        self._missing.discard(id(parameter))
        self.is_late |= self.is_sent

    def send(self, world: World) -> None:
        """Send the gradients, without waiting for the sums."""
        self._gradients = [_dense_gradient(parameter) for parameter in self.parameters]
        if self._gradients:
            self._message = torch.cat([gradient.reshape(-1) for gradient in self._gradients])
            self._wait = world.begin_sum(_real(self._message))

    def send_with(self, numbers: Sequence[float], world: World) -> list[float]:
        """Send the gradients and numbers; return the sums of the numbers over all processes."""
        if not self.parameters or not self.parameters[0].is_cpu or self.parameters[0].dtype not in _EXACT:
            tail = torch.tensor(numbers, dtype=torch.float64)
            self.send(world)
            world.add_up(tail)  # over the host, so that no device is waited for
            return list(tail.tolist())
        self._gradients = [_dense_gradient(parameter) for parameter in self.parameters]
        tail = torch.tensor(numbers, dtype=self.parameters[0].dtype)
        message = torch.cat([*(gradient.reshape(-1) for gradient in self._gradients), tail])
        world.add_up(message)
        self._message = message[: -len(numbers)]
        return list(message[-len(numbers) :].tolist())

    def receive(self) -> None:
        """Put the sums in the places of the gradients."""
        if self._wait is not None:
            self._wait()
        if self._message is None:
            return
        pieces = self._message.split([gradient.numel() for gradient in self._gradients])
        for parameter, gradient, piece in zip(self.parameters, self._gradients, pieces, strict=True):
            if parameter.grad is None or not parameter.grad.is_sparse:
                parameter.grad = gradient.copy_(piece.view(gradient.shape))


def _group(parameters: Sequence[Tensor], bucket_bytes: int) -> Iterator[list[Tensor]]:
    """Yield parameters of one device and type together, as many as are sent at a time; those with numbers last."""
    waiting: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    sizes: dict[tuple[torch.device, torch.dtype], int] = {}
    for parameter in parameters:
        key = (parameter.device, parameter.dtype)
        waiting.setdefault(key, []).append(parameter)
        sizes[key] = sizes.get(key, 0) + parameter.numel() * parameter.element_size()
        if sizes[key] >= bucket_bytes:
            yield waiting.pop(key)
            del sizes[key]
    yield from sorted(waiting.values(), key=lambda bucket: bucket[0].dtype in _EXACT)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _dense_gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None or parameter.grad.is_sparse:
        return torch.zeros_like(parameter)
    return parameter.grad


def _portable(gradient: Tensor) -> Tensor:
    gradient = gradient.detach().cpu()
    return gradient.coalesce() if gradient.is_sparse else gradient
