"""Compressed streams: gzip, bzip2, xz and zstd, by their first bytes, joined ones to the end.

Damage of the stream is damage of the archive (`BrokenArchive`); an error of the storage stays what
it is. Formats: RFC 1952, RFC 8878, tukaani.org/xz/xz-file-format.txt.
"""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa

PIECE_BYTES = 1 << 18
LZMA_MEMORY = 256 << 20  # xz -9 needs 65 MiB; a hostile stream would ask for 4 GiB
MAGIC_BYTES = 6


class BrokenArchive(Exception):
    """The archive itself is damaged from some byte on."""


class BytesBehind(BrokenArchive):
    """The compressed stream is whole, and what follows it is none."""


class BrokenMember(Exception):
    """One member is damaged or cannot be read; the others can."""


class Decompressor(Protocol):
    """What bz2 and lzma have in common."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""

    @property
    def unused_data(self) -> bytes:
        """What stands behind it."""

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes from what was given."""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """At most `max_length` bytes more."""


class Inflate:
    """Raw deflate, as zip has it, in the shape of bz2's decompressor."""

    def __init__(self) -> None:
        """At the stream's first byte."""
        self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        """What stands behind it."""
        return self._zlib.unused_data

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes from what was given."""
        return not self._zlib.unconsumed_tail

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """At most `max_length` bytes more."""
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max(max_length, 0))


class Unpacked:
    """A compressed stream as a plain one; what follows its end is unpacked as a further stream."""

    def __init__(self, stream: Any, make: Callable[[], Decompressor], *, joined: bool) -> None:
        """Start at the stream's present place."""
        self._stream, self._make, self._joined = stream, make, joined
        self._part = make()
        self._is_further = False

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; none only at the end."""
        if size < 0:
            return b"".join(iter(lambda: self.read(PIECE_BYTES), b""))
        while size:
            rest = self._part.unused_data if self._part.eof else b""
            if self._part.eof:
                rest = rest or self._stream.read(PIECE_BYTES)
                rest = rest.lstrip(b"\0")  # xz pads with zeros
                if not rest or not self._joined:
                    return b""
                self._part, self._is_further = self._make(), True
            elif self._part.needs_input:
                rest = self._stream.read(PIECE_BYTES)
                if not rest:
                    raise BrokenArchive("the compressed stream ends too early")
            try:
                found = self._part.decompress(rest, size)
            except (OSError, ValueError, EOFError, lzma.LZMAError, zlib.error) as error:
                kind = BytesBehind if self._is_further else BrokenArchive
                raise kind(f"the compressed stream is damaged: {error}") from None
            self._is_further = self._is_further and not found
            if found:
                return found
        return b""

    def seekable(self) -> bool:
        """It is read from its begin to its end."""
        return False


class _Gunzip:
    """gzip: Python's reader joins streams and checks each."""

    def __init__(self, stream: Any) -> None:
        self._file = gzip.GzipFile(fileobj=stream, mode="rb")

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._file.read(size))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            if str(error).startswith("Not a gzipped file"):
                raise BytesBehind(str(error)) from None
            raise BrokenArchive(f"the compressed stream is damaged: {error}") from None

    def seekable(self) -> bool:
        return False


class _Watched:
    """A stream that remembers the error of its storage, for Arrow, which gives both as OSError."""

    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except Exception as error:
            self.error = error
            raise

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


class Zstd:
    """zstd by Arrow, which joins frames; windows up to 128 MiB, as `zstd` itself allows."""

    def __init__(self, stream: Any) -> None:
        """Start at the stream's present place."""
        self._watched = _Watched(stream)
        self._file = pa.CompressedInputStream(pa.PythonFile(self._watched, "r"), "zstd")

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; none only at the end."""
        try:
            return bytes(self._file.read(size if size >= 0 else None))
        except Exception as error:
            if self._watched.error is not None:
                raise self._watched.error from None
            if "nknown frame descriptor" in str(error):
                raise BytesBehind(str(error)) from None
            raise BrokenArchive(f"the compressed stream is damaged: {error}") from None

    def seekable(self) -> bool:
        """It is read from its begin to its end."""
        return False


def new_lzma() -> Decompressor:
    """Of xz or of the older `.lzma`."""
    return lzma.LZMADecompressor(lzma.FORMAT_AUTO, LZMA_MEMORY)


MAGICS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": _Gunzip,
    b"BZh": lambda stream: Unpacked(stream, bz2.BZ2Decompressor, joined=True),
    b"\xfd7zXZ\0": lambda stream: Unpacked(stream, new_lzma, joined=True),
    b"\x28\xb5\x2f\xfd": Zstd,
}


def plain(stream: Any) -> BinaryIO:
    """What a stream holds that may be compressed."""
    head = _Head(stream)
    for magic, opened in MAGICS.items():
        if head.first.startswith(magic):
            return cast(BinaryIO, opened(head))
    return cast(BinaryIO, head)


def read_fully(stream: Any, size: int) -> bytes:
    """`size` bytes, fewer only at the end of the stream."""
    data = bytes(stream.read(size))
    if len(data) == size or not data:
        return data
    parts = [data]
    left = size - len(data)
    while left and (data := stream.read(left)):
        parts.append(data)
        left -= len(data)
    return b"".join(parts)


class _Head:
    """A stream whose first bytes have been looked at."""

    def __init__(self, stream: Any) -> None:
        self.first = read_fully(stream, MAGIC_BYTES)
        self._kept, self._stream = self.first, stream

    def read(self, size: int = -1) -> bytes:
        kept = self._kept[:size] if size >= 0 else self._kept
        self._kept = self._kept[len(kept) :]
        rest = self._stream.read(size - len(kept) if size >= 0 else -1)
        return kept + bytes(rest)

    def seekable(self) -> bool:
        return not self._kept and bool(self._stream.seekable())

    def seek(self, offset: int, whence: int) -> int:
        return int(self._stream.seek(offset, whence))
