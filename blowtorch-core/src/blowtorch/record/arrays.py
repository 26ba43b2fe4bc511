"""What is logged to be drawn, as arrays of NumPy; and numbers, counted in the bins of a histogram.

Values are of any kind that a training has: some cannot be drawn at all. To log them must not end a run.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from blowtorch.data.tree import walk
from blowtorch.errors import ScriptError

Array = np.ndarray[Any, np.dtype[Any]]

_LARGEST = float(np.finfo(np.float64).max)
_NARROWEST = 1e-300  # the width of a bin, of which NumPy can still take the inverse


class NotDrawableError(ScriptError):
    """Values of a sound kind, of which nothing can be drawn: they are left out, and the run goes on."""


def to_array(values: Any) -> Array:
    """Return a tensor of any layout and type, or what NumPy can make an array of, as an array.

    Raises:
        NotDrawableError: a tensor has no values that can be read; or nested sequences are not all of one length.
        TypeError: it is nothing of that kind.
    """
    try:
        return _tensor_to_array(values) if isinstance(values, torch.Tensor) else np.asarray(values)
    except (RuntimeError, ValueError) as error:  # NotImplementedError is a RuntimeError, as of a tensor on `meta`
        raise NotDrawableError(_first_line(error)) from error


def to_numbers(values: Any) -> Array:
    """Return all finite numbers in tensors, arrays and numbers, which may be nested: float64, of one dimension.

    Raises:
        NotDrawableError: there are values that cannot be read.
        ScriptError: there is something else than numbers.
    """
    try:
        parts = [_to_floats(to_array(values))]
    except (ScriptError, TypeError):
        leaves = [leaf for _, leaf in walk(values)]
        if len(leaves) == 1 and leaves[0] is values:  # no container
            raise
        parts = [_to_floats(to_array(leaf)) for leaf in leaves]
    numbers: Array = np.concatenate(parts) if parts else np.empty(0)
    finite: Array = numbers[np.isfinite(numbers)]
    return finite


def count_in_bins(numbers: Array, bins: int) -> tuple[list[int], list[float]]:
    """Return how many of some finite numbers lie in each of so many bins of equal width, and the edges of the bins.

    They reach from the smallest number to the largest, as `np.histogram` has them. Where these are so close that floats
    have no room for the bins in between, they reach a little further.
    """
    low, high = float(numbers.min()), float(numbers.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    scale = 4.0 if math.isinf(high - low) else 1.0  # a power of two, which changes no digit of numbers that large
    needed = bins * max(math.ulp(low), math.ulp(high), _NARROWEST)
    if high - low < 2 * needed:
        low, high = max(low - needed, -_LARGEST), min(high + needed, _LARGEST)
    counts, edges = np.histogram(numbers / scale, bins=bins, range=(low / scale, high / scale))
    return counts.tolist(), (edges * scale).tolist()


def _tensor_to_array(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach().cpu()
    if tensor.is_nested:
        return np.concatenate([_tensor_to_array(part).ravel() for part in tensor.unbind()] or [np.empty(0)])
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.resolve_conj().resolve_neg()
    try:
        return np.asarray(tensor.numpy())
    except TypeError:  # NumPy has no such type: bfloat16, or floats of eight bits
        return np.asarray(tensor.to(torch.complex64 if tensor.is_complex() else torch.float32).numpy())


def _to_floats(array: Array) -> Array:
    if array.dtype.kind == "c":
        raise NotDrawableError("complex numbers have no order; take their absolute values")
    if array.dtype.kind not in "buifO":
        raise ScriptError(f"expected numbers, got {array.dtype} {array!r:.100}")
    try:
        with np.errstate(over="ignore"):  # of floats with more digits, which become infinite
            return array.astype(np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise ScriptError(f"expected numbers, got {array!r:.100}") from error
    except OverflowError:  # integers beyond all floats
        return np.fromiter(_rounded(array.ravel()), np.float64)


def _rounded(numbers: Array) -> Iterator[float]:
    for number in numbers:
        try:
            yield float(number)
        except OverflowError:
            yield math.inf


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
