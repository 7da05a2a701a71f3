"""Zip archives by their directory: names, kinds and places of the members, in bounded memory.

The directory at the end is read as a stream, so that a zip of a million images costs no more than a
small one, and is cut into runs that are read alone. Written out here because an archive is
untrusted: every size is bounded before it is read, and names are only ever text.
Field offsets: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3.
"""

import bz2
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from pipelines import storage
from pipelines.prepare.sources.streams import (
    BrokenArchive,
    BrokenMember,
    Decompressor,
    Inflate,
    Unpacked,
    Zstd,
    read_fully,
)
from pipelines.prepare.sources.tars import Content, Entry

SUFFIX = ".zip"
END, END_64, LOCATOR_64 = b"PK\5\6", b"PK\6\6", b"PK\6\7"
MEMBER, LOCAL = b"PK\1\2", b"PK\3\4"
MEMBER_FIELDS = struct.Struct("<4s6H3I5H2I")
END_BYTES, COMMENT_BYTES = 22, 1 << 16
FULL_16, FULL_32 = 0xFFFF, 0xFFFFFFFF
ENCRYPTED, UTF_8 = 1, 1 << 11
DOS = (0, 10, 11)  # systems that write backslashes between folders
UNIX_LINK = 0o120000
STORED = 0
OPENERS: dict[int, Callable[[Any], Any]] = {
    STORED: lambda raw: raw,
    8: lambda raw: Unpacked(raw, Inflate, joined=False),
    12: lambda raw: Unpacked(raw, _bzip2, joined=False),
    93: Zstd,
}


def _bzip2() -> Decompressor:
    return bz2.BZ2Decompressor()


class Directory(NamedTuple):
    """Where the directory of a zip lies."""

    begin: int
    end: int
    shift: int
    """Bytes before the archive proper, as in one that unpacks itself."""


def directory(uri: str) -> Directory:
    """The directory of a zip.

    Raises:
        BrokenArchive: there is none: the file was cut, or is no zip.
    """
    size = storage.size(uri)
    tail_begin = max(size - END_BYTES - COMMENT_BYTES, 0)
    tail = read_fully(storage.open_range(uri, tail_begin), size - tail_begin)
    at = _end_record(tail)
    disk, _, _, _, length, offset = struct.unpack_from("<4H2I", tail, at + 4)
    end = tail_begin + at
    locator = tail[max(at - 20, 0) : at]
    if locator.startswith(LOCATOR_64):
        disk, place, disks = struct.unpack_from("<IQI", locator, 4)
        record = read_fully(storage.open_range(uri, place, 56), 56)
        if not record.startswith(END_64) or len(record) < 56:
            # Bytes before the archive move it; it stands right before its locator.
            place = end - 20 - 56
            record = read_fully(storage.open_range(uri, max(place, 0), 56), 56)
        if not record.startswith(END_64):
            raise BrokenArchive("its zip64 directory is damaged")
        length, offset = struct.unpack_from("<2Q", record, 40)
        end, disk = place, disk if disks > 1 else 0
    if disk not in (0, FULL_16):
        raise BrokenArchive("a part of a zip in several files; join them first (zip -s 0)")
    begin = end - length
    if begin < 0 or begin < offset:
        raise BrokenArchive("its directory is damaged")
    return Directory(begin, end, begin - offset)


def _end_record(tail: bytes) -> int:
    """Where the record at the end begins: its comment, which may hold anything, ends the file."""
    at = len(tail)
    while (at := tail.rfind(END, 0, at)) >= 0:
        (comment,) = struct.unpack_from("<H", tail.ljust(at + END_BYTES), at + END_BYTES - 2)
        if at + END_BYTES + comment == len(tail):
            return at
    raise BrokenArchive("no directory at its end: it was cut, or is no zip")


