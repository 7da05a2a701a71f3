"""What a source holds: a stream of pieces, each small to describe and large enough to read.

A source is any URI of
    a folder    train/ and val/ with class folders, class folders, or flat; the files in it may be
                images, archives (WebDataset shards, the ImageNet tars) or Parquet files
    an archive  .tar, .tar.gz, .tgz; shards as in `name-{000000..000146}.tar`
    Parquet     an image column: bytes, or {bytes, path} as Hugging Face writes it
    a list      .txt, .csv, .tsv with `URI [LABEL]` per line, or Parquet with a URI column

A piece is a file, a byte range of a tar between two members, a tar inside a tar, a compressed
archive, or a run of row groups. Listing reads names, sizes and headers only and holds a part of
them (see `storage.walk`), so that its memory does not grow with the number of images.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from pipelines import storage
from pipelines.errors import UserError
from pipelines.prepare.sources import tables, tars

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
)
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".lst")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
TEST_NAME = re.compile(r"test(s|ing)?\d*")  # such a folder beside train/ is left out on purpose
UNKNOWN = -1  # size of an image that only a list names
RANGE_BYTES = 64 << 20  # of a tar or a Parquet file; less where a single row group is larger
SAMPLE_BYTES = 256 << 20  # more files of one stem than that are no sample: they are cut, too
SCAN_BYTES = 1 << 16  # headers of a nested tar lie far apart
MAX_KEY_CHARS = 4096  # of a name in an archive; file systems and buckets have no longer ones
LOOKED_AT = 10_000  # files of a folder beside train/ and val/, for an image among them
SHOWN = 3  # names of folders in a message


class Piece(NamedTuple):
    """A part of a source that one task reads. There are millions: a tuple is quick to store."""

    kind: Literal["file", "tar", "parquet"]
    uri: str
    key: str
    """Of a file: its key. Else what stands before the keys of its images."""
    bytes: int
    split: str | None = None
    """`train` or `val` where the source says so."""
    class_name: str | None = None
    begin: int = 0
    """First byte of a tar's range; first row group."""
    end: int = 0
    """Last row group + 1."""


def pieces(source: str, others: Counter[str]) -> Iterator[Piece]:
    """All pieces of a source in a fixed order; what else is there is counted, files by suffix.

    Raises:
        UserError: there is nothing at that place.
    """
    if "{" in source:
        for uri in expand_braces(source):
            name = uri.rsplit("/", 1)[-1]
            yield from _of_file(uri, name, storage.size(uri), None, others)
    elif not storage.exists(source):
        raise UserError(f"source is '{source}'; there is no such file or folder")
    elif storage.is_folder(source):
        yield from _of_folder(source, others)
    else:
        yield from _of_single(source, others)


def expand_braces(source: str) -> list[str]:
    """`a-{000..002}.tar` -> a-000.tar, a-001.tar, a-002.tar.

    Raises:
        UserError: the braces hold something else.
    """
    match = re.fullmatch(r"([^{}]*)\{(\d+)\.\.(\d+)\}([^{}]*)", source)
    if not match or int(match[2]) > int(match[3]):
        raise UserError(
            f"source is '{source}'; braces must hold one rising range, as in s-{{000..146}}.tar"
        )
    width = len(match[2])
    numbers = range(int(match[2]), int(match[3]) + 1)
    return [f"{match[1]}{number:0{width}}{match[4]}" for number in numbers]


def _of_single(source: str, others: Counter[str]) -> Iterator[Piece]:
    name = source.rsplit("/", 1)[-1]
    if name.lower().endswith(LIST_SUFFIXES):
        yield from _of_list(source, tables.read_list(source))
    elif name.lower().endswith(".parquet") and tables.is_list(source):
        yield from _of_list(source, tables.read_parquet_list(source))
    else:
        for piece in _of_file(source, name, storage.size(source), None, others):
            # An archive alone needs no name before the names inside it.
            inside = piece.key.partition("/")[2]
            yield piece._replace(key=inside) if piece.kind == "tar" else piece


def _of_list(source: str, rows: Iterator[tuple[str, str | None]]) -> Iterator[Piece]:
    folder = source.rpartition("/")[0]
    for name, label in rows:
        uri = name if "://" in name or name.startswith("/") else storage.join(folder, name)
        yield Piece("file", uri, name, UNKNOWN, None, label)


def _of_folder(source: str, others: Counter[str]) -> Iterator[Piece]:
    spellings = {spelt for n in SPLIT_NAMES for spelt in (n, n.capitalize(), n.upper())}
    splits = storage.folders_among(source, spellings)
    if splits:
        _require_alone(source, splits, others)
    empty = True
    for name in splits or [""]:
        folder = storage.join(source, name) if name else source
        for below, size in storage.walk(folder):
            empty = False
            if not _is_seen(below):
                continue
            path = f"{name}/{below}" if name else below
            uri = storage.join(source, path)
            yield from _of_file(uri, path, size, SPLIT_NAMES.get(name.lower()), others)
    if empty:
        raise UserError(f"source is '{source}'; that folder is empty")


