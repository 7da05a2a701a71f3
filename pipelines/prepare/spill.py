"""The file between the two passes: the images of one unit, by shuffle bucket.

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
