"""The images inside a piece of a source, one after the other, as a stream."""

import errno
from collections.abc import Iterator

from pipelines import storage
from pipelines.prepare.normalise import Fault
from pipelines.prepare.sources import archives, tables
from pipelines.prepare.sources.member import Beside as Beside
from pipelines.prepare.sources.member import Member as Member
from pipelines.prepare.sources.member import too_large
from pipelines.prepare.sources.piece import UNKNOWN, Piece

NO_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
NO_PLACE = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)


def members(
    piece: Piece, beside: Beside | None = None, *, labels_first: bool = False
) -> Iterator[Member]:
    """Read a piece; what is in it and not read is counted in `beside`.

    Args:
        piece: a part of a source.
        beside: gets what is not read.
        labels_first: see `archives.members_of`.

    Raises:
        OSError: bad luck: the storage failed for longer than we try.
        LateLabels: an archive has labels behind their images.
    """
    if piece.kind == "file":
        yield read_file(piece)
    elif piece.kind == "parquet":
        yield from _of_parquet(piece, beside or Beside.empty())
    else:
        yield from archives.members_of(piece, beside or Beside.empty(), labels_first=labels_first)


def read_file(piece: Piece) -> Member:
    """The one image of a file.

    Raises:
        OSError: the storage failed or refused access, or the file is not the one that was listed.
    """
    member = Member(piece.key, None, piece.split, piece.class_name, uri=piece.uri)
    member = member._replace(is_asked=piece.bytes == UNKNOWN)
    if "\0" in piece.uri:
        return member._replace(fault=Fault("unreadable", "a zero byte in its name"))
    try:
        size = storage.size(piece.uri) if piece.bytes == UNKNOWN else piece.bytes
        if fault := too_large(size):
            return member._replace(fault=fault)
        data = storage.read_bytes(piece.uri)
    except OSError as error:
        reason = f"{type(error).__name__}: {error.strerror or error}"
        if isinstance(error, PermissionError) and not storage.is_local(piece.uri):
            # s3fs has this one also for an expired token, a wrong key and a wrong clock.
            raise OSError(
                f"access to {piece.uri} was refused ({reason}); check credentials and permissions"
            ) from error
        if not isinstance(error, NO_FILE) and error.errno not in NO_PLACE:
            raise
        return member._replace(fault=Fault("unreadable", reason))
    if len(data) != size:
        raise OSError(f"{piece.uri} has {len(data)} bytes; {size} were listed")
    return member._replace(data=data)


def _of_parquet(piece: Piece, beside: Beside) -> Iterator[Member]:
    for cell in tables.cells(piece.uri, piece.begin, piece.end):
        class_name = cell.class_name or piece.class_name
        member = Member(f"{piece.key}{cell.row:07}", None, piece.split, class_name)
        if cell.bad_label is not None:
            message = f"label {cell.bad_label} is no class of the column"
            yield member._replace(fault=Fault("missing_label", message))
        elif cell.data is None:
            beside.others["cell of an image column that is empty"] += 1
        elif fault := too_large(cell.data.size):
            yield member._replace(fault=fault)
        else:
            yield member._replace(data=cell.data.to_pybytes())
