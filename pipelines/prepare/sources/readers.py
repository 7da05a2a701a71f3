"""The images inside a piece of a source, one after the other, as a stream."""

import errno
import gzip
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from pipelines import storage
from pipelines.prepare.normalise import Fault
from pipelines.prepare.sources import tables, tars
from pipelines.prepare.sources.listing import UNKNOWN, Piece, folder_in, is_guess, place_in
from pipelines.prepare.sources.ranges import (
    ARCHIVE_SUFFIXES,
    IMAGE_SUFFIXES,
    MAX_KEY_CHARS,
    archive_stem,
    is_seen,
    leads_outside,
    sample_of,
)

MAX_FILE_BYTES = 128 << 20  # of one image's file; a larger one is never read
MAX_LABEL_BYTES = 1 << 10
MAX_SAMPLE_PICTURES = 16  # with one name in a WebDataset shard; MAX_FILE_BYTES in all
NO_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
NO_PLACE = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)


class Member(NamedTuple):
    """One image as the source has it: its bytes, or why there are none."""

    key: str
    data: bytes | None
    split: str | None
    class_name: str | None
    fault: Fault | None = None
    uri: str | None = None
    """Where its bytes can be read again; None inside an archive."""


class Beside(NamedTuple):
    """What is met beside the images of a piece."""

    others: Counter[str]
    """What is not read, by kind."""
    folders: Counter[str]
    """Images by folder of the tree, where names alone placed them (see `layout`)."""

    @classmethod
    def empty(cls) -> "Beside":
        """Nothing yet."""
        return cls(Counter(), Counter())


def members(piece: Piece, beside: Beside | None = None) -> Iterator[Member]:
    """Read a piece; what is in it and not read is counted in `beside`.

    Raises:
        OSError: bad luck: the storage failed for longer than we try.
    """
    if piece.kind == "file":
        yield read_file(piece)
    elif piece.kind == "parquet":
        yield from _of_parquet(piece, beside or Beside.empty())
    else:
        yield from _of_tar(piece, beside or Beside.empty())


def read_file(piece: Piece) -> Member:
    """The one image of a file.

    Raises:
        OSError: the storage failed or refused access, or the file is not the one that was listed.
    """
    member = Member(piece.key, None, piece.split, piece.class_name, uri=piece.uri)
    if "\0" in piece.uri:
        return member._replace(fault=Fault("unreadable", "a zero byte in its name"))
    try:
        size = storage.size(piece.uri) if piece.bytes == UNKNOWN else piece.bytes
        if size > MAX_FILE_BYTES:
            return member._replace(fault=_too_large(size))
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


def _too_large(size: int) -> Fault:
    return Fault("too_large", f"{size} bytes; at most {MAX_FILE_BYTES} are read")


def _of_parquet(piece: Piece, beside: Beside) -> Iterator[Member]:
    for cell in tables.cells(piece.uri, piece.begin, piece.end):
        class_name = cell.class_name or piece.class_name
        member = Member(f"{piece.key}{cell.row:07}", None, piece.split, class_name)
        if cell.bad_label is not None:
            message = f"label {cell.bad_label} is no class of the column"
            yield member._replace(fault=Fault("missing_label", message))
        elif cell.data is None:
            beside.others["cell of an image column that is empty"] += 1
        elif cell.data.size > MAX_FILE_BYTES:
            yield member._replace(fault=_too_large(cell.data.size))
        else:
            yield member._replace(data=cell.data.to_pybytes())


def _of_tar(piece: Piece, beside: Beside) -> Iterator[Member]:
    stream = storage.open_range(piece.uri, piece.begin, piece.bytes)
    yield from _labelled(_archive(stream, piece, beside, depth=0))


class _File(NamedTuple):
    """A file of an archive that matters: an image, or a class for its namesakes."""

    sample: str
    """Folder and name up to the first dot: files of one WebDataset sample share it."""
    member: Member | None
    label: str | None = None


