"""First pass: one unit of the source -> its images, spilled by shuffle bucket, and a record.

The record is written after the spill files and makes the unit done; a rerun redoes only units
without one. Bad data ends in the record with its reason. Bad luck (a storage error that outlasts
the retries) raises and fails the job.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, NamedTuple

from pipelines import storage
from pipelines.data import untrusted
from pipelines.errors import UserError
from pipelines.prepare import digests, draw, plan
from pipelines.prepare.digests import FREE, OPEN, OWN
from pipelines.prepare.held import HeldImages, read_held
from pipelines.prepare.normalise import Fault, Limits, Stored, normalise
from pipelines.prepare.records import QuarantinedRow, UnitRecord, record_uri
from pipelines.prepare.relabel import Seen
from pipelines.prepare.sources.labelled import labelled
from pipelines.prepare.sources.labels import Labels
from pipelines.prepare.sources.piece import Piece
from pipelines.prepare.sources.ranges import suffix_of
from pipelines.prepare.sources.readers import Beside, Member, members, read_file
from pipelines.prepare.sources.samples import LateLabels
from pipelines.prepare.spill import Row, Spills

REQUESTS_AHEAD = 16
MAX_FAULTS = 20_000
CONTRADICTION = "the same bytes in class"


class Shuffle(NamedTuple):
    """Where an image goes."""

    seed: int
    num_buckets: int
    validation_share: float
    keep_splits: bool
    """Whether the listing says which images are for validation; archives may yet say so."""

    def order(self, sha256: str) -> int:
        """Place in the shuffle, 0 .. 2^64 - 1; equal images have equal places."""
        return digests.hash64("order", self.seed, sha256)

    def kind(self, member: Member) -> int:
        """Whether an image has a split of its own.

        A `train` folder in an archive counts only where there is also one for validation, which is
        known when all is read: until then it is OPEN.
        """
        if member.split is None:
            return FREE
        return OWN if member.split == "val" or self.keep_splits else OPEN


def group_of(kind: int, split: str | None, *, is_near: bool) -> str:
    """Where an image is spilled: its split, or that it is FREE or OPEN, and its hash small."""
    if kind == OWN:
        assert split is not None
        return split
    return f"{'free' if kind == FREE else 'open'}-{'near' if is_near else 'far'}"


def ingest_unit(
    row: dict[str, Any],
    work: str,
    shuffle: Shuffle,
    limits: Limits,
    labels: Labels | None,
    secrets: Mapping[str, str],
) -> dict[str, int]:
    """Ray task: do one unit; returns what the progress display shows.

    An archive that can only be read from its begin to its end and has labels behind their images
    is read twice more: once for the labels, then with them.
    """
    untrusted.use_one_thread()
    unit = int(row["unit"])
    try:
        return _ingest_unit(unit, work, shuffle, limits, labels, secrets, labels_first=False)
    except LateLabels:
        return _ingest_unit(unit, work, shuffle, limits, labels, secrets, labels_first=True)


def _ingest_unit(
    unit: int,
    work: str,
    shuffle: Shuffle,
    limits: Limits,
    labels: Labels | None,
    secrets: Mapping[str, str],
    *,
    labels_first: bool,
) -> dict[str, int]:
    held = read_held(work)
    spills, seen = Spills(work, unit, shuffle.num_buckets), Seen(held)
    numbers: dict[str, int] = {}
    faults: list[QuarantinedRow] = []
    listed: Counter[str] = Counter()
    beside = Beside.empty()
    bare_names: Counter[str] = Counter()
    size = 0
    pieces = plan.read_unit(work, unit, secrets, keep_splits=shuffle.keep_splits)
    for member in _members(pieces, beside, labels_first=labels_first):
        held_row = held.row_of(member)
        member = labelled(member, labels, bare_names)
        if member.split == "test":
            beside.others["image in the test part of the label list"] += 1
            continue
        kind = shuffle.kind(member)
        if held_row is not None:
            # What the list means by an image of two entries is unknown, whatever its place says.
            known = member if member.fault is None else member._replace(class_name=None)
            seen.add(held_row, known, has_split=kind == OWN)
            continue
        number = numbers.setdefault(member.class_name or "", len(numbers))
        try:
            member, stored = _stored(member, limits)
            image = _row(member, stored, shuffle, held)
            hashed = draw.of_key(shuffle.seed, member.key)
            is_near = draw.near(hashed, shuffle.validation_share)
            group = group_of(kind, member.split, is_near=is_near)
            spills.add(group, image, hashed, number, kind)
        except Fault as fault:
            if fault.kind == "unidentified" and not _claims_to_be_image(member):
                beside.others["file with no suffix and no image in it"] += 1
                continue
            aside = _set_aside(member, fault)
            if fault.kind == "duplicate":
                seen.add_twin(member, aside, has_split=kind == OWN)
            digest = digests.of_quarantined(aside.key, aside.sha256)
            if digests.find(held.aside, digest) is not None:
                continue
            faults.append(aside)
            _check_number(len(faults), unit, member)
        listed[member.class_name or ""] += 1
        size += len(member.data or b"")
    seen.write(work, unit)
    record = UnitRecord(
        listed=listed.total(),
        bytes=size,
        listed_by_class=dict(sorted(listed.items())),
        classes=tuple(numbers),
        set_aside=tuple(faults),
        spills=spills.finish(),
        not_read=dict(sorted(beside.others.items())),
        folders=dict(sorted(beside.folders.items())),
        bare_names=dict(sorted(bare_names.items())),
        conflicts=seen.conflicts,
    )
    storage.publish_json(record_uri(work, unit), asdict(record))
    return {"images": record.listed, "bytes": size, "set_aside": len(faults)}


def _claims_to_be_image(member: Member) -> bool:
    """Whether a file should be an image: by its suffix, its place in an archive, or a list."""
    return member.uri is None or member.is_asked or bool(suffix_of(member.key))


def _check_number(faults: int, unit: int, member: Member) -> None:
    """Faults are held in memory until their unit ends, and an archive may hold anything."""
    if faults > MAX_FAULTS:
        raise UserError(
            f"source holds more than {MAX_FAULTS} bad images in one archive, up to "
            f"'{member.key}' (unit {unit}): {member.fault or 'not images'}; leave it out"
        )


def _members(pieces: Sequence[Piece], beside: Beside, *, labels_first: bool) -> Iterator[Member]:
    """All images of a unit; single remote files are fetched ahead, since each has to wait."""
    ahead: deque[Future[Member]] = deque()
    with ThreadPoolExecutor(REQUESTS_AHEAD) as threads:
        for piece in pieces:
            if piece.kind == "file" and not storage.is_local(piece.uri):
                ahead.append(threads.submit(read_file, piece))
                if len(ahead) == REQUESTS_AHEAD:
                    yield ahead.popleft().result()
                continue
            while ahead:
                yield ahead.popleft().result()
            yield from members(piece, beside, labels_first=labels_first)
        while ahead:
            yield ahead.popleft().result()


def _stored(member: Member, limits: Limits) -> tuple[Member, Stored]:
    """An image as it is stored, and as it is in the source, read again where that helps."""
    if member.data is None:
        assert member.fault is not None
        raise member.fault
    try:
        return member, normalise(member.data, member.key, limits)
    except Fault:
        # Bytes that changed on their way are bad luck: only what reads the same twice is bad data.
        if member.uri is None or storage.is_local(member.uri):
            raise
        data = storage.read_bytes(member.uri)
        if data == member.data:
            raise
        return member._replace(data=data), normalise(data, member.key, limits)


def _row(member: Member, stored: Stored, shuffle: Shuffle, held: HeldImages) -> Row:
    assert member.data is not None
    sha256 = hashlib.sha256(member.data).hexdigest()
    if held.row_of_key(member.key) is not None:
        raise Fault("duplicate_key", "the dataset holds another image with this key")
    twin = held.row_of_content(sha256)
    if twin is not None:
        message = twin_message("an image that the dataset holds", held.class_of(twin), member)
        raise Fault("duplicate", message)
    return Row(
        order=shuffle.order(sha256),
        key=member.key,
        class_name=member.class_name,
        sha256=sha256,
        pixels=stored.height * stored.width,
        rgb_sums=stored.rgb_sums,
        conversions=stored.conversions,
        jpeg=stored.jpeg,
    )


def twin_message(twin: str, held_class: str | None, row: Member | Row) -> str:
    """Why an image is a duplicate, and whether its class contradicts that of its twin."""
    if held_class is None or row.class_name in (None, held_class):
        return f"the same bytes as {twin}"
    return f"{CONTRADICTION} '{held_class}', as {twin}"


def _set_aside(member: Member, fault: Fault) -> QuarantinedRow:
    return QuarantinedRow(
        key=member.key,
        class_name=member.class_name,
        split=member.split,
        sha256=None if member.data is None else hashlib.sha256(member.data).hexdigest(),
        fault=fault.kind,
        message=str(fault)[:500],
    )
