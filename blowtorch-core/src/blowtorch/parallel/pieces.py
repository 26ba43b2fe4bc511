"""Tensors that are divided among processes: which piece is whose, and how a whole one is divided alike.

They are `torch.distributed.tensor.DTensor`s, told by their methods, since to import that takes a lone process 0.4 s.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from blowtorch.errors import CheckpointError

Offsets = tuple[int, ...]  # where a piece begins, in each dimension of the whole
Cut = Callable[[Offsets, Sequence[int]], Tensor]  # returns the piece of a whole that begins there and has this shape


def is_divided(tensor: Any) -> bool:
    """Return whether each process has a piece of a tensor, or some have the same one."""
    return hasattr(type(tensor), "to_local")


def own_piece(tensor: Tensor) -> Tensor:
    """Return what this process has of a tensor, in the same memory: all of one that is not divided."""
    if not is_divided(tensor):
        return tensor
    local: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return local


def offsets_of(tensor: Any) -> Offsets:
    """Return where the piece of this process begins in a divided tensor."""
    chunks = tensor.__create_chunk_list__()
    return tuple(chunks[0].offsets) if chunks else (0,) * tensor.ndim


def is_first_of_alike(tensor: Any) -> bool:
    """Return whether no process before this one has the same piece of a divided tensor."""
    coordinates = tensor.device_mesh.get_coordinate()
    return all(
        coordinate == 0 or placement.is_shard()
        for coordinate, placement in zip(coordinates, tensor.placements, strict=True)
    )


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, which every process that has a piece of it has to ask for at once."""
    full: Tensor = tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[attr-defined]
    return full


def divide_like(divided: Any, cut: Cut, dtype: torch.dtype) -> Tensor:
    """Return a tensor that is divided as another one is, of which this process cuts out its piece alone.

    Args:
        divided: the other one.
        cut: returns the piece.
        dtype: of the tensor.
    """
    from torch.distributed.tensor import DTensor

    local = own_piece(divided)
    piece = cut(offsets_of(divided), local.shape).to(device=local.device, dtype=dtype, copy=True)
    return DTensor.from_local(
        piece, divided.device_mesh, divided.placements, run_check=False, shape=divided.shape, stride=divided.stride()
    )


def cut_out(tensor: Tensor, offsets: Offsets, shape: Sequence[int]) -> Tensor:
    """Return a piece of a whole tensor.

    >>> cut_out(torch.arange(6).view(2, 3), (1, 0), (1, 2))
    tensor([[3, 4]])
    """
    for dimension, (start, length) in enumerate(zip(offsets, shape, strict=True)):
        tensor = tensor.narrow(dimension, min(start, tensor.shape[dimension]), length)
    return tensor


def put_together(pieces: Iterable[tuple[Offsets, Tensor]], offsets: Offsets, shape: Sequence[int], into: Tensor) -> int:
    """Copy what pieces have of a part of the whole, and return how many numbers of it they have.

    Args:
        pieces: where each begins, and what it is; none overlaps another one.
        offsets: where the part begins.
        shape: of the part.
        into: takes it.
    """
    num_found = 0
    for start, piece in pieces:
        low = [max(mine, its) for mine, its in zip(offsets, start, strict=True)]
        ends = zip(offsets, shape, start, piece.shape, strict=True)
        high = [min(mine + length, its + its_length) for mine, length, its, its_length in ends]
        sizes = [end - begin for begin, end in zip(low, high, strict=True)]
        if all(size > 0 for size in sizes):
            source = cut_out(piece, tuple(begin - its for begin, its in zip(low, start, strict=True)), sizes)
            cut_out(into, tuple(begin - mine for begin, mine in zip(low, offsets, strict=True)), sizes).copy_(source)
            num_found += source.numel()
    return num_found


class TensorInPieces:
    """A tensor of a checkpoint that was written in pieces.

    Args:
        name: in messages.
        shape: of the whole.
        dtype: of its numbers.
        pieces: where each begins, and what it is.
    """

    def __init__(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, pieces: Sequence[tuple[Offsets, Tensor]]
    ) -> None:
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self._name = name
        self._pieces = pieces

    def cut(self, offsets: Offsets, shape: Sequence[int]) -> Tensor:
        """Return the part that begins there and has this shape; no more than it is read.

        Raises:
            CheckpointError: some of it is in no piece.
        """
        part = torch.empty(tuple(shape), dtype=self.dtype)
        num_found = put_together(self._pieces, offsets, shape, part)
        if num_found != part.numel():
            raise CheckpointError(
                f"the pieces of {self._name} hold {num_found} of the {part.numel()} numbers that are wanted of it, so "
                f"a shard is missing or is of another checkpoint"
            )
        return part

    def whole(self) -> Tensor:
        """Return all of it."""
        return self.cut((0,) * len(self.shape), self.shape)


def fit(value: Any, target: Any, is_mapped: bool) -> Any:
    """Return a tensor, whole or in pieces, as another one is: divided among processes, or whole.

    Args:
        value: the tensor; anything else stays as it is.
        target: the other one, or anything that is not divided.
        is_mapped: what is returned gets memory of its own, since that of the value may be a file.
    """
    if isinstance(value, TensorInPieces):
        return divide_like(target, value.cut, value.dtype) if is_divided(target) else value.whole()
    if is_divided(target) and isinstance(value, Tensor) and not is_divided(value):
        return divide_like(target, partial(cut_out, value), value.dtype)
    return copy.deepcopy(value) if is_mapped and not is_divided(value) else value
