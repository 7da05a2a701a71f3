"""Byte ranges of a tar that can be read alone: each begins and ends between two members.

They are found from the headers alone. No range ends inside a WebDataset sample, and a tar inside
the tar is a range of its own, as in ILSVRC2012_img_train.tar.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from pipelines import storage
from pipelines.prepare.sources import samples, tars, zips
from pipelines.prepare.sources.streams import BrokenArchive

IMAGE_SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .png .webp .avif .bmp .gif .tif .tiff".split())
TAR_SUFFIXES = tuple(
    ".tar .tar.gz .tgz .tar.bz2 .tbz2 .tbz .tar.xz .txz .tar.zst .tar.zstd .tzst".split()
)
ARCHIVE_SUFFIXES = (*TAR_SUFFIXES, zips.SUFFIX)
LABELS_FIRST = 1  # the `end` of a tar whose labels stand far from their images
FILES_OF_SAMPLE = 64
FAR_JSON = 16  # .json files that stand alone and are no labels, such as a dataset's description
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
    end: int = 0
    """Of a tar LABELS_FIRST or 0. Of a zip where its part of the directory ends; 0 at the end, and
    with `begin` 0 its labels are read first."""


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
        far = _FarLabels()
        stream = storage.open_range(self._uri, 0, size, SCAN_BYTES)
        try:
            for entry in tars.entries(stream):
                here = stream.tell()
                own = sample_of(entry.name)
                far.see(entry)
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
        if far.are_many() and all(found.class_name is None for found in self.found):
            self.found = [Range(self._stem, 0, size, end=LABELS_FIRST)]

    def _inner(self, entry: tars.Entry, here: int) -> Range:
        inner = PurePosixPath(entry.name)
        length = min(entry.size, max(self._size - here, 0))
        key = f"{self._stem}{archive_stem(str(inner))}/"
        return Range(key, here, length, inner.name.split(".")[0], plain_folder(entry.name))


class _FarLabels:
    """Counts the label files of an archive that stand neither right before nor behind an image."""

    def __init__(self) -> None:
        self._image = ""
        self._waiting: list[tuple[str, str]] = []
        self._strong = self._weak = 0

    def see(self, entry: tars.Entry) -> None:
        """The next member."""
        if entry.special or not is_seen(entry.name):
            return
        if is_image_name(entry.name):
            if self._waiting:
                self._judge({*samples.candidates(self._image), *samples.candidates(entry.name)})
            self._image = entry.name
        elif found := samples.label_stem(entry.name):
            self._waiting.append(found)
            if len(self._waiting) > FILES_OF_SAMPLE:
                self._judge(set(samples.candidates(self._image)))

    def _judge(self, near: set[str]) -> None:
        far = [suffix for stem, suffix in self._waiting if stem not in near]
        self._weak += far.count(".json")
        self._strong += len(far) - far.count(".json")
        self._waiting.clear()

    def are_many(self) -> bool:
        """Whether the labels have to be read first; asked when all members were seen."""
        self._judge(set(samples.candidates(self._image)))
        return self._strong > 0 or self._weak > FAR_JSON


class ZipRanges:
    """The runs of a zip's directory that are read as one piece each."""

    def __init__(self, uri: str, size: int, stem: str) -> None:
        """Read nothing yet."""
        self._uri, self._size, self._stem = uri, size, stem
        self.found: list[Range] = []
        self.hides = False

    def members(self) -> Iterator[str]:
        """The name of every image and inner tar in it; afterwards the runs are found."""
        begin = end = held = 0
        sample, far = "", _FarLabels()
        try:
            for entry, packed in zips.entries(self._uri, 0, 0):
                own = sample_of(entry.name)
                far.see(entry)
                if held >= RANGE_BYTES and (own not in ("", sample) or held >= SAMPLE_BYTES):
                    self.found.append(Range(self._stem, begin, held, end=entry.begin))
                    begin, held = entry.begin, 0
                begin = begin or entry.begin
                if _is_inner_archive(entry):
                    yield plain_name(entry.name)
                elif is_image_name(entry.name) and not entry.special:
                    if is_seen(entry.name):
                        yield plain_name(entry.name)
                    else:
                        self.hides = True
                held += packed
                sample = own or sample
        except BrokenArchive:
            self.found, begin = [], 0  # whoever reads it meets the damage again and reports it
        if far.are_many():
            self.found, begin, held = [], 0, self._size
        if begin or not self.found:
            self.found.append(Range(self._stem, begin, held or self._size, end=end))


def ranges_of(uri: str, size: int, stem: str) -> Ranges | ZipRanges:
    """The ranges of a tar or a zip, not yet looked for."""
    return (ZipRanges if uri.lower().endswith(zips.SUFFIX) else Ranges)(uri, size, stem)


def plain_folder(name: str) -> str:
    """The folder of a member of an archive, without steps that lead nowhere."""
    return plain_name(name).rpartition("/")[0]


def plain_name(name: str) -> str:
    """The name of a member of an archive, without steps that lead nowhere."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))


def is_image_name(name: str) -> bool:
    """Whether a name ends as those of images do."""
    return suffix_of(name) in IMAGE_SUFFIXES


def suffix_of(name: str) -> str:
    """The suffix of a name in small letters, as pathlib has it, at a twentieth of its time."""
    file = name.rpartition("/")[2].lower()
    dot = file.rfind(".")
    return file[dot:] if 0 < dot < len(file) - 1 else ""


def archive_stem(path: str) -> str:
    """The path of an archive without the suffix that says so."""
    return path[: -len(next(s for s in ARCHIVE_SUFFIXES if path.lower().endswith(s)))]


def _is_inner_archive(entry: tars.Entry) -> bool:
    """Whether a member is an archive to read; of one that may not be read, `members` says why."""
    if entry.special or not entry.name.lower().endswith(TAR_SUFFIXES):
        return False
    path = PurePosixPath(entry.name)
    is_named = len(entry.name) <= MAX_KEY_CHARS and not path.name.startswith(".")
    return is_named and not leads_outside(entry.name)


def leads_outside(name: str) -> bool:
    """Whether a member of an archive would lie outside the archive's root."""
    return name.startswith("/") or (".." in name and ".." in name.split("/"))


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
    return first is not None and first.name.lower().endswith(TAR_SUFFIXES)


def is_seen(path: str) -> bool:
    """Whether no part of a path is hidden, or what macOS adds to archives."""
    if "/." not in f"/{path}" and "__MACOSX" not in path:
        return True
    parts = (part for part in path.split("/") if part not in (".", ".."))
    return not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def is_whole(uri: str, path: str, size: int) -> bool:
    """Whether an archive is read as one piece, unseen: see `_Ranges`."""
    if path.lower().endswith(zips.SUFFIX):
        return False
    if not path.lower().endswith(".tar") or not size:
        return True  # a compressed stream has no places to enter it, and an empty file is no tar
    # Headers close together are not worth a request each.
    return not storage.is_local(uri) and not _begins_with_archive(uri)
