"""First pass: one unit of the source -> its images, spilled by shuffle bucket, and a record.

The record is written after the spill files and makes the unit done; a rerun redoes only units
without one. Bad data ends in the record with its reason. Bad luck (a storage error that outlasts
the retries) raises and fails the job.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines import storage
from pipelines.data import untrusted
from pipelines.errors import UserError
from pipelines.prepare import digests, plan, spill
from pipelines.prepare.digests import Digests
from pipelines.prepare.normalise import Fault, Limits, normalise
from pipelines.prepare.sources.labels import AmbiguousLabel, Labels
from pipelines.prepare.sources.listing import Piece
from pipelines.prepare.sources.readers import Beside, Member, members, read_file
from pipelines.prepare.spill import Row

REQUESTS_AHEAD = 16
SPILL_BYTES = 128 << 20  # of JPEGs in memory, also where one archive is a whole unit
MAX_FAULTS = 20_000
OPEN = "open"  # images that become train or val when the whole source is known
DRAWN = "drawn"  # images for validation by their hash, of those without a split of their own
CONTRADICTION = "the same bytes in class"
SHOWN_RELABELLED = 3
KNOWN = {  # files of what the dataset holds already
    "known-keys": "S16",
    "known-key-labels": "<i4",
    "known-contents": "S16",
    "known-content-labels": "<i4",
    "known-aside": "S16",
}
Labelling = NDArray[np.int32]


class Shuffle(NamedTuple):
    """Where an image goes."""

    seed: int
    num_buckets: int
    validation_share: float
    keep_splits: bool
    """Whether the listing says which images are for validation; archives may yet say so."""

    def order(self, sha256: str) -> int:
        """Place in the shuffle, 0 .. 2^64 - 1; equal images have equal places."""
        return hash64("order", self.seed, sha256)

    def split(self, key: str) -> str:
        """train or val, by the key alone: a new image never moves an old one."""
        share = hash64("split", self.seed, key) / 2**64
        return "val" if share < self.validation_share else "train"

    def group(self, member: Member) -> str:
        """Where an image is spilled: train, val, DRAWN or OPEN.

        A `train` folder in an archive counts only where there is also one for validation, which is
        known when all is read: until then, what would else be validation's is kept apart.
        """
        if member.split == "val":
            return "val"
        if self.split(member.key) == "train" or (member.split and self.keep_splits):
            return "train"
        return OPEN if member.split else DRAWN


@dataclass(frozen=True, kw_only=True)
class QuarantinedRow:
    """An image that is not in the shards, and why."""

    key: str
    class_name: str | None
    split: str | None
    sha256: str | None
    """Of the bytes in the source; unknown where they could not be read."""
    fault: str
    message: str


@dataclass(frozen=True, kw_only=True)
class SpillFile:
    """Images of a unit that go to one split."""

    path: str
    split: str
    """train, val or OPEN."""
    rows: int
    bytes: int
    offsets: tuple[int, ...]
    """Where each bucket begins, and where the last one ends."""


class Relabelled(NamedTuple):
    """An image that the dataset holds in another class than it has now."""

    key: str
    held: str | None
    now: str | None


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """What became of a unit."""

    listed: int
    bytes: int
    listed_by_class: dict[str, int]
    set_aside: tuple[QuarantinedRow, ...]
    spills: tuple[SpillFile, ...]
    not_read: dict[str, int]
    """What is in archives and tables and not read, by kind."""
    folders: dict[str, int]
    """Images by folder of the source, where names alone placed them."""
    bare_names: dict[str, int]
    """Images by the entry of the label list that gave their class, of entries without a folder."""
    relabelled: tuple[Relabelled, ...]
    """Images that the dataset holds in another class; a few."""
    num_relabelled: int


class ExistingImages(NamedTuple):
    """What the dataset holds already; empty for a new one."""

    keys: Digests
    """Of the images in its shards."""
    key_labels: Labelling
    """Label of each; -1 without one."""
    contents: Digests
    content_labels: Labelling
    aside: Digests
    """Key and bytes of what earlier jobs quarantined: not told again when they still are bad."""
    classes: tuple[str, ...]

    @classmethod
    def none(cls) -> "ExistingImages":
        """Of a new dataset."""
        empty, labels = np.empty(0, "S16"), np.empty(0, np.int32)
        return cls(empty, labels, empty, labels, empty, ())

    def class_of(self, known: Digests, labels: Labelling, digest: bytes) -> str | None:
        """The class of an image that is known to be held."""
        label = int(labels[np.searchsorted(known, np.bytes_(digest))])
        return self.classes[label] if label >= 0 else None


def record_uri(work: str, unit: int) -> str:
    """Where the record of a unit stands."""
    return storage.join(work, "units", f"{unit:06}.json")


def read_record(work: str, unit: int) -> UnitRecord:
    """The record of a finished unit."""
    raw = storage.read_json(record_uri(work, unit))
    raw["set_aside"] = tuple(QuarantinedRow(**fault) for fault in raw["set_aside"])
    raw["spills"] = tuple(SpillFile(**file) for file in raw["spills"])
    raw["relabelled"] = tuple(Relabelled(*row) for row in raw["relabelled"])
    return UnitRecord(**raw)


def finished_units(work: str) -> set[int]:
    """Units with a record."""
    names = storage.children(storage.join(work, "units"))
    return {int(name.removesuffix(".json")) for name in names if name.endswith(".json")}


def ingest_unit(
    row: dict[str, Any], work: str, shuffle: Shuffle, limits: Limits, labels: Labels | None
) -> dict[str, int]:
    """Ray task: do one unit; returns what the progress display shows."""
    untrusted.use_one_thread()
    unit = int(row["unit"])
    known = read_existing(work)
    spills = _Spills(work, unit, shuffle.num_buckets)
    faults: list[QuarantinedRow] = []
    listed: Counter[str] = Counter()
    beside = Beside.empty()
    bare_names: Counter[str] = Counter()
    relabelled: list[Relabelled] = []
    num_relabelled = size = 0
    for member in _members(plan.read_unit(work, unit, keep_splits=shuffle.keep_splits), beside):
        held = _is_held(member, known)
        member = _labelled(member, labels, bare_names)
        if held:
            before = known.class_of(known.keys, known.key_labels, digests.of_key(member.key))
            if before != member.class_name:
                num_relabelled += 1
                if len(relabelled) < SHOWN_RELABELLED:
                    relabelled.append(Relabelled(member.key, before, member.class_name))
            continue
        split = member.split or shuffle.split(member.key)
        group = shuffle.group(member)
        try:
            spills.add(group, _row(member, shuffle, limits, known))
        except Fault as fault:
            aside = _set_aside(member, split, fault)
            if digests.contains(known.aside, digests.of_quarantined(aside.key, aside.sha256)):
                continue
            faults.append(aside)
            _check_number(len(faults), unit, member)
        listed[member.class_name or ""] += 1
        size += len(member.data or b"")
    record = UnitRecord(
        listed=listed.total(),
        bytes=size,
        listed_by_class=dict(sorted(listed.items())),
        set_aside=tuple(faults),
        spills=spills.finish(),
        not_read=dict(sorted(beside.others.items())),
        folders=dict(sorted(beside.folders.items())),
        bare_names=dict(sorted(bare_names.items())),
        relabelled=tuple(relabelled),
        num_relabelled=num_relabelled,
    )
    storage.publish_json(record_uri(work, unit), asdict(record))
    return {"images": record.listed, "bytes": size, "set_aside": len(faults)}


def _check_number(faults: int, unit: int, member: Member) -> None:
    """Faults are held in memory until their unit ends, and an archive may hold anything."""
    if faults > MAX_FAULTS:
        raise UserError(
            f"source holds more than {MAX_FAULTS} bad images in one archive, up to "
            f"'{member.key}' (unit {unit}): {member.fault or 'not pictures'}; leave it out"
        )


class _Spills:
    """The images of a unit on their way to its spill files, a bounded number in memory."""

    def __init__(self, work: str, unit: int, num_buckets: int) -> None:
        self._work, self._unit, self._num_buckets = work, unit, num_buckets
        self._rows: dict[str, list[Row]] = {}
        self._held_bytes = 0
        self._files: list[SpillFile] = []
        self._keys: list[tuple[bytes, int]] = []

    def add(self, split: str, row: Row) -> None:
        self._rows.setdefault(split, []).append(row)
        self._keys.append((digests.of_key(row.key), row.order))
        self._held_bytes += len(row.jpeg)
        if self._held_bytes >= SPILL_BYTES:
            self._flush()

    def _flush(self) -> None:
        for split, rows in sorted(self._rows.items()):
            path = f"units/{self._unit:06}-{len(self._files):03}.spill"
            with storage.staged_file(storage.join(self._work, path)) as staged:
                offsets = spill.write(staged, rows, self._num_buckets)
            self._files.append(
                SpillFile(
                    path=path,
                    split=split,
                    rows=len(rows),
                    bytes=offsets[-1],
                    offsets=tuple(offsets),
                )
            )
        self._rows, self._held_bytes = {}, 0

    def finish(self) -> tuple[SpillFile, ...]:
        self._flush()
        keys = np.sort(np.array(self._keys, digests.KEY_AND_ORDER), order="key")
        storage.publish(keys_uri(self._work, self._unit), keys.tobytes())
        return tuple(self._files)


def keys_uri(work: str, unit: int) -> str:
    """Where the keys of a unit and their places stand."""
    return storage.join(work, "units", f"{unit:06}.keys")


def read_keys(work: str, unit: int) -> NDArray[np.void]:
    """The keys of a unit and their places in the shuffle."""
    return np.frombuffer(storage.read_bytes(keys_uri(work, unit)), digests.KEY_AND_ORDER)


def write_existing(work: str, known: ExistingImages) -> None:
    """Store what the dataset holds already for all tasks of a job."""
    arrays = (known.keys, known.key_labels, known.contents, known.content_labels, known.aside)
    for name, held in zip(KNOWN, arrays, strict=True):
        storage.publish(storage.join(work, name), held.tobytes())
    storage.publish_json(storage.join(work, "known-classes"), known.classes)


@lru_cache(maxsize=1)
def read_existing(work: str) -> ExistingImages:
    """What the dataset holds already."""
    held: list[Any] = [
        np.frombuffer(storage.read_bytes(storage.join(work, name)), kind)
        for name, kind in KNOWN.items()
    ]
    held.append(tuple(storage.read_json(storage.join(work, "known-classes"))))
    return ExistingImages(*held)


def _members(pieces: Sequence[Piece], beside: Beside) -> Iterator[Member]:
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
            yield from members(piece, beside)
        while ahead:
            yield ahead.popleft().result()


def _is_held(member: Member, known: ExistingImages) -> bool:
    """Whether the dataset holds this image, and not only its name."""
    return (
        member.data is not None
        and digests.contains(known.keys, digests.of_key(member.key))
        and digests.contains(
            known.contents, digests.of_content(hashlib.sha256(member.data).digest())
        )
    )


def _labelled(member: Member, labels: Labels | None, bare_names: Counter[str]) -> Member:
    """The class of the label list, which comes before that of the place."""
    if labels is None:
        return member
    try:
        found = labels.of(member.key, member.split)
    except AmbiguousLabel as error:
        return member._replace(data=None, fault=Fault("missing_label", str(error)))
    if found is not None and not labels.by_number:
        entry = labels.entry(member.key)
        if entry is not None and labels.is_bare(entry):
            bare_names[entry] += 1
    if found is None and member.class_name is not None:
        return member
    if found is None and member.fault is None:
        fault = Fault("missing_label", "the label list does not name it")
        return member._replace(data=None, fault=fault)
    return member._replace(class_name=found)


def _row(member: Member, shuffle: Shuffle, limits: Limits, known: ExistingImages) -> Row:
    if member.data is None:
        assert member.fault is not None
        raise member.fault
    data = member.data
    try:
        stored = normalise(data, member.key, limits)
    except Fault:
        # Bytes that changed on their way are bad luck: only what reads the same twice is bad data.
        if member.uri is None or storage.is_local(member.uri):
            raise
        data = storage.read_bytes(member.uri)
        if data == member.data:
            raise
        stored = normalise(data, member.key, limits)
    sha256 = hashlib.sha256(data).hexdigest()
    if digests.contains(known.keys, digests.of_key(member.key)):
        raise Fault("duplicate_key", "the dataset holds another image with this key")
    if digests.contains(known.contents, digests.of_content(sha256)):
        held = known.class_of(known.contents, known.content_labels, digests.of_content(sha256))
        raise Fault("duplicate", twin_message("an image that the dataset holds", held, member))
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


def twin_message(twin: str, held: str | None, row: Member | Row) -> str:
    """Why an image is a duplicate, and whether its class contradicts that of its twin."""
    if held is None or row.class_name in (None, held):
        return f"the same bytes as {twin}"
    return f"{CONTRADICTION} '{held}', as {twin}"


def _set_aside(member: Member, split: str, fault: Fault) -> QuarantinedRow:
    return QuarantinedRow(
        key=member.key,
        class_name=member.class_name,
        split=split,
        sha256=None if member.data is None else hashlib.sha256(member.data).hexdigest(),
        fault=fault.kind,
        message=str(fault)[:500],
    )


def hash64(purpose: str, seed: int, name: str) -> int:
    """A number of 64 bits that follows from its arguments on any machine."""
    digest = hashlib.sha256(f"{purpose}/{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
