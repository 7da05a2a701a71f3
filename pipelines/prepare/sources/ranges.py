"""Byte ranges of a tar that can be read alone: each begins and ends between two members.

They are found from the headers alone. No range ends inside a WebDataset sample, and a tar inside
the tar is a range of its own, as in ILSVRC2012_img_train.tar.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from pipelines import storage
from pipelines.prepare.sources import tars

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
)
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
RANGE_BYTES = 64 << 20  # of a tar or a Parquet file; less where a single row group is larger
SAMPLE_BYTES = 256 << 20  # more files of one stem than that are no sample: they are cut, too
SCAN_BYTES = 1 << 16  # headers of a nested tar lie far apart
MAX_KEY_CHARS = 4096  # of a name in an archive; file systems and buckets have no longer ones


class Range(NamedTuple):
    """A run of bytes of a tar that is read as one piece."""

    key: str
    """What stands before the keys in it."""
    begin: int
    bytes: int
    class_name: str | None = None
    """Of a tar inside the tar: its name."""
    folder: str = ""
    """Where that one lies in the outer one."""


class Ranges:
    """The byte ranges of a tar that begin and end between two members."""

    def __init__(self, uri: str, size: int, stem: str) -> None:
        """Read nothing yet."""
        self._uri, self._size, self._stem = uri, size, stem
        self.found: list[Range] = []
        self.hides = False
        """Whether images with hidden names are in it."""

    def members(self) -> Iterator[str]:
        """The name of every image and inner tar in it; afterwards the ranges are found."""
        size, begin, end, sample = self._size, 0, 0, ""
        stream = storage.open_range(self._uri, 0, size, SCAN_BYTES)
        try:
            for entry in tars.entries(stream):
                here = stream.tell()
                own = sample_of(entry.name)
                if _is_inner_archive(entry):
                    if end > begin:
                        self.found.append(Range(self._stem, begin, end - begin))
                    self.found.append(self._inner(entry, here))
                    begin = here + tars.padded_size(entry.size)
                    yield plain_name(entry.name)
                elif end - begin >= RANGE_BYTES and (
                    own not in ("", sample) or end - begin >= SAMPLE_BYTES
                ):
                    self.found.append(Range(self._stem, begin, entry.begin - begin))
                    begin = entry.begin
                if is_image_name(entry.name) and not entry.special:
                    if is_seen(entry.name.removeprefix("./")):
                        yield plain_name(entry.name)
                    else:
                        self.hides = True
                end = here + tars.padded_size(entry.size)
                sample = own or sample
        except tars.BrokenArchive:
            end = size  # whoever reads the last range meets the damage again and reports it
        if begin < min(end, size):
            self.found.append(Range(self._stem, begin, min(end, size) - begin))

    def _inner(self, entry: tars.Entry, here: int) -> Range:
        inner = PurePosixPath(entry.name)
        length = min(entry.size, max(self._size - here, 0))
        key = f"{self._stem}{archive_stem(str(inner))}/"
        return Range(key, here, length, inner.name.split(".")[0], plain_folder(entry.name))


def plain_folder(name: str) -> str:
    """The folder of a member of an archive, without steps that lead nowhere."""
    return plain_name(name).rpartition("/")[0]


def plain_name(name: str) -> str:
    """The name of a member of an archive, without steps that lead nowhere."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))


def is_image_name(name: str) -> bool:
    """Whether a name ends as those of images do."""
    return PurePosixPath(name.lower()).suffix in IMAGE_SUFFIXES


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


def is_seen(path: str) -> bool:
    """Whether no part of a path is hidden, or what macOS adds to archives."""
    parts = (part for part in path.split("/") if part not in (".", ".."))
    return not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def is_whole(uri: str, path: str, size: int) -> bool:
    """Whether an archive is read as one piece, unseen: see `_Ranges`."""
    if not path.lower().endswith(".tar") or not size:
        return True  # a compressed stream has no places to enter it, and an empty file is no tar
    # Headers close together are not worth a request each.
    return not storage.is_local(uri) and not _begins_with_archive(uri)
