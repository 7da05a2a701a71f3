"""Second pass: a range of shuffle buckets -> one Parquet shard with its masks, and a record.

Equal images stand side by side in the shuffle, so duplicates are found here without an index:
the one with the smallest key stays, of those with a class where some have none, and an image that
is also in val leaves train.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ce_model import masks
from pipelines import storage
from pipelines.data import shards
from pipelines.data.manifest import Manifest, MaskSpec, ShardFile
from pipelines.prepare import digests, spill
from pipelines.prepare.draw import Draw
from pipelines.prepare.ingest import twin_message
from pipelines.prepare.normalise import FaultClass
from pipelines.prepare.records import QuarantinedRow
from pipelines.prepare.spill import Row


class Work(NamedTuple):
    """What every shard of a job has in common."""

    uri: str
    """The dataset."""
    work: str
    """Where the first pass left its files."""
    prefix: str
    """Of every file name, so that two jobs never share one."""
    seed: int
    masks: tuple[MaskSpec, ...]
    classes: tuple[str, ...]
    row_group_rows: int
    groups: dict[str, tuple[str, ...]]
    """Split -> the spilled groups that are of it as a whole."""
    drawn: dict[str, tuple[str, ...]]
    """Split -> the groups of which it has the images that `draw` gives it."""
    draw: Draw
    repeated_keys: dict[bytes, int]
    """Digest of a key that occurs more than once -> place of the image that keeps it."""
    same_class: dict[str, str] = {}  # noqa: RUF012
    """Spelling of a class -> the one that stands in `classes`, where several are equal as text."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A finished shard and its sums."""

    file: ShardFile
    pixels: int
    rgb_sums: tuple[int, int, int]
    converted: dict[str, int]
    rows_by_class: dict[str, int]
    set_aside: tuple[QuarantinedRow, ...]
    """Images whose bytes or whose key another image has."""


def record_uri(work: str, split: str, shard: int) -> str:
    """Where the record of a shard stands."""
    return storage.join(work, "shards", f"{split}-{shard:06}.json")


def read_record(work: str, split: str, shard: int) -> ShardRecord:
    """The record of a finished shard."""
    raw = storage.read_json(record_uri(work, split, shard))
    file = {**raw["file"], "row_groups": tuple(raw["file"]["row_groups"]), "sidecars": ()}
    raw["file"] = ShardFile(**file)
    raw["rgb_sums"] = tuple(raw["rgb_sums"])
    raw["set_aside"] = tuple(QuarantinedRow(**fault) for fault in raw["set_aside"])
    return ShardRecord(**raw)


def prefix(key: str, old: Manifest | None) -> str:
    """Beginning of the names of a job's shards, which differ with what the dataset held before."""
    return (storage.content_key({"job": key, "base": old.fingerprint}) if old else key)[:8]


def finished_shards(work: str) -> set[tuple[str, int]]:
    """Split and number of the shards with a record."""
    names = storage.children(storage.join(work, "shards"))
    records = [name.removesuffix(".json").split("-") for name in names if name.endswith(".json")]
    return {(split, int(shard)) for split, shard in records}


