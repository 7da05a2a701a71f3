"""New classes for images that a dataset holds: a corrected label list, an image moved elsewhere.

The first pass notes which images of the dataset it has seen, with their class where that is another
one (`Seen`). When all is read, an image whose bytes came under another name has moved where the
name it had is gone from the same source. The labels of a shard in which some change are written
anew, as a sidecar file of one column beside it: no image is decoded, no shard is written, and the
revision before stays as it was.

An image keeps its split and its key, which its masks follow from. One that has lost its class is
refused: more likely a flag was forgotten than a class.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import storage
from pipelines.data import shards
from pipelines.data.manifest import Manifest, ShardFile, Sidecar
from pipelines.prepare import digests
from pipelines.prepare.class_names import is_same
from pipelines.prepare.held import HeldImages
from pipelines.prepare.records import Conflict, QuarantinedRow
from pipelines.prepare.sources.member import Member
from pipelines.prepare.tasks import run_tasks

SAME = -1  # as the number of a class: the one that the dataset has
SEEN = np.dtype([("row", "<i8"), ("class", "<i4"), ("is_twin", "?")])
NO_CLASS = "(none)"
MOVED = "moved: the image under its earlier name has this class now"


class Seen:
    """What the images of a unit say of images that the dataset holds."""

    def __init__(self, held: HeldImages) -> None:
        """Nothing yet."""
        self._held = held
        self._numbers: dict[str, int] = {}
        self._seen: list[tuple[int, int, bool]] = []
        self._twins: list[str] = []
        self.conflicts: dict[str, tuple[int, Conflict]] = {}

    def add(self, row: int, member: Member, *, has_split: bool) -> None:
        """An image that is held under its name."""
        before, now = self._held.class_of(row), member.class_name
        if before is not None and now is None:
            self._conflict("class", member.key, before, NO_CLASS)
        self._seen.append((row, SAME if now is None else self._number(row, now), False))
        self._check_split(row, member, has_split=has_split)

    def add_twin(self, member: Member, aside: QuarantinedRow, *, has_split: bool) -> None:
        """An image whose bytes are held under another name, in another class maybe."""
        assert aside.sha256 is not None
        row = self._held.row_of_content(aside.sha256)
        assert row is not None
        if member.class_name is not None:
            self._seen.append((row, self._number(row, member.class_name), True))
        self._check_split(row, member, has_split=has_split)

    def _number(self, row: int, name: str) -> int:
        if is_same(self._held.class_of(row), name):
            return SAME
        return self._numbers.setdefault(name, len(self._numbers))

    def _check_split(self, row: int, member: Member, *, has_split: bool) -> None:
        before = self._held.split_of(row)
        if has_split and member.split is not None and member.split != before:
            self._conflict("split", member.key, before, member.split)

    def _conflict(self, what: str, key: str, before: str, now: str) -> None:
        count, first = self.conflicts.get(what, (0, Conflict(key, before, now)))
        self.conflicts[what] = (count + 1, first)

    def write(self, work: str, unit: int) -> None:
        """Store it beside the record of the unit."""
        if self._seen:
            array = np.array(self._seen, SEEN)
            storage.publish(_seen_uri(work, unit), array.tobytes())
            storage.publish_json(f"{_seen_uri(work, unit)}-classes", list(self._numbers))


def _seen_uri(work: str, unit: int) -> str:
    return storage.join(work, "units", f"{unit:06}.seen")


class Changes(NamedTuple):
    """The images of a dataset that get another class."""

    rows: NDArray[np.int64]
    """Of `HeldImages`, rising."""
    classes: tuple[str, ...]
    """Of each."""
    moved: frozenset[int]
    """Those of them whose name is gone, and whose bytes came under another one."""

    @property
    def names(self) -> set[str]:
        """All classes that images get."""
        return set(self.classes)


def find_changes(work: str, num_units: int, held: HeldImages, *, same_source: bool) -> Changes:
    """Which images have another class now.

    Args:
        work: of the job.
        num_units: of the first pass.
        held: what the dataset holds.
        same_source: whether the dataset was made from this source, so that a name that is not in
            it is gone; else that is taken for granted where half of its images are in it.
    """
    if not len(held.keys):
        return Changes(np.empty(0, np.int64), (), frozenset())
    is_seen = np.zeros(len(held.keys), bool)
    found: dict[int, str] = {}
    twins: dict[int, set[str | None]] = {}
    for unit in range(num_units):
        uri = _seen_uri(work, unit)
        if not storage.exists(uri):
            continue
        seen = np.frombuffer(storage.read_bytes(uri), SEEN)
        names = storage.read_json(f"{uri}-classes")
        is_seen[seen["row"][~seen["is_twin"]]] = True
        for row, number, is_twin in seen[(seen["class"] != SAME) | seen["is_twin"]].tolist():
            if is_twin:
                twins.setdefault(row, set()).add(None if number == SAME else names[number])
            else:
                found[row] = names[number]
    moved = set()
    if same_source or 2 * np.count_nonzero(is_seen) >= len(is_seen):
        for row, classes in twins.items():
            if is_seen[row] or len(classes) > 1 or (name := classes.pop()) is None:
                continue
            found[row] = name
            moved.add(row)
    rows = sorted(found)
    return Changes(np.array(rows, np.int64), tuple(found[row] for row in rows), frozenset(moved))


def is_moved(row: QuarantinedRow, held: HeldImages, changes: Changes) -> bool:
    """Whether an image was left out because it is one of the dataset under a new name."""
    return row.sha256 is not None and held.row_of_content(row.sha256) in changes.moved


class Relabelling(NamedTuple):
    """What every task that writes labels has in common."""

    uri: str
    work: str
    prefix: str
    """Of the sidecars of this job."""


def write_labels(
    uri: str,
    work: str,
    prefix: str,
    old: Manifest,
    held: HeldImages,
    changes: Changes,
    labels: Sequence[int],
) -> Manifest:
    """Write a sidecar of labels for each shard in which some change; returns `old` with them.

    Args:
        uri: the dataset.
        work: of the job; finished sidecars are found again there.
        prefix: of the names of its files.
        old: the dataset before.
        held: its images.
        changes: what changes.
        labels: the new label of each changed image.
    """
    storage.publish(storage.join(work, "relabel-keys"), held.keys[changes.rows].tobytes())
    storage.publish(storage.join(work, "relabel-labels"), np.array(labels, "<i4").tobytes())
    common = Relabelling(uri, work, prefix)
    files = [(split, index) for split in old.splits for index in range(len(old.splits[split]))]
    done = set(storage.children(storage.join(work, "labels")))
    items = [
        {"split": split, "index": index}
        for split, index in files
        if _record_name(split, index) not in done
    ]
    run_tasks("updating labels", items, partial(write_sidecar, common=common, old=old))
    splits = {
        split: tuple(_extended(work, split, index, file) for index, file in enumerate(held_files))
        for split, held_files in old.splits.items()
    }
    return replace(old, splits=splits)


def _record_name(split: str, index: int) -> str:
    return f"{split}-{index:06}.json"


@lru_cache(maxsize=1)
def _new_labels(work: str) -> tuple[digests.Digests, NDArray[np.int32]]:
    keys = storage.read_bytes(storage.join(work, "relabel-keys"))
    labels = storage.read_bytes(storage.join(work, "relabel-labels"))
    return np.frombuffer(keys, "S16"), np.frombuffer(labels, "<i4")


def write_sidecar(row: dict[str, Any], common: Relabelling, old: Manifest) -> dict[str, int]:
    """Ray task: the labels of one shard where some change, and a record."""
    split, index = str(row["split"]), int(row["index"])
    file = old.splits[split][index]
    keys, labels = _new_labels(common.work)
    groups: list[list[int | None]] = []
    changed = 0
    for number, rows in enumerate(file.row_groups):
        group = shards.RowGroup(file, number, rows, 0)
        table = shards.read_row_group(common.uri, group, ["key", "label"])
        now: list[int | None] = table.column("label").to_pylist()
        for at, key in enumerate(table.column("key").to_pylist()):
            place = digests.find(keys, digests.of_key(key))
            if place is not None:
                now[at] = int(labels[place])
                changed += 1
        groups.append(now)
    record = asdict(_write_sidecar(common, file, groups)) if changed else None
    storage.publish_json(
        storage.join(common.work, "labels", _record_name(split, index)), {"sidecar": record}
    )
    return {"images": changed, "bytes": record["bytes"] if record else 0}


def _write_sidecar(
    common: Relabelling, file: ShardFile, groups: Sequence[Sequence[int | None]]
) -> Sidecar:
    path = f"{file.path.removesuffix('.parquet')}.labels-{common.prefix}.parquet"
    schema = pa.schema([shards.arrow_schema(()).field("label")])
    with storage.staged_file(storage.join(common.uri, path)) as staged:
        with pq.ParquetWriter(staged, schema, compression="zstd", write_statistics=False) as writer:
            for labels in groups:
                table = pa.table({"label": pa.array(labels, pa.int32())}, schema)
                writer.write_table(table, row_group_size=max(len(labels), 1))
        return Sidecar(
            path=path,
            columns=("label",),
            bytes=staged.stat().st_size,
            sha256=storage.sha256_of(staged),
        )


def _extended(work: str, split: str, index: int, file: ShardFile) -> ShardFile:
    """A shard with its new labels, which hide those that it had in a sidecar before."""
    raw = storage.read_json(storage.join(work, "labels", _record_name(split, index)))["sidecar"]
    if raw is None:
        return file
    kept = tuple(sidecar for sidecar in file.sidecars if sidecar.columns != ("label",))
    return replace(file, sidecars=(*kept, Sidecar(**{**raw, "columns": tuple(raw["columns"])})))
