"""What a run records besides metrics: images, histograms, texts and files.

Images and files are kept in the folder `media` of the run, histograms and texts in the record itself. So all that was
logged can be looked at, or given to another logger, without any tracker.

A call that makes no sense is an error. Values that cannot be drawn, and files that cannot be written, are left out with
one warning: what is logged is no reason to end a training.
"""

import contextlib
import numbers
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blowtorch.errors import ScriptError, describe
from blowtorch.folder.folder import safe_name
from blowtorch.progress import Progress
from blowtorch.record.arrays import Array, NotDrawableError, count_in_bins, to_array, to_numbers
from blowtorch.record.lines import Lines
from blowtorch.record.record import Record

_PNG_COLORS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels → colour type, see section 11.2.1 of the PNG specification
_LONGEST_NAME = 100  # in bytes, as file systems count
_LONGEST_SUFFIX = 20
_MOST_BINS = 1 << 16


class Media:
    """Keeps what a run logs besides metrics.

    Args:
        folder: the run folder.
        record: where each is recorded.
        progress: of the run.
        lines: warn of what could not be kept.
    """

    def __init__(self, folder: Path, record: Record, progress: Progress, lines: Lines) -> None:
        self._folder = folder
        self._record = record
        self._progress = progress
        self._lines = lines
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

    def close(self) -> None:
        """Give back what was only held; for a lone process, nothing is."""

    def log_image(self, name: str, image: Any) -> None:
        """Record an image; see `Run.log_image`.

        Raises:
            ScriptError: it is not an image.
        """
        _check_name("log_image", name)
        with self._leaving_out("image", name):
            if callable(getattr(image, "savefig", None)):  # a figure of matplotlib
                self._keep("image", name, ".png", lambda path: _draw(image, path))
            else:
                pixels = to_pixels(image)
                self._keep("image", name, ".png", lambda path: path.write_bytes(encode_png(pixels)))

    def log_histogram(self, name: str, values: Any, bins: int) -> None:
        """Record a histogram; see `Run.log_histogram`.

        Raises:
            ScriptError: these are no numbers, or there cannot be so many bins.
        """
        _check_name("log_histogram", name)
        if not isinstance(bins, numbers.Integral) or isinstance(bins, bool) or not 1 <= bins <= _MOST_BINS:
            raise ScriptError(f"log_histogram({name!r}, ...) expects bins from 1 to {_MOST_BINS}, got {bins!r}")
        with self._leaving_out("histogram", name):
            finite = to_numbers(values)
            if not finite.size:
                self._leave_out("histogram", name, "has no finite value")
                return
            counts, edges = count_in_bins(finite, int(bins))
            self._append("histogram", name=name, counts=counts, edges=edges)

    def log_text(self, name: str, text: str) -> None:
        """Record a text; see `Run.log_text`."""
        _check_name("log_text", name)
        self._append("text", name=name, text=str(text))

    def log_file(self, name: str, path: str | Path) -> None:
        """Record a copy of a file; see `Run.log_file`.

        Raises:
            ScriptError: there is no such file.
        """
        _check_name("log_file", name)
        try:
            source = Path(path)
            is_file = source.is_file()
        except (TypeError, ValueError):
            is_file = False
        if not is_file:
            raise ScriptError(f"log_file({name!r}, ...) expects the path of a file, got {str(path)!r}, which is none")
        suffix = f".{_short_name(source.suffix, _LONGEST_SUFFIX)}" if source.suffix else ""
        with self._leaving_out("file", name):
            self._keep("file", name, suffix, lambda target: shutil.copyfile(source, target))

    @contextlib.contextmanager
    def _leaving_out(self, event: str, name: str) -> Iterator[None]:
        """Go on without what cannot be drawn or kept."""
        try:
            yield
        except NotDrawableError as error:
            self._leave_out(event, name, "cannot be drawn", error)
        except (OSError, MemoryError) as error:
            self._leave_out(event, name, "could not be kept", error)

    def _leave_out(self, event: str, name: str, what: str, error: Exception | None = None) -> None:
        """Warn of something that is left out, once for each name."""
        if not self._is_muted:
            reason = "" if error is None else f": {str(error) or type(error).__name__}"
            self._lines.warn_once(
                f"{event} {name!r} is left out",
                f"{event} {name!r} {what} at step {self._progress.step}, so it is left out{reason}",
            )

    def _append(self, event: str, **values: Any) -> None:
        if not self._is_muted:
            self._record.append(event, **self._progress.stamp(), **values)

    def _keep(self, event: str, name: str, suffix: str, write: Callable[[Path], object]) -> None:
        """Write a file into the run's folder and record it."""
        if self._is_muted:
            return
        stem = _short_name(name, _LONGEST_NAME) or "unnamed"
        num_before = self._count(stem)
        number = f"-{num_before}" if num_before else ""
        path = self._folder / "media" / stem / f"step-{self._progress.step:08d}{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
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
        ScriptError: the image has another shape, or NumPy can make no array of it. It is a `NotDrawableError` where the
            image is of the right kind, and empty, or on the device `meta`, or the like.
    """
    try:
        pixels = to_array(image)
    except TypeError as error:
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
    if pixels.dtype.kind not in "buif":
        raise ScriptError(f"expected an image of numbers, got {pixels.shape} of {pixels.dtype}")
    if not pixels.size:
        raise NotDrawableError(f"expected an image, got one without pixels, of shape {pixels.shape}")
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


def _draw(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, format="png")
    except Exception as error:  # to draw is code of others, which fails for many reasons, such as a missing font
        path.unlink(missing_ok=True)
        raise NotDrawableError(f"savefig raised {describe(error)}") from error


def _check_name(function: str, name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise ScriptError(f"run.{function} expects a name first, a string that is not empty, got {name!r:.60}")


def _short_name(name: str, most_bytes: int) -> str:
    """Return a name as it can stand in the name of a file, with at most so many bytes."""
    return safe_name(safe_name(name).encode()[:most_bytes].decode(errors="ignore"))