def num_shards(rows: int, rows_per_shard: int, row_group_rows: int, num_buckets: int) -> int:
    """Shards of a split: full ones when there is much, up to 8 when there is little."""
    few = min(8, rows // row_group_rows)
    return min(max(-(-rows // rows_per_shard), few, 1), num_buckets)


def items(
    counts: dict[str, int], num_buckets: int, done: set[tuple[str, int]]
) -> list[dict[str, Any]]:
    """The shards that are not done: each an equal range of buckets of its split."""
    return [
        {
            "split": split,
            "shard": shard,
            "first_bucket": shard * num_buckets // count,
            "last_bucket": (shard + 1) * num_buckets // count,
        }
        for split, count in counts.items()
        for shard in range(count)
        if (split, shard) not in done
    ]


def write_shard(row: dict[str, Any], work: Work) -> dict[str, int]:
    """Ray task: write one shard and its record; returns what the progress display shows."""
    split, shard = str(row["split"]), int(row["shard"])
    first, last = int(row["first_bucket"]), int(row["last_bucket"])
    held: dict[str, bytes | memoryview] = {}
    rows = [
        row._replace(
            jpeg=held.setdefault(row.sha256, row.jpeg),  # many may be equal
            class_name=work.same_class.get(row.class_name or "", row.class_name),
        )
        for row in _rows(work, split, first, last)
    ]
    rows.sort(key=lambda row: (row.order, row.class_name is None, row.key))
    rows, twins = with_own_keys(rows, split, work.repeated_keys)
    elsewhere = _held_by_validation(work, first, last) if split == "train" else {}
    kept, duplicates = without_duplicates(rows, split, elsewhere)
    path = f"{split}/{work.prefix}-{shard:06}.parquet"
    uri = storage.join(work.uri, path)
    with storage.staged_file(uri) as staged:
        groups = _write(staged, kept, work)
        file = ShardFile(
            path=path,
            rows=len(kept),
            bytes=staged.stat().st_size,
            sha256=storage.sha256_of(staged),
            row_groups=tuple(groups),
        )
    record = _record(file, kept, [*twins, *duplicates])
    storage.publish_json(record_uri(work.work, split, shard), asdict(record))
    return {"images": len(kept), "bytes": file.bytes}


def _held_by_validation(work: Work, first: int, last: int) -> dict[str, Row]:
    """sha256 -> image of these buckets that validation keeps, without its bytes."""
    rows = (row._replace(jpeg=b"") for row in _rows(work, "val", first, last))
    kept, _ = with_own_keys(list(rows), "val", work.repeated_keys)
    return {row.sha256: row for row in kept}


def with_own_keys(
    rows: Sequence[Row], split: str, repeated_keys: dict[bytes, int]
) -> tuple[list[Row], list[QuarantinedRow]]:
    """Rows that may keep their key, and those whose key belongs to another image."""
    if not repeated_keys:
        return list(rows), []
    kept, twins = [], []
    for row in rows:
        if repeated_keys.get(digests.of_key(row.key), row.order) == row.order:
            kept.append(row)
        else:
            twins.append(_aside(row, split, "duplicate_key", "another image has this key"))
    return kept, twins


def without_duplicates(
    rows: Sequence[Row], split: str, elsewhere: dict[str, Row]
) -> tuple[list[Row], list[QuarantinedRow]]:
    """Rows in shuffle order -> those that stay, those whose bytes are already there.

    Args:
        rows: in the order (place, key).
        split: of the rows.
        elsewhere: sha256 -> image that another split holds.
    """
    seen = dict(elsewhere)
    kept: list[Row] = []
    duplicates: list[QuarantinedRow] = []
    for row in rows:
        if row.sha256 not in seen:
            seen[row.sha256] = row
            kept.append(row)
            continue
        twin = seen[row.sha256]
        message = twin_message(twin.key, twin.class_name, row)
        duplicates.append(_aside(row, split, "duplicate", message))
    return kept, duplicates


def _aside(row: Row, split: str, fault: FaultClass, message: str) -> QuarantinedRow:
    return QuarantinedRow(
        key=row.key,
        class_name=row.class_name,
        split=split,
        sha256=row.sha256,
        fault=fault,
        message=message,
    )


def _rows(work: Work, split: str, first: int, last: int) -> Iterator[Row]:
    """Rows of the buckets first .. last - 1 of all units."""
    for group in (*work.groups[split], *work.drawn[split]):
        wanted = None if group in work.groups[split] else split
        for path, begin, end in find_spilled_ranges(work.work, group, first, last):
            uri = storage.join(work.work, path)
            yield from storage.retrying(
                lambda uri=uri, begin=begin, end=end, wanted=wanted: list(  # type: ignore[misc]
                    _drawn(spill.read(storage.read_range(uri, begin, end)), wanted, work.draw)
                ),
                f"reading {uri}",
            )


def _drawn(rows: Iterator[Row], wanted: str | None, draw: Draw) -> Iterator[Row]:
    """The rows that the draw gives to a split; all of them where None is wanted."""
    for row in rows:
        if wanted is None:
            yield row
        elif draw.holds(row.key, row.class_name) == (wanted == "val"):
            # A view would keep the bytes of all others in memory: few are for validation.
            yield row._replace(jpeg=bytes(row.jpeg)) if wanted == "val" else row


def find_spilled_ranges(
    work: str, group: str, first: int, last: int
) -> Iterator[tuple[str, int, int]]:
    """Path and byte range of these buckets in each spill file that has any of them."""
    paths, offsets = _spill_index(work, group)
    for path, (begin, end) in zip(paths, offsets[:, [first, last]].tolist(), strict=True):
        if begin < end:
            yield path, begin, end


@lru_cache(maxsize=4)
def _spill_index(work: str, group: str) -> tuple[list[str], NDArray[np.int64]]:
    uri = storage.join(work, f"offsets-{group}.npy")
    if not storage.exists(uri):
        return [], np.zeros((0, 1 << 16), np.int64)
    with storage.open_input(uri) as file:
        offsets = np.load(file)
    return storage.read_json(storage.join(work, f"spills-{group}.json")), offsets


def _write(path: Path, rows: Sequence[Row], work: Work) -> list[int]:
    """One Parquet file; returns the rows of each row group."""
    labels = {name: label for label, name in enumerate(work.classes)}
    schema = shards.arrow_schema(work.masks)
    groups = [
        rows[start : start + work.row_group_rows]
        for start in range(0, len(rows), work.row_group_rows)
    ]
    with pq.ParquetWriter(path, schema, **shards.parquet_options(work.masks)) as writer:
        for group in groups:
            writer.write_table(_table(group, labels, work, schema), row_group_size=len(group))
    return [len(group) for group in groups]


def _table(rows: Sequence[Row], labels: dict[str, int], work: Work, schema: pa.Schema) -> pa.Table:
    keys = [row.key for row in rows]
    columns = {
        "key": keys,
        "label": [None if row.class_name is None else labels[row.class_name] for row in rows],
        "image": shards.large_binary([row.jpeg for row in rows]),
        "sha256": [bytes.fromhex(row.sha256) for row in rows],
    }
    for spec in work.masks:
        cells = [mask_cell(work.seed, spec, key) for key in keys]
        columns[spec.column] = shards.large_binary(cells)
    return pa.Table.from_pydict(columns, schema)


def mask_cell(seed: int, spec: MaskSpec, key: str) -> bytes:
    """All masks of one image in one column."""
    if spec.strategy == "central":
        return _central_cell(spec.side, spec.variants)
    drawn = masks.masks_for(seed, spec.strategy, spec.side, key, spec.variants)
    return b"".join(map(masks.pack, drawn))


@cache
def _central_cell(side: int, variants: int) -> bytes:
    """The same for every image."""
    return masks.pack(masks.central(side)) * variants


def _record(
    file: ShardFile, rows: Sequence[Row], set_aside: Sequence[QuarantinedRow]
) -> ShardRecord:
    converted = Counter(kind for row in rows for kind in row.conversions)
    by_class = Counter(row.class_name or "" for row in rows)
    red, green, blue = (sum(row.rgb_sums[channel] for row in rows) for channel in range(3))
    return ShardRecord(
        file=file,
        pixels=sum(row.pixels for row in rows),
        rgb_sums=(red, green, blue),
        converted=dict(sorted(converted.items())),
        rows_by_class=dict(sorted(by_class.items())),
        set_aside=tuple(set_aside),
    )
