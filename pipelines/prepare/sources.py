"""What a source holds: a stream of pieces, each small enough to describe and large enough to read.

    folder    train/ and val/ with class folders, class folders, or one flat folder

A piece of a folder is one file. Listing reads names and sizes only, one directory at a time, so
that its memory does not grow with the number of files.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from pipelines import storage
from pipelines.errors import UserError

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
)
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a source that one task reads."""

    kind: Literal["file"]
    uri: str
    key: str
    """Stable id inside the source: never a path of a machine."""
    bytes: int
    split: str | None = None
    """`train` or `val` where the source says so."""
    class_name: str | None = None


def pieces(source: str, others: Counter[str]) -> Iterator[Piece]:
    """All pieces of a source in a fixed order; files that are no pictures are counted by suffix.

    Raises:
        UserError: there is nothing at that place.
    """
    if not storage.exists(source):
        raise UserError(f"source is '{source}'; there is no such file or folder")
    names = storage.children(source)
    if not names:
        raise UserError(f"source is '{source}'; that folder is empty")
    splits = [name for name in names if name in SPLIT_FOLDERS]
    if splits:
        for name in splits:
            yield from _folder(source, f"{name}/", SPLIT_FOLDERS[name], others)
    else:
        yield from _folder(source, "", None, others)


def _folder(source: str, prefix: str, split: str | None, others: Counter[str]) -> Iterator[Piece]:
    """Pieces under `source/prefix`; the first folder below it names the class."""
    for name, size in storage.walk(storage.join(source, prefix) if prefix else source):
        path = PurePosixPath(name)
        if path.name.startswith("."):
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES and path.suffix:
            others[path.suffix.lower()] += 1
            continue
        class_name = path.parts[0] if len(path.parts) > 1 else None
        yield Piece(
            "file",
            storage.join(source, prefix + name),
            printable(prefix + name),
            size,
            split,
            None if class_name is None else printable(class_name),
        )


def printable(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 are written as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
