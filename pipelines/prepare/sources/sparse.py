"""Sparse members of tars (`tar -S`): files with holes, whose zeros the archive leaves out.

GNU's own kind `S`, and the three versions in pax headers. A map lists the runs of bytes that are
stored; all between them is zero. Source: GNU tar manual, "Storing Sparse Files".
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.prepare.sources.streams import BrokenArchive, read_fully

BLOCK = 512
MAX_RUNS = 1 << 16
PREFIX = b"GNU.sparse."
Runs = list[tuple[int, int]]
"""Offset in the file and length of each run that is stored."""


class SparseContent:
    """The bytes of a sparse member, with its zeros."""

    def __init__(self, content: Any, runs: Runs, size: int) -> None:
        """Read the runs from `content`.

        Raises:
            BrokenArchive: they overlap, or reach beyond `size` bytes.
        """
        end = 0
        for begin, length in runs:
            if begin < end:
                raise BrokenArchive("the map of a sparse file is damaged")
            end = begin + length
        if end > size:
            raise BrokenArchive("the map of a sparse file reaches beyond its end")
        self._content, self._size, self._at = content, size, 0
        self._runs = iter(runs)
        self._run = next(self._runs, (size, 0))

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; fewer only at the end of the member."""
        left = self._size - self._at
        wanted = left if size < 0 else min(size, left)
        parts = []
        while wanted:
            begin, length = self._run
            if self._at < begin:
                part = bytes(min(wanted, begin - self._at))
            elif begin + length > self._at:
                part = self._content.read(min(wanted, begin + length - self._at))
            else:
                self._run = next(self._runs, (self._size, 0))
                continue
            parts.append(part)
            self._at += len(part)
            wanted -= len(part)
        return b"".join(parts)

    def seekable(self) -> bool:
        """It is read as a stream."""
        return False


def gnu_runs(header: bytes, stream: Any) -> tuple[Runs, int, int]:
    """Runs and size of a member of kind `S`, and the bytes of further headers that were read."""
    runs = list(_pairs([header[386 + 12 * at : 398 + 12 * at] for at in range(8)], 8))
    is_extended, read = header[482], 0
    while is_extended:
        more = read_fully(stream, BLOCK)
        read += BLOCK
        if len(more) < BLOCK or len(runs) > MAX_RUNS:
            raise BrokenArchive("the map of a sparse file is damaged")
        runs += _pairs([more[12 * at : 12 * at + 12] for at in range(42)], 8)
        is_extended = more[504]
    return runs, _number(header[483:495], 8), read


def pax_runs(records: Sequence[tuple[bytes, bytes]], content: Any) -> tuple[Runs, int] | None:
    """Runs and size that pax records speak of; None where the member is not sparse.

    Args:
        records: field without PREFIX, and value.
        content: of the member; version 1.0 keeps its map there.
    """
    said = dict(records)
    size = said.get(b"realsize", said.get(b"size"))
    if size is None:
        return None
    if said.get(b"major") == b"1":
        fields = list(_lines(content))
    elif b"map" in said:
        fields = said[b"map"].split(b",")
    else:
        fields = [value for field, value in records if field in (b"offset", b"numbytes")]
    return list(_pairs(fields, 10)), _number(size, 10)


def _lines(content: Any) -> Iterator[bytes]:
    """The numbers of a map of version 1.0: lines, how many pairs first, padded to whole blocks."""
    wanted, rest = 1, b""
    is_first = True
    while wanted:
        block = content.read(BLOCK)
        if not block or wanted > 2 * MAX_RUNS:
            raise BrokenArchive("the map of a sparse file is damaged")
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if is_first:
                wanted, is_first = 2 * _number(line, 10), False
            elif wanted:
                wanted -= 1
                yield line


def _pairs(fields: Sequence[bytes], base: int) -> Iterator[tuple[int, int]]:
    if len(fields) % 2 or len(fields) > 2 * MAX_RUNS:
        raise BrokenArchive("the map of a sparse file is damaged")
    for begin, length in zip(fields[::2], fields[1::2], strict=True):
        if begin.strip(b"\0 ") or length.strip(b"\0 "):
            yield _number(begin, base), _number(length, base)


def _number(field: bytes, base: int) -> int:
    """Octal in headers, decimal in pax."""
    if base == 8 and field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b"\0 ")
    if len(digits) > 20 or digits.strip(b"0123456789"):
        raise BrokenArchive("the map of a sparse file is damaged")
    try:
        return int(digits or b"0", base)
    except ValueError:
        raise BrokenArchive("the map of a sparse file is damaged") from None
