"""How many samples a batch has, whatever it is made of.

A tensor or an array has as many as its first dimension says, a list of samples as many as it is long. An object may say
it itself: by `num_graphs`, as the batches of PyTorch Geometric do, by `batch_size`, or by its length. The parts of a
batch agree on the number; a part without rows, or without any dimension, has no say. A list of tensors is a list of
parts, as torch's own `collate_fn` makes it.
"""

import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from blowtorch.data.tree import children_of, walk

_LOOKED_AT = 8  # so many entries of a list tell what it is a list of
_NAMED = 4  # so many parts of a batch are named in a message


class Size(NamedTuple):
    """The number of samples in a batch.

    Attributes:
        samples: the number; 1 where nothing tells it.
        doubt: what makes it uncertain, in words; None where nothing does.
    """

    samples: int
    doubt: str | None


class _Part(NamedTuple):
    """The numbers of samples that a part of a batch may stand for, the likeliest first; none where it tells nothing."""

    sizes: Sequence[int] = ()
    is_certain: bool = True  # whether its own parts agree
    is_weak: bool = False  # whether it has no say beside others: a few numbers or names may be anything


def read_size(batch: Any) -> Size:
    """Return the number of samples in a batch of any kind."""
    part = _read(batch, is_whole=True)
    if not part.sizes:
        is_opaque = any(_is_opaque(leaf) for _, leaf in walk(batch, is_leaf=_tells_itself))
        name = type(batch).__name__
        return Size(1, f"nothing in it has a first dimension or a length, it is a {name}" if is_opaque else None)
    if part.is_certain:
        return Size(part.sizes[0], None)
    dimensions = [
        f"{size} at {''.join(f'[{key!r}]' for key in place)}"
        for place, leaf in walk(batch, is_leaf=_tells_itself)
        if (size := _own_size(leaf)) is not None
    ]
    return Size(part.sizes[0], f"first dimensions differ, {', '.join(dimensions[:_NAMED])}")


def _read(value: Any, is_whole: bool = False) -> _Part:
    size = _own_size(value)
    if size is not None:
        return _Part([size])
    if _is_scalar(value) or _is_lone_graph(value):
        return _Part()
    children = children_of(value)
    if children is None:
        return _Part() if _length(value) is None else _Part([_length(value) or 0])
    parts = [child for _, child in children]
    if not isinstance(value, list | tuple) or hasattr(value, "_fields"):
        return _agree(map(_read, parts))
    return _read_sequence(parts, isinstance(value, tuple), is_whole)


def _read_sequence(entries: list[Any], is_tuple: bool, is_whole: bool) -> _Part:
    """Read a list or tuple, which holds samples, or the parts of a batch."""
    if not entries:
        return _Part() if is_tuple or is_whole else _Part([0])
    some = [*entries[:_LOOKED_AT], entries[-1]]
    if all(map(_is_scalar, some)):
        is_text = all(isinstance(entry, str) for entry in some)
        return _Part() if is_whole and is_tuple and not is_text else _Part([len(entries)], is_weak=True)
    kinds = {type(entry) for entry in some}
    columns = _agree(map(_read, entries if is_tuple else some))
    if all(isinstance(entry, Tensor) for entry in some):
        alike = len({(entry.ndim, entry.dtype) for entry in some}) == 1
        are_samples = not columns.is_certain and alike and not is_whole
    elif all(isinstance(entry, list | tuple) for entry in some):
        are_samples = not is_tuple and not _are_columns(some, columns)
    else:
        are_samples = len(kinds) == 1 and not _are_columns(some, columns)
    if are_samples:
        return _Part([len(entries)])
    return columns if is_whole else columns._replace(sizes=[*columns.sizes, len(entries)])


def _agree(parts: Iterator[_Part]) -> _Part:
    """Return the sizes that all parts may have; if there is none, that of the first, uncertain."""
    having = [part for part in parts if part.sizes]
    telling = [part for part in having if not part.is_weak] or having
    telling = [part for part in telling if part.sizes[0]] or telling
    if not telling:
        return _Part()
    common = [size for size in telling[0].sizes if all(size in part.sizes for part in telling)]
    common.sort(key=lambda size: sum(size not in part.sizes for part in having))  # the weak ones may tell which
    if common:
        return _Part(common, is_certain=len(telling) > 1 or telling[0].is_certain, is_weak=telling[0].is_weak)
    return _Part(telling[0].sizes, is_certain=False)


def _are_columns(entries: list[Any], columns: _Part) -> bool:
    """Return whether entries of one kind are parts of a batch: each thing in them has as many rows.

    Samples that all have as many rows, as of a text cut to a length, are told from batches by their few dimensions.
    """
    if not columns.sizes or not columns.is_certain:
        return False
    leaves = [leaf for entry in entries for _, leaf in walk(entry, is_leaf=_is_column)]
    if not all(map(_is_column, leaves)) or {_size_of(leaf) for leaf in leaves} != {columns.sizes[0]}:
        return False
    return any((1 if isinstance(leaf, list | tuple) else getattr(leaf, "ndim", 2)) > 1 for leaf in leaves)


def _is_column(value: Any) -> bool:
    """Return whether a value has an entry for each sample: a tensor or the like, or a list of plain values."""
    is_list = isinstance(value, list | tuple) and bool(value) and all(map(_is_scalar, value[:_LOOKED_AT]))
    return is_list or _own_size(value) is not None


def _size_of(column: Any) -> int:
    size = _own_size(column)
    return len(column) if size is None else size


def _own_size(value: Any) -> int | None:
    """Return the size that a tensor, an array or an object has by itself; None where it has none."""
    if isinstance(value, Tensor):
        return value.size(0) if value.ndim else None
    if isinstance(value, PackedSequence):
        return int(value.batch_sizes[0])
    if isinstance(value, str | bytes | numbers.Number | list | dict) or value is None:
        return None
    for name in ("num_graphs", "batch_size", "shape"):
        size = _attribute(value, name)
        if isinstance(size, Sequence) and not isinstance(size, str) and len(size):
            size = size[0]
        if isinstance(size, numbers.Integral) and not isinstance(size, bool) and int(size) >= 0:
            return int(size)
    return None


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name, None)
    except Exception:  # a property may raise anything, which says as little as if there were none
        return None


def _length(value: Any) -> int | None:
    try:
        return len(value)
    except Exception:  # as many ways to have no length as there are libraries
        return None


def _is_scalar(value: Any) -> bool:
    """Return whether a value has no dimension at all: a number, a text, None, or a tensor or array of one number."""
    return value is None or isinstance(value, str | bytes | numbers.Number) or _is_empty(_attribute(value, "shape"))


def _is_empty(shape: Any) -> bool:
    return isinstance(shape, tuple | list) and not shape


def _is_lone_graph(value: Any) -> bool:
    """Return whether a value is one graph of PyTorch Geometric, whose length is how many attributes it has."""
    return not isinstance(value, list | tuple | Mapping) and _attribute(value, "num_nodes") is not None


def _is_opaque(value: Any) -> bool:
    return not _is_scalar(value) and not _is_lone_graph(value)


def _tells_itself(value: Any) -> bool:
    return _own_size(value) is not None or _is_lone_graph(value)
