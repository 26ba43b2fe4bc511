"""What a run records besides metrics: images, histograms, texts and files.

Images and files are kept in the folder `media` of the run, histograms and texts in the record itself. So all that was
logged can be looked at, or given to another logger, without any tracker.
"""

import contextlib
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blowtorch.errors import ScriptError
from blowtorch.folder.folder import safe_name
from blowtorch.progress import Progress
from blowtorch.record.record import Record

Array = np.ndarray[Any, np.dtype[Any]]

_PNG_COLORS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels → colour type, see section 11.2.1 of the PNG specification
_LONGEST_NAME = 100


class Media:
    """Keeps what a run logs besides metrics.

    Args:
        folder: the run folder.
        record: where each is recorded.
        progress: of the run.
        warn: warns of what could not be kept.
    """

    def __init__(self, folder: Path, record: Record, progress: Progress, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._record = record
        self._progress = progress
        self._warn = warn
        self._step = 0
        self._names: list[str] = []  # of the files that were kept since that step
        self._is_muted = False

    @contextlib.contextmanager
    def muted(self) -> Iterator[None]:
        """Keep nothing of what is logged inside, since it is only tried."""
        self._is_muted = True
        try:
            yield
        finally:
            self._is_muted = False

    def log_image(self, name: str, image: Any) -> None:
        """Record an image; see `Run.log_image`.

        Raises:
            ScriptError: it is not an image.
        """
        if callable(getattr(image, "savefig", None)):  # a figure of matplotlib
            self._keep("image", name, ".png", lambda path: image.savefig(path, format="png"))
        else:
            pixels = to_pixels(image)
            self._keep("image", name, ".png", lambda path: path.write_bytes(encode_png(pixels)))

    def log_histogram(self, name: str, values: Any, bins: int) -> None:
        """Record a histogram; see `Run.log_histogram`."""
        numbers = _to_array(values).astype(np.float64).ravel()
        numbers = numbers[np.isfinite(numbers)]
        if not numbers.size:
            if not self._is_muted:
                step = self._progress.step
                self._warn(f"histogram {name!r} has no finite value at step {step}, so it is left out")
            return
        counts, edges = np.histogram(numbers, bins=bins)
        self._append("histogram", name=name, counts=counts.tolist(), edges=edges.tolist())

    def log_text(self, name: str, text: str) -> None:
        """Record a text; see `Run.log_text`."""
        self._append("text", name=name, text=str(text))

    def log_file(self, name: str, path: str | Path) -> None:
        """Record a copy of a file; see `Run.log_file`.

        Raises:
            ScriptError: there is no such file.
        """
        source = Path(path)
        if not source.is_file():
            raise ScriptError(f"log_file({name!r}, ...) expects the path of a file, got {str(path)!r}, which is none")
        self._keep("file", name, source.suffix, lambda target: shutil.copyfile(source, target))

    def _append(self, event: str, **values: Any) -> None:
        if not self._is_muted:
            self._record.append(event, **self._progress.stamp(), **values)

    def _keep(self, event: str, name: str, suffix: str, write: Callable[[Path], object]) -> None:
        """Write a file into the run's folder and record it; a disk that is full must not end the training."""
        if self._is_muted:
            return
        stem = safe_name(name)[:_LONGEST_NAME] or "unnamed"
        num_before = self._count(stem)
        number = f"-{num_before}" if num_before else ""
        path = self._folder / "media" / stem / f"step-{self._progress.step:08d}{number}{suffix}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        except OSError as error:
            self._warn(f"{event} {name!r} could not be kept: {error}")
            return
        self._append(event, name=name, path=path.relative_to(self._folder).as_posix())

    def _count(self, stem: str) -> int:
        """Return how many files of a name there have been at this step, and count one more."""
        if self._step != self._progress.step:
            self._step, self._names = self._progress.step, []
        self._names.append(stem)
        return self._names.count(stem) - 1


def to_pixels(image: Any) -> Array:
    """Return the pixels of an image: uint8, of shape (height, width, channels).

    Args:
        image: a tensor of shape (height, width) or (channels, height, width), or an array of shape (height, width) or
            (height, width, channels). NumPy may make the array, as of a picture of Pillow. If the usual dimension
            cannot be that of the channels, the other one is. Integers are 0 to 255, floats 0 to 1; values outside are
            clipped, and NaN is 0.

    Raises:
        ScriptError: the image has another shape, or NumPy can make no array of it.
    """
    try:
        pixels = _to_array(image)
    except (TypeError, ValueError) as error:
        raise ScriptError(f"expected an image as a tensor, an array or a figure, got {image!r:.100}") from error
    is_first, is_last = (pixels.ndim == 3 and pixels.shape[axis] in _PNG_COLORS for axis in (0, -1))
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    elif is_first and (isinstance(image, torch.Tensor) or not is_last):
        pixels = pixels.transpose(1, 2, 0)
    elif not is_last:
        raise ScriptError(
            f"expected an image of shape (height, width), (channels, height, width) or (height, width, channels) with "
            f"1 to 4 channels, got {pixels.shape}"
        )
    if not pixels.size or pixels.dtype.kind not in "buif":
        raise ScriptError(f"expected an image of numbers, got {pixels.shape} of {pixels.dtype}")
    if pixels.dtype.kind == "f":
        pixels = np.nan_to_num(pixels, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255 + 0.5
    elif pixels.dtype.kind == "b":
        pixels = pixels * 255
    return np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8))


def encode_png(pixels: Array) -> bytes:
    """Return the bytes of a PNG file, after the W3C's specification of the format.

    Args:
        pixels: uint8, of shape (height, width, channels) with 1 to 4 channels.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLORS[channels], 0, 0, 0)
    rows = np.zeros((height, 1 + width * channels), dtype=np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = pixels.reshape(height, -1)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _to_array(values: Any) -> Array:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return np.asarray((values.float() if values.dtype is torch.bfloat16 else values).numpy())
    return np.asarray(values)
