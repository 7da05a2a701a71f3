"""Byte ranges of objects, and objects as seekable streams."""

import hashlib
import io
from collections.abc import Callable
from typing import Any, BinaryIO

from pipelines.storage.objects import filesystem, is_local, local_path, retrying, size


def read_range(uri: str, begin: int, end: int) -> bytes:
    """The bytes begin .. end - 1 of an object.

    Raises:
        OSError: the storage gave fewer bytes than that.
    """
    if is_local(uri):
        with local_path(uri).open("rb") as file:
            file.seek(begin)
            return _whole(file.read(end - begin), uri, begin, end)
    fs, path = filesystem(uri)
    return retrying(
        lambda: _whole(bytes(fs.cat_file(path, start=begin, end=end)), uri, begin, end),
        f"reading {uri}",
    )


def _whole(data: bytes, uri: str, begin: int, end: int) -> bytes:
    if len(data) != end - begin:
        raise OSError(f"{uri}: {len(data)} bytes instead of {end - begin} from byte {begin}")
    return data


class RangeReader(io.RawIOBase):
    """A seekable stream over a byte range, read in large pieces by `read_range`.

    Each piece has exactly the length that was asked for and is tried again when it has not, which
    buffered readers of object stores leave unchecked.
    """

    PIECE_BYTES = 8 << 20

    def __init__(
        self,
        uri: str,
        begin: int = 0,
        length: int | None = None,
        count: Callable[[int], None] | None = None,
    ) -> None:
        """The whole object, or `length` bytes of it; `count` gets the bytes of every piece."""
        super().__init__()
        self._uri, self._begin, self._at, self._count = uri, begin, 0, count
        self._length = size(uri) - begin if length is None else length

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes: only what is read is fetched."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move inside the range."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(origin + offset, 0)
        return self._at

    def tell(self) -> int:
        """Place inside the range."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the range goes."""
        wanted = max(min(len(buffer), self._length - self._at), 0)
        if wanted:
            begin = self._begin + self._at
            buffer[:wanted] = read_range(self._uri, begin, begin + wanted)
            self._at += wanted
            if self._count is not None:
                self._count(wanted)
        return wanted


def open_range(
    uri: str,
    begin: int = 0,
    length: int | None = None,
    piece_bytes: int = RangeReader.PIECE_BYTES,
    count: Callable[[int], None] | None = None,
) -> BinaryIO:
    """Read a byte range as a stream, `piece_bytes` at a time; `count` gets the bytes of each.

    Raises:
        OSError: (while reading) the storage failed for longer than we try.
    """
    return io.BufferedReader(RangeReader(uri, begin, length, count), piece_bytes)


def open_input(uri: str, count: Callable[[int], None] | None = None) -> BinaryIO:
    """A seekable reader; `count` gets the bytes of every piece that comes from a store."""
    if is_local(uri):
        return local_path(uri).open("rb")
    return open_range(uri, piece_bytes=1 << 20, count=count)


def sha256_of_uri(uri: str) -> str:
    """Hex digest of an object, read in pieces."""
    digest = hashlib.sha256()
    with open_input(uri) as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
