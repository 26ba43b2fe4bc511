"""Writes files in the format of safetensors, one tensor after the other: no more than one is in memory.

The format is that of https://github.com/huggingface/safetensors#format: the length of the header in 8 bytes, the header
as JSON, and the bytes of the tensors in the order in which it names them.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
_ALIGNMENT = 8  # the length of a header is a multiple of it, so that readers find numbers where they can map them


@dataclass(frozen=True)
class Entry:
    """A tensor that is to be written.

    Attributes:
        name: its name in the file.
        shape: its shape.
        dtype: its dtype.
        load: returns it, on the CPU, when its turn comes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Return its size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_safetensors(path: Path, entries: Iterable[Entry], metadata: Mapping[str, str]) -> int:
    """Write a file, which has its name once it is whole and durable; return its size in bytes.

    Args:
        path: of the file; one that is there is replaced.
        entries: the tensors; those of wide numbers come first, so that each is aligned.
        metadata: what else the file is to say.

    Raises:
        click.ClickException: a tensor has a dtype that the format has not.
        OSError: the disk is full, say.
    """
    ordered = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    header = _make_header(ordered, metadata)
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(header)))
            file.write(header)
            for entry in ordered:
                file.write(_bytes_of(entry))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path.stat().st_size


def _make_header(entries: Iterable[Entry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for entry in entries:
        if entry.dtype not in _NAMES:
            raise click.ClickException(f"{entry.name!r} is of {entry.dtype}, for which safetensors has no name")
        begin, end = end, end + entry.size
        header[entry.name] = {"dtype": _NAMES[entry.dtype], "shape": entry.shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % _ALIGNMENT)


def _bytes_of(entry: Entry) -> memoryview:
    tensor = entry.load()
    assert (tuple(tensor.shape), tensor.dtype) == (entry.shape, entry.dtype), entry.name
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
