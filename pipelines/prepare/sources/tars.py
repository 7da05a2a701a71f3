"""Tar archives as streams: names, kinds and bytes of the members, nothing written anywhere.

Only what an image archive needs: ustar, GNU long names, pax paths and sizes, sparse members.
Written out here because an archive is untrusted: every size is bounded before it is read, links and
devices are never followed, and names are only ever text. Archives that were joined (`cat a.tar
b.tar`) are read to the last one. Field offsets: POSIX.1-1988 (ustar).
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from pipelines.prepare.sources import sparse
from pipelines.prepare.sources.sparse import BLOCK as BLOCK
from pipelines.prepare.sources.sparse import SparseContent
from pipelines.prepare.sources.streams import BrokenArchive as BrokenArchive
from pipelines.prepare.sources.streams import BytesBehind
from pipelines.prepare.sources.streams import read_fully as read_fully

MAX_NAME_BYTES = 1 << 20  # of a pax header or a GNU long name
MAX_SIZE = 1 << 50  # of a member
REGULAR, LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL, FOLDER = b"0", b"L", b"K", b"x", b"g", b"5"
HARD_LINK = "hard link"
SPECIAL = {b"1": HARD_LINK, b"2": "symbolic link", b"3": "device", b"4": "device", b"6": "fifo"}
SPARSE = b"S"
BEHIND = "bytes behind the end of an archive"
PIECE_BYTES = 1 << 20
ZERO_BYTES = 64 << 20  # between joined archives, or behind the last one, before we stop looking


class Entry(NamedTuple):
    """One member."""

    name: str
    begin: int
    """First byte of its headers in the stream."""
    size: int
    special: str | None
    """What it is when it is no regular file, such as `symbolic link`; BEHIND for what is no tar."""
    content: BinaryIO
    """Its bytes; read them before asking for the next member."""
    link: str = ""
    """The name that a hard link leads to."""


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


class _Said(NamedTuple):
    """What the headers before a member say of it."""

    name: str | None = None
    size: int | None = None
    link: str | None = None
    sparse: tuple[tuple[bytes, bytes], ...] = ()


def entries(stream: BinaryIO) -> Iterator[Entry]:
    """The members one after the other, folders and archive-internal headers left out.

    Raises:
        BrokenArchive: a header is damaged, or the archive is empty or ends too early.
    """
    at = begin = 0
    said = _Said()
    while header := read_fully(stream, BLOCK):
        if not any(header):
            header, zeros = _behind_zeros(stream)
            if not header:
                return
            at += zeros
            begin = at
            if not _is_header(header):
                yield Entry("", begin, 0, BEHIND, Content(stream, 0, ""))  # type: ignore[arg-type]
                return
        if len(header) < BLOCK:
            raise BrokenArchive(f"the archive ends inside the header at byte {at}")
        _check(header, at)
        kind = header[156:157]
        held = _number(header[124:136], at)
        if kind in (LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL):
            if held > MAX_NAME_BYTES:
                raise BrokenArchive(f"a name of {held} bytes is claimed at byte {at}")
            extra = Content(stream, held, "a long name").read()
            if kind == LONG_NAME:
                said = said._replace(name=_text(extra.split(b"\0")[0]))
            elif kind == LONG_LINK:
                said = said._replace(link=_text(extra.split(b"\0")[0]))
            elif kind == PAX:
                said = _pax(extra, said)
            at += BLOCK + _pad(stream, held)
            continue
        member = _below(_name(header) if said.name is None else said.name)
        length = held if said.size is None else said.size
        if length > MAX_SIZE:
            raise BrokenArchive(f"a member of {length} bytes is claimed at byte {begin}")
        at += BLOCK
        if kind in SPECIAL:
            link = _text(header[157:257].split(b"\0")[0]) if said.link is None else said.link
            empty = Content(stream, 0, member)
            yield Entry(member, begin, 0, SPECIAL[kind], empty, _below(link))  # type: ignore[arg-type]
        elif kind != FOLDER:
            runs: tuple[sparse.Runs, int] | None = None
            if kind == SPARSE:
                stored, whole_size, more = sparse.gnu_runs(header, stream)
                runs, at = (stored, whole_size), at + more
            content = Content(stream, length, member)
            if said.sparse:
                runs = sparse.pax_runs(said.sparse, content)
            if runs is None:
                yield Entry(member, begin, length, None, content)  # type: ignore[arg-type]
            else:
                whole = SparseContent(content, *runs)
                yield Entry(member, begin, runs[1], None, whole)  # type: ignore[arg-type]
            content.skip()
            at += _pad(stream, length)
        begin, said = at, _Said()
    if not at:
        raise BrokenArchive("there are no bytes in it")


def _behind_zeros(stream: BinaryIO) -> tuple[bytes, int]:
    """The first block that is not all zero, and the bytes before it; nothing at the end."""
    zeros = BLOCK
    try:
        while zeros <= ZERO_BYTES and (block := read_fully(stream, BLOCK)):
            if any(block):
                return block, zeros
            zeros += len(block)
    except BytesBehind:  # the tar is whole
        return b"behind", zeros
    return b"", zeros


def _is_header(block: bytes) -> bool:
    try:
        _check(block, 0)
    except BrokenArchive:
        return False
    return len(block) == BLOCK


def _below(name: str) -> str:
    """A name without the slashes that would make it absolute, as tar itself unpacks it."""
    return name.lstrip("/")


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


def _pax(data: bytes, said: _Said) -> _Said:
    """Records are `LENGTH NAME=VALUE\\n`; path, link, size and sparse maps matter here."""
    at = 0
    name, size, link = said.name, said.size, said.link
    runs: list[tuple[bytes, bytes]] = []
    while at < len(data):
        digits = data[at : at + 10].split(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        field, _, value = data[at + len(digits) + 1 : at + length - 1].partition(b"=")
        if length <= len(digits) + 1 or (field == b"size" and not value[:20].isdigit()):
            raise BrokenArchive("a pax header is damaged")
        if field == b"path":
            name = _text(value)
        elif field == b"linkpath":
            link = _text(value)
        elif field == b"size":
            size = int(value[:20])
        elif field.startswith(sparse.PREFIX):
            runs.append((field.removeprefix(sparse.PREFIX), value))
        at += length
    named = dict(runs).get(b"name")
    return _Said(name if named is None else _text(named), size, link, tuple(runs))


def _text(name: bytes) -> str:
    """Bytes that are not UTF-8 are written as `\\xff`."""
    return name.decode("utf-8", "backslashreplace")