def _archive(stream: Any, piece: Piece, beside: Beside, depth: int) -> Iterator[_File]:
    """The files of an archive, or of one in it; damage ends that archive and is reported."""
    try:
        yield from _pictures(stream, piece, beside, depth)
    except tars.BrokenArchive as error:
        key = f"{piece.key}@{piece.begin}"
        fault = Fault("broken_archive", f"{piece.key or piece.uri}: {error}")
        yield _File(key, Member(key, None, piece.split, None, fault))


def _pictures(stream: Any, piece: Piece, beside: Beside, depth: int) -> Iterator[_File]:
    for entry in tars.entries(_plain(stream)):
        name = entry.name.removeprefix("./")
        if len(name) > MAX_KEY_CHARS:
            key = f"{piece.key}{name[:200]}...@{entry.begin}"
            refused = Fault("refused", f"a name of {len(name)} characters; at most {MAX_KEY_CHARS}")
            yield _File(key, Member(key, None, piece.split, None, refused))
            continue
        path = PurePosixPath(name)
        if not is_seen(name):
            if path.suffix.lower() in IMAGE_SUFFIXES and not entry.special:
                beside.others["image with a hidden name"] += 1
            continue
        sample = piece.key + sample_of(name)
        where = place_in(piece, name)
        is_image = path.suffix.lower() in IMAGE_SUFFIXES
        if is_image and not entry.special and is_guess(piece):
            beside.folders[folder_in(piece, name)] += 1
        if where.left_out is not None:
            if is_image:
                beside.others[f"image {where.left_out}"] += 1
            continue
        member = Member(piece.key + name, None, where.split, where.class_name)
        if entry.special or leads_outside(path):
            what = f"a {entry.special}" if entry.special else "a path that leads outside"
            refused = Fault("refused", f"{what}; only files below the archive's root are read")
            yield _File(sample, member._replace(fault=refused))
        elif name.lower().endswith(ARCHIVE_SUFFIXES) and depth == 0:
            inner = piece._replace(
                key=f"{piece.key}{archive_stem(str(path))}/",
                class_name=path.name.split(".")[0],
                begin=0,
            )
            yield from _archive(entry.content, inner, beside, depth=1)
        elif path.suffix.lower() == ".cls" and entry.size <= MAX_LABEL_BYTES:
            yield _File(sample, None, entry.content.read().decode("utf-8", "replace").strip())
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            if entry.size > MAX_FILE_BYTES:
                yield _File(sample, member._replace(fault=_too_large(entry.size)))
            else:
                yield _File(sample, member._replace(data=entry.content.read()))


def _labelled(files: Iterator[_File]) -> Iterator[Member]:
    """Give the class in a `.cls` file to the images of its sample."""
    sample, label = "", None
    waiting: list[Member] = []
    for file in files:
        held = sum(len(member.data or b"") for member in waiting)
        full = len(waiting) == MAX_SAMPLE_PICTURES or held > MAX_FILE_BYTES
        if file.sample != sample or full:
            yield from (_with_class(member, label) for member in waiting)
            sample, label, waiting = file.sample, None, []
        label = file.label or label
        if file.member:
            waiting.append(file.member)
    yield from (_with_class(member, label) for member in waiting)


def _with_class(member: Member, label: str | None) -> Member:
    return member if label is None else member._replace(class_name=label)


def _plain(stream: Any) -> BinaryIO:
    """The tar behind a stream that may be compressed."""
    head = _Head(stream)
    return cast(BinaryIO, _Gunzip(head) if head.first == b"\x1f\x8b" else head)


class _Head:
    """A stream whose first two bytes have been looked at."""

    def __init__(self, stream: Any) -> None:
        self.first = tars.read_fully(stream, 2)
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


class _Gunzip:
    """gzip as a stream: its damage is damage of the archive; storage errors stay what they are."""

    def __init__(self, stream: Any) -> None:
        self._file = gzip.GzipFile(fileobj=stream, mode="rb")

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._file.read(size))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise tars.BrokenArchive(f"the compressed stream is damaged: {error}") from None

    def seekable(self) -> bool:
        return False