def _require_alone(source: str, splits: list[str], others: Counter[str]) -> None:
    """Refuse class folders beside split folders: only what is in a split folder is read."""
    with_pictures: list[str] = []
    for name in filter(_is_seen, storage.children(source)):
        # An image is taken for a file unasked: in a bucket each question is a request.
        if _is_picture(name):
            others[f"image beside {_quoted(splits)}"] += 1
        elif name not in splits and storage.is_folder(folder := storage.join(source, name)):
            if not TEST_NAME.fullmatch(name.lower()) and _holds_picture(folder):
                with_pictures.append(name)
            else:
                others[f"folder {_quoted([name])}"] += 1
        if len(with_pictures) == SHOWN:
            break
    if with_pictures:
        raise UserError(
            f"source is '{source}'; beside {_quoted(splits)} there are folders with images that "
            f"belong to no split, such as {_quoted(with_pictures)}. Move them out, or rename a "
            "folder that is a class and no split, or give a list of the images as --source"
        )


def _holds_picture(folder: str) -> bool:
    try:
        files = islice(storage.walk(folder), LOOKED_AT)
        return any(_is_seen(name) and _is_picture(name) for name, _ in files)
    except PermissionError:  # lost+found, say, at the root of a disk
        return False


def _is_picture(path: str) -> bool:
    return path.lower().endswith(tuple(IMAGE_SUFFIXES))


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{printable(name)}'" for name in names)


def _is_seen(path: str) -> bool:
    """Whether no part of a path is hidden."""
    return not any(part.startswith(".") for part in path.split("/"))


def _of_file(
    uri: str, path: str, size: int, split: str | None, others: Counter[str]
) -> Iterator[Piece]:
    """The pieces of one file; `path` is its place in the source."""
    lower = path.lower()
    suffix = PurePosixPath(lower).suffix
    if lower.endswith(ARCHIVE_SUFFIXES):
        yield from _of_archive(uri, path, size, split or split_in_name(path))
    elif suffix == ".parquet":
        stem = printable(path)[: -len(".parquet")]
        for first, last, held in tables.row_group_runs(uri, RANGE_BYTES):
            named = split or split_in_name(path)
            yield Piece("parquet", uri, f"{stem}/", held, named, None, first, last)
    elif suffix in IMAGE_SUFFIXES or not suffix:
        inside = PurePosixPath(path).parts[:-1]
        folders = inside[1:] if split else inside
        class_name = printable(folders[0]) if folders else None
        yield Piece("file", uri, printable(path), size, split, class_name)
    else:
        others[suffix] += 1


def _of_archive(uri: str, path: str, size: int, split: str | None) -> Iterator[Piece]:
    stem = archive_stem(printable(path))
    whole = Piece("tar", uri, f"{stem}/", size, split)
    if not path.lower().endswith(".tar") or not size:
        yield whole  # a compressed stream has no places to enter it, and an empty file is no tar
        return
    if not storage.is_local(uri) and not _begins_with_archive(uri):
        yield whole  # headers close together are not worth a request each
        return
    begin = end = 0
    sample = ""
    stream = storage.open_range(uri, 0, size, SCAN_BYTES)
    try:
        for entry in tars.entries(stream):
            here = stream.tell()
            own = sample_of(entry.name)
            if _is_inner_archive(entry):
                if end > begin:
                    yield whole._replace(begin=begin, bytes=end - begin)
                inner = PurePosixPath(entry.name)
                yield whole._replace(
                    key=f"{stem}/{archive_stem(str(inner))}/",
                    class_name=inner.name.split(".")[0],
                    begin=here,
                    bytes=min(entry.size, max(size - here, 0)),
                )
                begin = here + tars.padded_size(entry.size)
            elif end - begin >= RANGE_BYTES and (
                own not in ("", sample) or end - begin >= SAMPLE_BYTES
            ):
                yield whole._replace(begin=begin, bytes=entry.begin - begin)
                begin = entry.begin
            end = here + tars.padded_size(entry.size)
            sample = own or sample
    except tars.BrokenArchive:
        end = size  # whoever reads the last range meets the damage again and reports it
    if begin < min(end, size):
        yield whole._replace(begin=begin, bytes=min(end, size) - begin)


def archive_stem(path: str) -> str:
    """The path of an archive without the suffix that says so."""
    return path[: -len(next(s for s in ARCHIVE_SUFFIXES if path.lower().endswith(s)))]


def _is_inner_archive(entry: tars.Entry) -> bool:
    """Whether a member is an archive to read; of one that may not be read, `members` says why."""
    if entry.special or not entry.name.lower().endswith(ARCHIVE_SUFFIXES):
        return False
    path = PurePosixPath(entry.name)
    is_named = len(entry.name) <= MAX_KEY_CHARS and not path.name.startswith(".")
    return is_named and not leads_outside(path)


def leads_outside(path: PurePosixPath) -> bool:
    """Whether a member of an archive would lie outside the archive's root."""
    return path.is_absolute() or ".." in path.parts


def sample_of(name: str) -> str:
    """Path up to the name's first dot, shared by the files of a WebDataset sample; "" if hidden."""
    folder, slash, file = name.rpartition("/")
    stem = file.partition(".")[0]
    return stem and folder + slash + stem


def _begins_with_archive(uri: str) -> bool:
    try:
        first = next(tars.entries(storage.open_range(uri, piece_bytes=SCAN_BYTES)), None)
    except tars.BrokenArchive:
        return False
    return first is not None and first.name.lower().endswith(ARCHIVE_SUFFIXES)


def split_in_name(path: str) -> str | None:
    """The split that a file name speaks of, as `validation-00000-of-00014.parquet` does."""
    words = re.split(r"[^a-z]+", PurePosixPath(path.lower()).name)
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def printable(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 are written as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
