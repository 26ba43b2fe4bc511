"""Gradients are added up over all processes."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from blowtorch.parallel.world import World

_EXACT = (torch.float32, torch.float64)  # in which whole numbers up to 2²⁴ can be added up


class Exchange:
    """Adds gradients up over all processes, with some numbers, in as few messages as there are buckets of gradients.

    All send the buckets in one order, those of the last layers first, since the backward comes to these first; after
    `begin`, each is on its way while the backward makes the next. The last one carries the numbers, and for each
    parameter whether the process has a gradient of it: one that no process has a gradient of keeps none, and is left
    out of the buckets until one has. Gradients that hold a few rows only are sent by themselves, once it is known which
    these are.

    Args:
        world: the processes.
        bucket_bytes: so many bytes of gradients are sent at a time.

    Attributes:
        can_send_early: whether there is anything to send before the backward ends, and nothing speaks against it.
    """

    can_send_early = False

    def __init__(self, world: World, bucket_bytes: int) -> None:
        self._world = world
        self._bucket_bytes = bucket_bytes
        self._sparse: set[Tensor] = set()  # of which some process has had a sparse gradient
        self._idle: set[Tensor] = set()  # of which no process had a gradient the last time
        self._early: list[_Bucket] = []  # that the backward sends, all but the last one of the step
        self._bucket_of: dict[Tensor, _Bucket] = {}  # of each parameter, while the backward sends
        self._hooks: dict[Tensor, Any] = {}  # by which the backward tells of the gradient of a parameter
        self._changes_late = False

    def begin(self, parameters: Sequence[Tensor]) -> None:
        """Send what is complete during the backward that follows, which is the last one before `add_up`.

        Between the two, this process may reach the others in no other way.

        Args:
            parameters: those that `add_up` will be given.
        """
        self._early = self._make_buckets(parameters)[:-1]
        self._bucket_of = {parameter: bucket for bucket in self._early for parameter in bucket.parameters}
        for parameter in self._bucket_of:
            if parameter not in self._hooks and parameter.requires_grad:
                self._hooks[parameter] = parameter.register_post_accumulate_grad_hook(self._mark_made)

    def _mark_made(self, parameter: Tensor) -> None:
        """Send the buckets that are complete with the gradient of this parameter, in their order."""
        bucket = self._bucket_of.get(parameter)
        if bucket is None:
            return
        bucket.missing.discard(parameter)
        for following in self._early:
            if following.is_sent:
                continue
            if following.missing:
                return
            following.send(self._world)

    def add_up(self, parameters: Sequence[Tensor], numbers: Sequence[float] = ()) -> list[float]:
        """Put the sum of all processes' gradients in the place of each, and return the sums of the numbers.

        Args:
            parameters: the same ones in the same order on each process.
            numbers: as many on each.
        """
        buckets = self._make_buckets(parameters)
        buckets[: len(self._early)] = self._early
        is_outdated = any(bucket.is_outdated for bucket in self._early)
        self._early, self._bucket_of = [], {}
        for bucket in buckets[:-1]:
            if not bucket.is_sent:
                bucket.send(self._world)
        kinds = [_kind_of(parameter) for parameter in parameters]
        kinds_told = [kind == wanted for wanted in ("dense", "sparse") for kind in kinds]
        totals = buckets[-1].send_with([*numbers, is_outdated, *kinds_told], self._world)
        sums, num_outdated, counts = totals[: len(numbers)], totals[len(numbers)], totals[len(numbers) + 1 :]
        self._changes_late |= bool(num_outdated)
        self.can_send_early = len(buckets) > 1 and not self._changes_late
        if num_outdated:  # what the parameters have is still their own
            return self.add_up(parameters, numbers)
        self._put_in_place(buckets, parameters, counts[: len(parameters)], counts[len(parameters) :])
        return sums

    def _put_in_place(
        self,
        buckets: "list[_Bucket]",
        parameters: Sequence[Tensor],
        num_dense: Sequence[float],
        num_sparse: Sequence[float],
    ) -> None:
        """Give parameters the sums, of those too of which this is the first time that a process has a gradient."""
        self._sparse |= {parameter for parameter, num in zip(parameters, num_sparse, strict=True) if num}
        having = {parameter for parameter, num in zip(parameters, num_dense, strict=True) if num}
        woken = [parameter for parameter in parameters if parameter in self._idle & having - self._sparse]
        for group in _group(woken, self._bucket_bytes):
            buckets.append(_Bucket(group))
            buckets[-1].send(self._world)
        for bucket in buckets:
            bucket.receive(leaving_out=self._sparse)
        for parameter in parameters:
            if parameter in self._sparse:
                parameter.grad = self._add_sparse(parameter)
            elif parameter not in having:
                parameter.grad = None
        self._idle = {*parameters} - having - self._sparse

    def close(self) -> None:
        """Leave the parameters as they were found."""
        for hook in self._hooks.values():
            hook.remove()

    def _make_buckets(self, parameters: Sequence[Tensor]) -> "list[_Bucket]":
        left_out = self._sparse | self._idle
        dense = [parameter for parameter in reversed(parameters) if parameter not in left_out]
        return [_Bucket(group) for group in _group(dense, self._bucket_bytes)] or [_Bucket([])]

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
        missing: the parameters whose gradients the backward has still to make.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.missing = {parameter for parameter in parameters if parameter.requires_grad}
        self._sent: list[tuple[int, int]] = []  # which gradients, in which version
        self._gradients: list[Tensor] = []
        self._message: Tensor | None = None
        self._wait: Callable[[], None] | None = None

    @property
    def is_sent(self) -> bool:
        """Whether the gradients are on their way, as they were then."""
        return self._wait is not None

    @property
    def is_outdated(self) -> bool:
        """Whether a gradient has changed since it was sent.

        So it does where activations are computed again by a backward of their own, or by a hook of the script's.
        """
        return self.is_sent and self._sent != [_version_of(parameter) for parameter in self.parameters]

    def send(self, world: World) -> None:
        """Send the gradients, without waiting for the sums."""
        flat = self._flatten()
        if flat:
            self._message = torch.cat(flat)
            self._wait = world.begin_sum(_real(self._message))

    def send_with(self, numbers: Sequence[float], world: World) -> list[float]:
        """Send the gradients and numbers; return the sums of the numbers over all processes."""
        if not self.parameters or not self.parameters[0].is_cpu or self.parameters[0].dtype not in _EXACT:
            tail = torch.tensor(numbers, dtype=torch.float64)
            self.send(world)
            world.add_up(tail)  # over the host, so that no device is waited for
            return list(tail.tolist())
        message = torch.cat([*self._flatten(), torch.tensor(numbers, dtype=self.parameters[0].dtype)])
        world.add_up(message)
        self._message = message[: -len(numbers)]
        return list(message[-len(numbers) :].tolist())

    def receive(self, leaving_out: Collection[Tensor]) -> None:
        """Put the sums in the places of the gradients, but for some parameters."""
        if self._wait is not None:
            self._wait()
        if self._message is None:
            return
        pieces = self._message.split([gradient.numel() for gradient in self._gradients])
        for parameter, gradient, piece in zip(self.parameters, self._gradients, pieces, strict=True):
            if parameter not in leaving_out:
                parameter.grad = gradient.copy_(piece.view(gradient.shape))

    def _flatten(self) -> list[Tensor]:
        self._sent = [_version_of(parameter) for parameter in self.parameters]
        self._gradients = [
            parameter.grad
            if parameter.grad is not None and not parameter.grad.is_sparse
            else torch.zeros_like(parameter)
            for parameter in self.parameters
        ]
        return [gradient.reshape(-1) for gradient in self._gradients]


def _version_of(parameter: Tensor) -> tuple[int, int]:
    """Return what tells whether the gradient of a parameter is still the same, and has the same values."""
    return (0, 0) if parameter.grad is None else (id(parameter.grad), parameter.grad._version)


def _kind_of(parameter: Tensor) -> str:
    return "none" if parameter.grad is None else "sparse" if parameter.grad.is_sparse else "dense"


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


def _portable(gradient: Tensor) -> Tensor:
    gradient = gradient.detach().cpu()
    return gradient.coalesce() if gradient.is_sparse else gradient
