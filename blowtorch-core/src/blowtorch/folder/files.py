"""Files that are replaced whole, so that neither a reader nor a power cut ever finds half of one."""

import os
from collections.abc import Mapping
from pathlib import Path


def replace_files(directory: Path, contents: Mapping[str, str]) -> None:
    """Replace files of one directory, and make them durable; whoever reads one sees its old content or its new one.

    Several files at once cost less than one after the other, since the directory is made durable once.

    Args:
        directory: where they stand.
        contents: name to text, in the order in which they are replaced.
    """
    for name, content in contents.items():
        with _temporary(directory, name).open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    for name in contents:
        _temporary(directory, name).replace(directory / name)
    sync_directory(directory)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    if os.name == "nt":  # which cannot open a directory, and keeps names durable by itself
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(directory: Path, name: str) -> Path:
    return directory / f".tmp-{name}"
