"""The files between the two passes: the images of one unit, by group and shuffle bucket.

Rows of a bucket stand together, so that a shard fetches its part of a unit in one range read.
Each row carries a checksum: a range cannot be verified by the checksum of the file.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines import storage
from pipelines.prepare import digests
from pipelines.prepare.records import SpillFile

SPILL_BYTES = 128 << 20  # of JPEGs in memory, also where one archive is a whole unit
_HEAD = struct.Struct("<III")  # bytes of the fields, bytes of the JPEG, crc32 of both


class Row(NamedTuple):
    """An image between the passes."""

    order: int
    """Place in the shuffle, 0 .. 2^64 - 1; equal bytes have equal places."""
    key: str
    class_name: str | None
    sha256: str
    """Of the bytes in the source, hex."""
    pixels: int
    rgb_sums: tuple[int, int, int]
    conversions: tuple[str, ...]
    jpeg: bytes | memoryview


def bucket_of(order: int, num_buckets: int) -> int:
    """The bucket of a place in the shuffle; buckets are equal ranges."""
    return order * num_buckets >> 64


def write(path: Path, rows: Iterable[Row], num_buckets: int) -> list[int]:
    """Write all rows; returns where each bucket begins (and the last one ends)."""
    sizes = [0] * num_buckets
    with path.open("wb") as file:
        for row in sorted(rows, key=lambda row: (row.order, row.key)):
            text = json.dumps(row[:-1]).encode()
            check = zlib.crc32(row.jpeg, zlib.crc32(text))
            head = _HEAD.pack(len(text), len(row.jpeg), check) + text
            file.write(head)
            file.write(row.jpeg)
            sizes[bucket_of(row.order, num_buckets)] += len(head) + len(row.jpeg)
    return list(accumulate(sizes, initial=0))


def read(data: bytes) -> Iterator[Row]:
    """The rows of one range of buckets; their JPEGs are views of `data`.

    Raises:
        OSError: the bytes are not those that were written; reading again may help.
    """
    whole, at = memoryview(data), 0
    while at < len(data):
        if at + _HEAD.size > len(data):
            raise OSError("a spilled row is cut short")
        text_bytes, jpeg_bytes, check = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        text = data[at : at + text_bytes]
        jpeg = whole[at + text_bytes : at + text_bytes + jpeg_bytes]
        at += text_bytes + jpeg_bytes
        if at > len(data) or zlib.crc32(jpeg, zlib.crc32(text)) != check:
            raise OSError("a spilled row does not match its checksum")
        order, key, class_name, sha256, pixels, sums, conversions = json.loads(text)
        yield Row(order, key, class_name, sha256, pixels, tuple(sums), tuple(conversions), jpeg)


class Spills:
    """The images of a unit on their way to its spill files, a bounded number in memory."""

    def __init__(self, work: str, unit: int, num_buckets: int) -> None:
        """Nothing yet."""
        self._work, self._unit, self._num_buckets = work, unit, num_buckets
        self._rows: dict[str, list[Row]] = {}
        self._held_bytes = 0
        self._files: list[SpillFile] = []
        self._spilled: list[tuple[bytes, int, int, int, int]] = []

    def add(self, group: str, row: Row, drawn_by: int, class_number: int, kind: int) -> None:
        """An image, and what `digests.SPILLED` says of it."""
        self._rows.setdefault(group, []).append(row)
        key = digests.of_key(row.key)
        self._spilled.append((key, row.order, drawn_by, class_number, kind))
        self._held_bytes += len(row.jpeg)
        if self._held_bytes >= SPILL_BYTES:
            self._flush()

    def _flush(self) -> None:
        for group, rows in sorted(self._rows.items()):
            path = f"units/{self._unit:06}-{len(self._files):03}.spill"
            with storage.staged_file(storage.join(self._work, path)) as staged:
                offsets = write(staged, rows, self._num_buckets)
            self._files.append(
                SpillFile(
                    path=path,
                    group=group,
                    rows=len(rows),
                    bytes=offsets[-1],
                    offsets=tuple(offsets),
                )
            )
        self._rows, self._held_bytes = {}, 0

    def finish(self) -> tuple[SpillFile, ...]:
        """Write what is left; returns all files."""
        self._flush()
        spilled = np.sort(np.array(self._spilled, digests.SPILLED), order="key")
        storage.publish(_spilled_uri(self._work, self._unit), spilled.tobytes())
        return tuple(self._files)


def _spilled_uri(work: str, unit: int) -> str:
    return storage.join(work, "units", f"{unit:06}.keys")


def read_spilled(work: str, unit: int) -> NDArray[np.void]:
    """What `digests.SPILLED` says of the images of a unit, by rising key."""
    return np.frombuffer(storage.read_bytes(_spilled_uri(work, unit)), digests.SPILLED)