def entries(uri: str, begin: int, end: int) -> Iterator[tuple[Entry, int]]:
    """The members in a run of the directory, and the bytes of each as it is packed.

    Args:
        uri: the archive.
        begin: where an entry of the directory begins in the file; 0 for the first one.
        end: where the run ends; 0 for the end of the directory.

    Raises:
        BrokenArchive: the directory is damaged.
    """
    found = directory(uri)
    at = begin or found.begin
    stop = min(end or found.end, found.end)
    names = storage.open_range(uri, at, found.end - at)
    data = storage.open_range(uri)
    while at < stop:
        head = read_fully(names, MEMBER_FIELDS.size)
        if len(head) < MEMBER_FIELDS.size or not head.startswith(MEMBER):
            raise BrokenArchive(f"its directory is damaged at byte {at}")
        _, made, _, flags, method, _, _, crc, packed, size, n, x, c, _, _, mode, place = (
            MEMBER_FIELDS.unpack(head)
        )
        rest = read_fully(names, n + x + c)
        if len(rest) < n + x + c:
            raise BrokenArchive("its directory ends too early")
        size, packed, place = _sizes(rest[n : n + x], size, packed, place)
        at += len(head) + len(rest)
        name = _name(rest[:n], flags, made >> 8)
        if name.endswith("/"):
            continue
        special = _special(flags, method, made >> 8, mode)
        member = _Member(data, place + found.shift, packed, size, method, crc, name)
        yield Entry(name, at - len(head) - len(rest), size, special, member), packed  # type: ignore[arg-type]


def _sizes(extra: bytes, size: int, packed: int, place: int) -> tuple[int, int, int]:
    """The same with zip64's field, which holds those that 32 bits do not, in this order."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            count = min(length, len(extra) - at - 4) // 8
            numbers = iter(struct.unpack_from(f"<{count}Q", extra, at + 4))
            try:
                size = next(numbers) if size == FULL_32 else size
                packed = next(numbers) if packed == FULL_32 else packed
                place = next(numbers) if place == FULL_32 else place
            except StopIteration:
                raise BrokenArchive("a zip64 field of its directory is damaged") from None
        at += 4 + length
    return size, packed, place


def _name(raw: bytes, flags: int, system: int) -> str:
    name = raw.decode("utf-8", "backslashreplace") if flags & UTF_8 else _old_name(raw)
    return (name.replace("\\", "/") if system in DOS else name).lstrip("/")


def _old_name(raw: bytes) -> str:
    """A name that is not said to be UTF-8: it mostly is, else of code page 437."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp437")


def _special(flags: int, method: int, system: int, mode: int) -> str | None:
    if flags & ENCRYPTED:
        return "encrypted member"
    if method not in OPENERS:
        return f"member packed by method {method}, which is not read here (pack it by deflate)"
    if system not in DOS and (mode >> 16) & 0o170000 == UNIX_LINK:
        return "symbolic link"
    return None


class _Member:
    """The bytes of a member, checked at their end."""

    def __init__(
        self, data: BinaryIO, place: int, packed: int, size: int, method: int, crc: int, name: str
    ) -> None:
        self._data, self._place, self._packed = data, place, packed
        self._left, self._method, self._crc, self._name = size, method, crc, name
        self._stream: Any = None
        self._sum = 0

    def _opened(self) -> Any:
        self._data.seek(self._place)
        head = read_fully(self._data, 30)
        if len(head) < 30 or not head.startswith(LOCAL):
            raise BrokenMember(f"there is no member '{self._name}' where the directory says")
        name, extra = struct.unpack_from("<2H", head, 26)
        self._data.seek(self._place + 30 + name + extra)
        return OPENERS[self._method](Content(self._data, self._packed, self._name))

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; fewer only at the end.

        Raises:
            BrokenMember: it is damaged.
        """
        wanted = self._left if size < 0 else min(size, self._left)
        try:
            self._stream = self._stream or self._opened()
            found = read_fully(self._stream, wanted)
        except BrokenArchive as error:
            raise BrokenMember(str(error)) from None
        self._sum = zlib.crc32(found, self._sum)
        self._left -= len(found)
        if len(found) < wanted or (not self._left and self._sum != self._crc):
            raise BrokenMember("it ends too early" if len(found) < wanted else "its CRC is wrong")
        return found

    def seekable(self) -> bool:
        """It is read as a stream."""
        return False
