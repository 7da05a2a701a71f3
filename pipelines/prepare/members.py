"""The pictures inside a piece of a source, one after the other."""

from collections.abc import Iterator
from typing import NamedTuple

from pipelines import storage
from pipelines.prepare.pictures import Fault
from pipelines.prepare.sources import Piece


class Member(NamedTuple):
    """One picture as the source has it: its bytes, or why there are none."""

    key: str
    data: bytes | None
    split: str | None
    class_name: str | None
    fault: Fault | None = None


def members(piece: Piece) -> Iterator[Member]:
    """Read a piece as a stream.

    Raises:
        OSError: bad luck: the storage failed for longer than we try.
    """
    yield _file(piece)


def _file(piece: Piece) -> Member:
    try:
        data = storage.read_bytes(piece.uri)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        fault = Fault("unreadable", f"{type(error).__name__}: {error.strerror or error}")
        return Member(piece.key, None, piece.split, piece.class_name, fault)
    return Member(piece.key, data, piece.split, piece.class_name)
