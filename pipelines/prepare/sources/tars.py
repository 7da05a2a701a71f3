"""Tar archives as streams: names, kinds and bytes of the members, nothing written anywhere.

Only what an image archive needs: ustar, GNU long names, pax paths and sizes. Written out here
because an archive is untrusted: every size is bounded before it is read, links and devices are
never followed, and names are only ever text. Field offsets: POSIX.1-1988 (ustar).
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
MAX_NAME_BYTES = 1 << 20  # of a pax header or a GNU long name
MAX_SIZE = 1 << 50  # of a member
REGULAR, LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL, FOLDER = b"0", b"L", b"K", b"x", b"g", b"5"
SPECIAL = {b"1": "hard link", b"2": "symbolic link", b"3": "device", b"4": "device", b"6": "fifo"}
PIECE_BYTES = 1 << 20


class BrokenArchive(Exception):
    """The archive itself is damaged from some byte on."""


class Entry(NamedTuple):
    """One member."""

    name: str
    begin: int
    """First byte of its headers in the stream."""
    size: int
    special: str | None
    """What it is when it is no regular file, such as `symbolic link`."""
    content: BinaryIO
    """Its bytes; read them before asking for the next member."""


class Content:
    """The bytes of one member, as a stream that ends where the member ends."""

    def __init__(self, stream: BinaryIO, size: int, name: str) -> None:
        """Start at the stream's present place."""
        self._stream, self._left, self._name = stream, size, name

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; fewer only at the end of the member."""
        wanted = self._left if size < 0 else min(size, self._left)
        data = read_fully(self._stream, wanted)
        if len(data) < wanted:
            raise BrokenArchive(f"the archive ends inside {self._name!r}")
        self._left -= wanted
        return data

    def skip(self) -> None:
        """Go to the end of the member."""
        if self._left > PIECE_BYTES and self._stream.seekable():
            # Asking for the last byte tells a cut archive from a whole one.
            self._stream.seek(self._left - 1, 1)
            self._left = 1
        while self._left:
            self.read(PIECE_BYTES)

    def seekable(self) -> bool:
        """A nested archive is read as a stream."""
        return False


def entries(stream: BinaryIO) -> Iterator[Entry]:
    """The members one after the other, folders and archive-internal headers left out.

    Raises:
        BrokenArchive: a header is damaged, or the archive is empty or ends too early.
    """
    at = begin = 0
    name: str | None = None
    size: int | None = None
    while header := read_fully(stream, BLOCK):
        if len(header) < BLOCK:
            raise BrokenArchive(f"the archive ends inside the header at byte {at}")
        if not any(header):
            return
        _check(header, at)
        kind = header[156:157]
        held = _number(header[124:136], at)
        if kind in (LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL):
            if held > MAX_NAME_BYTES:
                raise BrokenArchive(f"a name of {held} bytes is claimed at byte {at}")
            extra = Content(stream, held, "a long name").read()
            if kind == LONG_NAME:
                name = _text(extra.split(b"\0")[0])
            elif kind == PAX:
                name, size = _pax(extra, name, size)
            at += BLOCK + _pad(stream, held)
            continue
        member = _name(header) if name is None else name
        length = held if size is None else size
        if length > MAX_SIZE:
            raise BrokenArchive(f"a member of {length} bytes is claimed at byte {begin}")
        if kind not in SPECIAL and kind != FOLDER:
            content = Content(stream, length, member)
            yield Entry(member, begin, length, None, content)  # type: ignore[arg-type]
            content.skip()
            at += BLOCK + _pad(stream, length)
        else:
            if kind in SPECIAL:
                empty = Content(stream, 0, member)
                yield Entry(member, begin, 0, SPECIAL[kind], empty)  # type: ignore[arg-type]
            at += BLOCK
        begin, name, size = at, None, None
    if not at:
        raise BrokenArchive("there are no bytes in it")


def read_fully(stream: BinaryIO, size: int) -> bytes:
    """`size` bytes, fewer only at the end of the stream."""
    data = stream.read(size)
    if len(data) == size or not data:
        return data
    parts = [data]
    left = size - len(data)
    while left and (data := stream.read(left)):
        parts.append(data)
        left -= len(data)
    return b"".join(parts)


def padded_size(size: int) -> int:
    """Size with the padding to whole blocks."""
    return size + -size % BLOCK


def _pad(stream: BinaryIO, size: int) -> int:
    """Skip the padding behind `size` bytes; returns the padded size."""
    read_fully(stream, padded_size(size) - size)
    return padded_size(size)


def _check(header: bytes, at: int) -> None:
    said = _number(header[148:156], at)
    if said != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise BrokenArchive(f"the header at byte {at} does not match its checksum")


def _number(field: bytes, at: int) -> int:
    if field[:1] == b"\x80":  # GNU: binary where octal digits do not suffice
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    if digits.strip(b"01234567"):  # int() would also take a sign, and read to the end for it
        raise BrokenArchive(f"the header at byte {at} holds no number: {field!r}")
    return int(digits or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:262] == b"ustar" else b""
    is_gnu = header[257:265] == b"ustar  \0"  # GNU keeps times where POSIX keeps a prefix
    return _text(prefix + b"/" + name if prefix and not is_gnu else name)


def _pax(data: bytes, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    """Records are `LENGTH NAME=VALUE\\n`; only path and size matter here."""
    at = 0
    while at < len(data):
        digits = data[at : at + 10].split(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        field, _, value = data[at + len(digits) + 1 : at + length - 1].partition(b"=")
        if length <= len(digits) + 1 or (field == b"size" and not value[:20].isdigit()):
            raise BrokenArchive("a pax header is damaged")
        if field == b"path":
            name = _text(value)
        elif field == b"size":
            size = int(value[:20])
        at += length
    return name, size


def _text(name: bytes) -> str:
    """Bytes that are not UTF-8 are written as `\\xff`."""
    return name.decode("utf-8", "backslashreplace")
