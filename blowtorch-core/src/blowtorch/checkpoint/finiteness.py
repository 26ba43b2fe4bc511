"""What training has spoiled: numbers that are not finite, and were so neither before it nor on purpose."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from blowtorch.data.tree import Place, walk
from blowtorch.parallel.pieces import own_piece


class Finiteness:
    """Which numbers of a state may be infinite or NaN, because they were so before training; the others may not.

    Args:
        is_made_by_training: whether its tensors come only with the first steps, as an optimizer's do. In any other
            state, infinities in a tensor that is new or has another shape now are taken for meant: a module may make a
            mask of `-inf` in its first forward.
    """

    def __init__(self, is_made_by_training: bool = False) -> None:
        self._is_made_by_training = is_made_by_training
        self._shapes: dict[Place, torch.Size | None] = {}  # None for a parameter that has none yet
        self._allowed: dict[Place, list[Tensor]] = {}  # what each number there may be

    def remember(self, state: Any) -> None:
        """Allow what there is now, besides what was there when this was called before."""
        for place, leaf in walk(state):
            if isinstance(leaf, Tensor | float):
                self._shapes[place] = _shape_of(leaf)
                kinds = _find_not_finite(leaf)
                if kinds is not None and self._is_spoiled(place, leaf, kinds):
                    self._allowed.setdefault(place, []).append(kinds)

    def find_spoiled(self, state: Any) -> Place | None:
        """Return the place of the first leaf that is worse than it was allowed to be, or None."""
        sound: set[int] = set()  # two names may share a tensor
        for place, leaf in walk(state):
            if isinstance(leaf, Tensor | float) and id(leaf) not in sound:
                kinds = _find_not_finite(leaf)
                if kinds is not None and self._is_spoiled(place, leaf, kinds):
                    return place
                sound.add(id(leaf))
        return None

    def _is_spoiled(self, place: Place, leaf: Tensor | float, kinds: Tensor) -> bool:
        is_known = place in self._shapes and self._shapes[place] in (None, _shape_of(leaf))
        if not is_known and not (self._is_made_by_training and isinstance(leaf, Tensor)):
            return bool((kinds == _NAN).any())
        bad = kinds != _FINITE
        for allowed in self._allowed.get(place, ()):
            if allowed.shape == kinds.shape:
                bad &= kinds != allowed.to(kinds.device)
        return bool(bad.any())


_FINITE, _NAN, _INFINITE, _MINUS_INFINITE = range(4)


def _find_not_finite(leaf: Tensor | float) -> Tensor | None:
    """Return what each number of a leaf is, in one byte, or None if all are finite, for which a fast pass is enough.

    What torch cannot look into, such as numbers of four bits, is taken for finite.
    """
    if isinstance(leaf, float):
        return None if math.isfinite(leaf) else _kinds_of(torch.tensor(leaf))
    try:
        numbers = _numbers_of(leaf)
        if numbers is None or numbers.is_meta or not numbers.numel():
            return None
        least, largest = torch.aminmax(numbers)
    except NotImplementedError:
        return None if leaf.is_cpu else _find_not_finite(leaf.cpu())  # an accelerator may lack the fast pass alone
    return None if math.isfinite(least.item()) and math.isfinite(largest.item()) else _kinds_of(numbers)


def _numbers_of(tensor: Tensor) -> Tensor | None:
    """Return the real numbers that a tensor is made of, or None if they cannot but be finite."""
    if is_lazy(tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    tensor = own_piece(tensor.detach())
    if tensor.layout is not torch.strided:
        tensor = tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()
    if tensor.is_complex():
        return torch.view_as_real(tensor)
    return tensor.float() if tensor.itemsize == 1 else tensor  # the operations know no numbers of eight bits


def _kinds_of(numbers: Tensor) -> Tensor:
    kinds = numbers.isnan().to(torch.uint8)
    kinds[numbers == math.inf] = _INFINITE
    kinds[numbers == -math.inf] = _MINUS_INFINITE
    return kinds


def _shape_of(leaf: Tensor | float) -> torch.Size | None:
    if not isinstance(leaf, Tensor):
        return torch.Size()
    return None if is_lazy(leaf) else own_piece(leaf).shape
