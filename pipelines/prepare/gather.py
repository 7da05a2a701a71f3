"""First pass: one unit of the source -> its pictures, spilled by shuffle bucket, and a record.

The record is written after the spill files and makes the unit done; a rerun redoes only units
without one. Bad data ends in the record with its reason. Bad luck (a storage error that outlasts
the retries) raises and fails the job.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import cv2

from pipelines import storage
from pipelines.prepare import plan, spill
from pipelines.prepare.members import Member, members
from pipelines.prepare.pictures import Fault, Limits, normalise
from pipelines.prepare.spill import Row


class Shuffle(NamedTuple):
    """Where a picture goes."""

    seed: int
    num_buckets: int
    validation_share: float
    """Share that goes to val; 0 where the source has its own."""

    def order(self, sha256: str) -> int:
        """Place in the shuffle, 0 .. 2^64 - 1; equal pictures have equal places."""
        return _hash64("order", self.seed, sha256)

    def split(self, member: Member) -> str:
        """That of the source, or by the key alone: a new picture never moves an old one."""
        if not self.validation_share:
            return member.split or "train"
        share = _hash64("split", self.seed, member.key) / 2**64
        return "val" if share < self.validation_share else "train"


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A picture that is not in the shards, and why."""

    key: str
    class_name: str | None
    split: str | None
    sha256: str | None
    """Of the bytes in the source; unknown where they could not be read."""
    fault: str
    message: str


@dataclass(frozen=True, kw_only=True)
class SpillFile:
    """The pictures of a unit that go to one split."""

    path: str
    rows: int
    bytes: int
    offsets: tuple[int, ...]
    """Where each bucket begins, and where the last one ends."""


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """What became of a unit."""

    listed: int
    bytes: int
    listed_by_class: dict[str, int]
    set_aside: tuple[SetAside, ...]
    spills: dict[str, SpillFile]


def record_uri(work: str, unit: int) -> str:
    """Where the record of a unit stands."""
    return storage.join(work, "units", f"{unit:06}.json")


def read_record(work: str, unit: int) -> UnitRecord:
    """The record of a finished unit."""
    raw = storage.read_json(record_uri(work, unit))
    raw["set_aside"] = tuple(SetAside(**fault) for fault in raw["set_aside"])
    raw["spills"] = {split: SpillFile(**file) for split, file in raw["spills"].items()}
    return UnitRecord(**raw)


def finished_units(work: str) -> set[int]:
    """Units with a record."""
    names = storage.children(storage.join(work, "units"))
    return {int(name.removesuffix(".json")) for name in names if name.endswith(".json")}


def gather(row: dict[str, Any], work: str, shuffle: Shuffle, limits: Limits) -> dict[str, int]:
    """Ray task: do one unit; returns what the progress display shows."""
    cv2.setNumThreads(1)  # the task owns one core
    unit = int(row["unit"])
    rows: dict[str, list[Row]] = {}
    faults: list[SetAside] = []
    listed: Counter[str] = Counter()
    size = 0
    for member in _all_members(work, unit):
        listed[member.class_name or ""] += 1
        size += len(member.data or b"")
        split = shuffle.split(member)
        try:
            rows.setdefault(split, []).append(_row(member, shuffle, limits))
        except Fault as fault:
            faults.append(_set_aside(member, split, fault))
    spills = {
        split: _write_spill(work, unit, split, kept, shuffle.num_buckets)
        for split, kept in sorted(rows.items())
    }
    record = UnitRecord(
        listed=listed.total(),
        bytes=size,
        listed_by_class=dict(sorted(listed.items())),
        set_aside=tuple(faults),
        spills=spills,
    )
    storage.publish_json(record_uri(work, unit), asdict(record))
    return {"images": record.listed, "bytes": size, "set_aside": len(faults)}


def _all_members(work: str, unit: int) -> Iterator[Member]:
    for piece in plan.read_unit(work, unit):
        yield from members(piece)


def _row(member: Member, shuffle: Shuffle, limits: Limits) -> Row:
    if member.data is None:
        assert member.fault is not None
        raise member.fault
    stored = normalise(member.data, member.key, limits)
    sha256 = hashlib.sha256(member.data).hexdigest()
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


def _set_aside(member: Member, split: str, fault: Fault) -> SetAside:
    return SetAside(
        key=member.key,
        class_name=member.class_name,
        split=split,
        sha256=None if member.data is None else hashlib.sha256(member.data).hexdigest(),
        fault=fault.kind,
        message=str(fault)[:500],
    )


def _write_spill(work: str, unit: int, split: str, rows: list[Row], num_buckets: int) -> SpillFile:
    data, offsets = spill.pack(rows, num_buckets)
    path = f"units/{unit:06}-{split}.spill"
    storage.publish(storage.join(work, path), data)
    return SpillFile(path=path, rows=len(rows), bytes=len(data), offsets=tuple(offsets))


def _hash64(purpose: str, seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{purpose}/{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
