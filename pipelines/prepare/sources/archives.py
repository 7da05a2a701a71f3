"""The images inside an archive, or inside one in it, one after the other, as a stream.

Tars may be compressed and may hold tars; a zip is read by its directory. What is in an archive and
not read is counted. A hard link is a copy of the member that it leads to; other links are never
followed.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pipelines import storage
from pipelines.prepare.normalise import Fault
from pipelines.prepare.sources import label_maps, samples, streams, tars, zips
from pipelines.prepare.sources.member import MAX_FILE_BYTES, Beside, Member, too_large
from pipelines.prepare.sources.piece import Piece
from pipelines.prepare.sources.placing import Places, folder_in
from pipelines.prepare.sources.ranges import (
    IMAGE_SUFFIXES,
    LABELS_FIRST,
    MAX_KEY_CHARS,
    TAR_SUFFIXES,
    archive_stem,
    is_seen,
    leads_outside,
    suffix_of,
)
from pipelines.prepare.sources.samples import File
from pipelines.prepare.sources.streams import BrokenArchive, BrokenMember

DAMAGE = (BrokenArchive, BrokenMember)


class Link(NamedTuple):
    """A hard link, to be read when the rest of its archive has been."""

    target: str
    member: Member


def members_of(piece: Piece, beside: Beside, *, labels_first: bool = False) -> Iterator[Member]:
    """The images of an archive's piece; those that hard links lead to come last.

    Args:
        piece: an archive, or a part of one.
        beside: counts what is not read.
        labels_first: whether it is looked through for labels before, also where that means to
            read the whole of it once more.

    Raises:
        OSError: bad luck: the storage failed for longer than we try.
        LateLabels: labels stand behind their images, and it was not looked through.
    """
    links: list[Link] = []
    whole = 0 if _is_zip(piece) else LABELS_FIRST
    is_first = piece.begin == 0 and piece.end == whole
    labels = _all_labels(piece) if is_first or labels_first else samples.Labels()
    files = _archive(None, piece, Places(piece), beside, links, depth=0)
    for member, label in samples.with_labels(files, labels, piece.uri, max_bytes=MAX_FILE_BYTES):
        yield member if label is None else member._replace(class_name=label)
    if links:
        yield from _copies(piece, links)


def _is_zip(piece: Piece) -> bool:
    return piece.uri.lower().endswith(zips.SUFFIX)


def _entries(stream: Any, piece: Piece) -> Iterator[tars.Entry]:
    """The members of a piece, or of a stream inside one."""
    if stream is not None:
        yield from tars.entries(streams.plain(stream))
    elif _is_zip(piece):
        for entry, _ in zips.entries(piece.uri, piece.begin, piece.end):
            yield entry
    else:
        whole = storage.open_range(piece.uri, piece.begin, piece.bytes)
        yield from tars.entries(streams.plain(whole))


def _archive(
    stream: Any,
    piece: Piece,
    places: Places,
    beside: Beside,
    links: list[Link] | None,
    depth: int,
) -> Iterator[File[Member]]:
    """The files of an archive, or of one in it; damage ends that archive and is reported."""
    try:
        for entry in _entries(stream, piece):
            yield from _of_entry(entry, piece, places, beside, links, depth)
    except DAMAGE as error:
        key = f"{piece.key}@{piece.begin}"
        fault = Fault("broken_archive", f"{piece.key or piece.uri}: {error}")
        yield File(key, Member(key, None, piece.split, None, fault))


def _of_entry(
    entry: tars.Entry,
    piece: Piece,
    places: Places,
    beside: Beside,
    links: list[Link] | None,
    depth: int,
) -> Iterator[File[Member]]:
    """What a member of an archive is: an image, a label, an archive, or something else."""
    name = entry.name.removeprefix("./")
    if entry.special == tars.BEHIND:
        beside.others[tars.BEHIND] += 1
        return
    if len(name) > MAX_KEY_CHARS:
        key = f"{piece.key}{name[:200]}...@{entry.begin}"
        refused = Fault("refused", f"a name of {len(name)} characters; at most {MAX_KEY_CHARS}")
        yield File(key, Member(key, None, piece.split, None, refused))
        return
    is_image = suffix_of(name) in IMAGE_SUFFIXES
    if not is_seen(name):
        if is_image and not entry.special:
            beside.others["image with a hidden name"] += 1
        return
    is_inner = name.lower().endswith(TAR_SUFFIXES)
    if not is_image and not is_inner:
        if entry.special:
            beside.others[entry.special] += 1
        elif label := _label(entry, piece.key + name, beside):
            yield label
        return
    if is_image and not entry.special and places.is_guess:
        beside.folders[folder_in(piece, name)] += 1
    where = places.of(name)
    if where.left_out is not None:
        beside.others[f"image {where.left_out}"] += is_image
        return
    member = Member(piece.key + name, None, where.split, where.class_name)
    if leads_outside(name) or (entry.special and entry.special != tars.HARD_LINK):
        what = f"a {entry.special}" if entry.special else "a path that leads outside"
        refused = Fault("refused", f"{what}; only files below the archive's root are read")
        yield File(member.key, member._replace(fault=refused))
    elif entry.special:
        if links is None:
            beside.others["hard link in an archive inside another"] += 1
        else:
            links.append(Link(entry.link.removeprefix("./"), member))
    elif is_inner and depth > 0:
        beside.others["archive inside an archive inside another"] += 1
    elif is_inner:
        inner = piece._replace(
            key=f"{piece.key}{archive_stem(str(PurePosixPath(name)))}/",
            class_name=name.rpartition("/")[2].split(".")[0],
            begin=0,
        )
        yield from _archive(entry.content, inner, Places(inner), beside, None, depth=1)
    elif marked := label_maps.dotted_end(name.rpartition("/")[2]):
        beside.others[marked] += 1
    else:
        yield File(member.key, read_content(entry, member), entry.size)


def read_content(entry: tars.Entry, member: Member) -> Member:
    """The member with its bytes, or why there are none."""
    if fault := too_large(entry.size):
        return member._replace(fault=fault)
    try:
        return member._replace(data=entry.content.read())
    except BrokenMember as error:
        return member._replace(fault=Fault("corrupt", f"its archive's member is damaged: {error}"))


def _label(entry: tars.Entry, key: str, beside: Beside) -> File[Member] | None:
    """The class that a file names; other files are counted by their suffix."""
    found = samples.label_stem(key)
    if found is None:
        beside.others[suffix_of(key) or "file without a suffix"] += 1
        return None
    stem, suffix = found
    is_weak = suffix == ".json"
    if entry.size > (samples.MAX_JSON_BYTES if is_weak else samples.MAX_LABEL_BYTES):
        beside.others[f"{suffix} of more than {samples.MAX_LABEL_BYTES} bytes"] += 1
        return None
    try:
        label = samples.read_label(entry.content.read(), suffix)
    except (ValueError, RecursionError, *DAMAGE) as error:
        if isinstance(error, BrokenArchive):
            raise
        beside.others[f"{suffix} that holds no label"] += 1
        return None
    if label is None:
        beside.others[suffix if is_weak else f"{suffix} that holds no label"] += 1
        return None
    return File(stem, None, 0, label, is_weak)


def _all_labels(piece: Piece) -> samples.Labels:
    """The labels of a tar or zip that can be looked through before its images are read."""
    labels = samples.Labels(are_all=True)
    silent = Beside.empty()  # what is not read is counted when the images are
    whole = piece._replace(begin=0, end=0)
    try:
        for entry in _entries(None, whole):
            name = entry.name.removeprefix("./")
            if samples.label_stem(name) and is_seen(name) and not entry.special:
                found = _label(entry, piece.key + name, silent)
                if found is not None and found.label is not None:
                    labels.add(found.name, found.label, is_weak=found.is_weak)
    except DAMAGE:
        return labels  # met again with the images, and reported there
    return labels


def _copies(piece: Piece, links: list[Link]) -> Iterator[Member]:
    """The images that hard links lead to, read again where they stand in the archive."""
    wanted: dict[str, list[Member]] = defaultdict(list)
    for link in links:
        wanted[link.target].append(link.member)
    before = piece._replace(begin=0, bytes=piece.begin)
    try:
        for part in (piece, before) if piece.begin else (piece,):
            for entry in _entries(None, part) if wanted else ():
                name = entry.name.removeprefix("./")
                if name in wanted and not entry.special:
                    first, *others = wanted.pop(name)
                    read = read_content(entry, first)
                    yield read
                    for member in others:
                        yield member._replace(data=read.data, fault=read.fault)
    except DAMAGE as error:
        reason = f"could not be read: {error}"
    else:
        reason = "is not in the archive before it"
    for target, members in wanted.items():
        for member in members:
            message = f"a hard link to '{target}', which {reason}"
            yield member._replace(fault=Fault("refused", message))
