"""The shard contract: what a prepared dataset is, on disk and in an object store.

A dataset is a folder at a URI. It exists exactly when its `manifest.json` exists, which is
written last, once, and names every file with rows, bytes and sha256. Readers open what the
manifest names and nothing else.

    manifest.json
    train/*.parquet            key, label, image, sha256, mask_<strategy>_<side> ...
    val/*.parquet
    train/*.masks-*.parquet    sidecars: mask columns that were added later
    quarantine-<job>.parquet   pictures that a job set aside, with the reason (when there are any)
    card.html  card.json       what a person wants to know, with a contact sheet
    revisions/*.json           manifests of later additions; manifest.json is the newest

`image` is a JPEG (RGB, upright, shorter side at most `stored_side` px) on uncompressed pages;
`sha256` (nullable) is that of the bytes in the source, so that a row can be traced to its file.
A mask cell holds `variants` packed bit masks of side x side px one after the other: True is
hidden, row-major, numpy packbits order. Masks follow from (mask_seed, strategy, side, key,
variant) alone. A column may stand in the shard itself or in a sidecar file with the same rows.
"""

import io
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ce_model.masks import MASK_VERSION, STRATEGIES, Strategy
from pipelines import storage
from pipelines.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "val")
ZSTD_LEVEL = 3  # as fast as 1 on masks, and 3 % smaller; 5 takes twice the time


@dataclass(frozen=True, kw_only=True)
class MaskSpec:
    """One mask column: which holes it holds."""

    strategy: Strategy
    side: int
    """Side of the square mask, px."""
    variants: int
    """Masks per row; 1 is enough for `central`, which never differs."""
    version: int = MASK_VERSION
    """Version of the mask functions that drew them."""

    @property
    def column(self) -> str:
        """Name in the shards."""
        return mask_column(self.strategy, self.side)

    @property
    def bytes_per_mask(self) -> int:
        """Packed size of one mask."""
        return -(-(self.side**2) // 8)


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """A file that holds further columns of a shard, row by row."""

    path: str
    columns: tuple[str, ...]
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One Parquet file of a split; paths are relative to the dataset."""

    path: str
    rows: int
    bytes: int
    sha256: str
    row_groups: tuple[int, ...]
    """Rows of each row group."""
    sidecars: tuple[Sidecar, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` says."""

    splits: dict[str, tuple[ShardFile, ...]]
    classes: tuple[str, ...]
    """Class names by label; empty when the pictures have none."""
    mean_rgb: tuple[float, float, float]
    """Mean colour of the stored training pictures, 0..255: what fills a hole."""
    masks: tuple[MaskSpec, ...]
    stored_side: int
    seed: int
    """Seed of the shuffle, the split and the masks."""
    listed: int
    written: int
    quarantined: int
    duplicates: int
    quarantine: dict[str, int] = field(default_factory=dict)
    """Pictures set aside, by class of fault."""
    converted: dict[str, int] = field(default_factory=dict)
    """Pictures that were written after a conversion, by kind (grey, cmyk, rotated ...)."""
    train_pixels: int = 0
    """Pixels behind `mean_rgb`; with it a later addition keeps the mean exact."""
    jobs: tuple[str, ...] = ()
    """Keys of the jobs that made this dataset; not part of the fingerprint."""
    revision: int = 0
    """Counts the additions to the dataset; not part of the fingerprint."""
    source: str = ""
    """Where the pictures came from, for people; not part of the fingerprint."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """The count that must always hold."""
        if self.listed != self.written + self.quarantined + self.duplicates:
            raise ValueError(
                f"listed {self.listed} != written {self.written} + quarantined "
                f"{self.quarantined} + duplicates {self.duplicates}"
            )

    @property
    def fingerprint(self) -> str:
        """sha256 of everything a training run can see; the same wherever it was made."""
        seen = asdict(self)
        for unseen in (
            "source",
            "jobs",
            "revision",
            "listed",
            "quarantined",
            "duplicates",
            "quarantine",
        ):
            del seen[unseen]
        return storage.content_key(seen)

    def rows(self, split: str) -> int:
        """Pictures of a split."""
        return sum(file.rows for file in self.splits.get(split, ()))

    def mask_spec(self, strategy: Strategy, side: int) -> MaskSpec:
        """The mask column of a strategy at a side."""
        for spec in self.masks:
            if (spec.strategy, spec.side) == (strategy, side):
                return spec
        held = ", ".join(spec.column for spec in self.masks)
        raise UserError(
            f"the dataset has no column {mask_column(strategy, side)}; it holds {held}. "
            f"Add it without decoding a picture: python jobs/prepare.py --source DATASET "
            f"--strategies {strategy} --sides {side}"
        )


def mask_column(strategy: str, side: int) -> str:
    """Column name of a mask."""
    return f"mask_{strategy}_{side}"


def arrow_schema(masks: tuple[MaskSpec, ...]) -> pa.Schema:
    """Columns of a shard. large_binary: 32-bit offsets would overflow at 2 GiB."""
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("label", pa.int32()),
            pa.field("image", pa.large_binary(), nullable=False),
            pa.field("sha256", pa.binary(32)),
            *(pa.field(spec.column, pa.large_binary(), nullable=False) for spec in masks),
        ]
    )


def large_binary(cells: Sequence[bytes | memoryview]) -> pa.LargeBinaryArray:
    """A column of bytes, copied once; Arrow's builder copies again whenever it grows."""
    offsets = np.zeros(len(cells) + 1, np.int64)
    np.cumsum([len(cell) for cell in cells], out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(cells))]
    return pa.Array.from_buffers(pa.large_binary(), len(cells), buffers)


def parquet_options(masks: tuple[MaskSpec, ...]) -> dict[str, Any]:
    """Writer settings: JPEG pages stay as they are, they do not compress (PERFORMANCE 5.1)."""
    plain = {"image": "none", "sha256": "none"}
    compressed = {"key": "zstd", "label": "zstd"} | {spec.column: "zstd" for spec in masks}
    return {
        "compression": plain | compressed,
        "compression_level": dict.fromkeys(compressed, ZSTD_LEVEL),
        "use_dictionary": False,
        "write_statistics": False,
        "store_schema": False,
    }


def is_dataset(uri: str) -> bool:
    """Whether a committed dataset is there, of whatever version."""
    return _raw_manifest(uri) is not None


def _raw_manifest(uri: str) -> dict[str, Any] | None:
    """What the manifest says; None without one, or where another program's has its name.

    Raises:
        UserError: it was a dataset's, since a card lies beside it, and is JSON no longer.
    """
    place = storage.join(uri, MANIFEST)
    if not storage.exists(place):
        return None
    try:
        raw = storage.read_json(place)
    except storage.NotJsonError as error:
        if storage.exists(storage.join(uri, "card.json")):
            raise _altered(uri, error.__cause__ or error) from None
        return None
    return raw if isinstance(raw, dict) and {"format_version", "splits"} <= raw.keys() else None


def find_manifest(uri: str) -> Manifest | None:
    """The manifest of a committed dataset; None where there is none.

    Raises:
        UserError: this version cannot read it.
    """
    raw = _raw_manifest(uri)
    return None if raw is None else manifest_from_json(raw, uri)


def read_manifest(uri: str) -> Manifest:
    """The manifest of a committed dataset.

    Raises:
        UserError: there is none, or this version cannot read it.
    """
    manifest = find_manifest(uri)
    if manifest is None:
        raise UserError(
            f"'{uri}' is not a prepared dataset: it has no {MANIFEST} of one. Make one with "
            "python jobs/prepare.py --source PICTURES --output DATASET"
        )
    return manifest


def manifest_from_json(raw: dict[str, Any], uri: str) -> Manifest:
    """Parse what `write_manifest` wrote.

    Raises:
        UserError: another version wrote it, or it is not as it was written.
    """
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"'{uri}' has dataset format {version!r}; this program reads {FORMAT_VERSION}. "
            "Prepare the pictures again with python jobs/prepare.py"
        )
    try:
        return _parse(raw)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _altered(uri, error) from None


def _altered(uri: str, error: BaseException) -> UserError:
    return UserError(
        f"{MANIFEST} in '{uri}' is not as jobs/prepare.py wrote it ({type(error).__name__}: "
        f"{error}): restore it from a copy (the newest one in revisions, where there is one), or "
        "prepare the pictures again into another folder"
    )


def _parse(raw: dict[str, Any]) -> Manifest:
    splits = {
        name: tuple(
            ShardFile(
                **{
                    **file,
                    "row_groups": tuple(file["row_groups"]),
                    "sidecars": tuple(
                        Sidecar(**{**sidecar, "columns": tuple(sidecar["columns"])})
                        for sidecar in file["sidecars"]
                    ),
                }
            )
            for file in files
        )
        for name, files in raw["splits"].items()
    }
    masks = tuple(MaskSpec(**spec) for spec in raw["masks"])
    tuples = {name: tuple(raw[name]) for name in ("classes", "mean_rgb", "jobs")}
    known = {name: value for name, value in raw.items() if name != "fingerprint"}
    return Manifest(**{**known, **tuples, "splits": splits, "masks": masks})


def write_manifest(uri: str, manifest: Manifest) -> None:
    """Commit a dataset: from now on it exists.

    Raises:
        FileExistsError: another job committed this dataset first.
    """
    storage.publish_json(storage.join(uri, MANIFEST), _content(manifest), exclusive=True)


def replace_manifest(uri: str, manifest: Manifest) -> None:
    """Commit an addition: `manifest` follows the revision before it.

    Exactly one job can make a revision: its file is created exclusively, and manifest.json is
    its copy. A job that was killed between the two is completed by the next one.

    Raises:
        FileExistsError: another job made this revision first; it is in place now.
    """
    revision = storage.join(uri, "revisions", f"{manifest.revision:06}.json")
    try:
        storage.publish_json(revision, _content(manifest), exclusive=True)
    except FileExistsError:
        _place_newest_revision(uri)
        if manifest_from_json(storage.read_json(revision), uri).jobs != manifest.jobs:
            raise
    else:
        _place_newest_revision(uri)


def _place_newest_revision(uri: str) -> None:
    """Copy it to manifest.json; again while others make more, or a slow job would undo theirs."""
    revisions = storage.join(uri, "revisions")
    placed = None
    while (newest := storage.children(revisions)[-1]) != placed:
        content = storage.read_json(storage.join(revisions, newest))
        storage.publish_json(storage.join(uri, MANIFEST), content)
        placed = newest


def _content(manifest: Manifest) -> dict[str, Any]:
    return {**asdict(manifest), "fingerprint": manifest.fingerprint}


def quarantine_uri(uri: str, job: str) -> str:
    """Where a job writes what it sets aside."""
    return storage.join(uri, f"quarantine-{job[:8]}.parquet")


@dataclass(frozen=True)
class RowGroup:
    """One row group of a split: the unit of reading."""

    file: ShardFile
    index: int
    rows: int
    first_row: int
    """Number of the group's first row in its split; identifies rows without reading keys."""


def row_groups(manifest: Manifest, split: str) -> list[RowGroup]:
    """All row groups of a split in the manifest's order."""
    groups = []
    first = 0
    for file in manifest.splits.get(split, ()):
        for index, rows in enumerate(file.row_groups):
            groups.append(RowGroup(file, index, rows, first))
            first += rows
    return groups


def read_row_group(uri: str, group: RowGroup, columns: list[str]) -> pa.Table:
    """Some columns of a row group, from the shard and its sidecars.

    Raises:
        UserError: the file does not hold what the manifest promises.
        OSError: the storage failed for longer than we try, or gave other bytes than it holds.
    """
    parts: dict[ShardFile | Sidecar, list[str]] = {}
    for column in columns:
        part = next((s for s in group.file.sidecars if column in s.columns), group.file)
        parts.setdefault(part, []).append(column)
    try:
        tables = [
            _open(storage.join(uri, part.path), part.bytes).read_row_group(
                group.index, columns=names
            )
            for part, names in parts.items()
        ]
    except (FileNotFoundError, pa.ArrowException) as error:
        raise damaged(uri, f"{group.file.path}: {error}") from None
    except OSError as error:  # Arrow's own for a page that it cannot read, or the storage's
        for part in parts:
            if storage.sha256_of_uri(storage.join(uri, part.path)) != part.sha256:
                raise damaged(uri, f"{part.path}: {str(error).strip()}") from None
        raise
    found = {name: table.column(name) for table in tables for name in table.column_names}
    missing = [column for column in columns if column not in found]
    if missing or any(table.num_rows != group.rows for table in tables):
        rows = [table.num_rows for table in tables]
        raise damaged(
            uri, f"{group.file.path}: missing columns {missing}, rows {rows} for {group.rows}"
        )
    return pa.table({column: found[column] for column in columns})


def damaged(uri: str, what: str) -> UserError:
    """The error for a dataset of which a file has changed."""
    return UserError(
        f"'{uri}' does not hold what its manifest says ({what}); find every file that is damaged "
        f"with python jobs/inspect_dataset.py --dataset {uri} --verify"
    )


@lru_cache(maxsize=64)
def _open(uri: str, size: int) -> pq.ParquetFile:
    """Shards never change under their name, so an open file and its footer can be kept.

    Raises:
        ArrowInvalid: it has another size than the manifest says, so it is another file.
    """
    local = storage.is_local(uri)
    file = pa.memory_map(str(storage.local_path(uri))) if local else storage.open_input(uri)
    found = file.seek(0, io.SEEK_END)
    if found != size:
        raise pa.ArrowInvalid(f"'{uri}' has {found} bytes, the manifest has {size}")
    return pq.ParquetFile(file, pre_buffer=not local)


def cells(column: pa.ChunkedArray) -> list[memoryview]:
    """Views of the cells of a binary column, without copying a byte."""
    views: list[memoryview] = []
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        kind = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
        bounds = np.frombuffer(offsets, kind)[chunk.offset : chunk.offset + len(chunk) + 1]
        whole = memoryview(data).cast("B") if data is not None else memoryview(b"")
        views += [whole[a:b] for a, b in itertools.pairwise(bounds)]
    return views


def default_masks(
    sides: tuple[int, ...], strategies: tuple[Strategy, ...] = STRATEGIES[:3], variants: int = 2
) -> tuple[MaskSpec, ...]:
    """The mask columns a dataset gets unless told otherwise."""
    return tuple(
        MaskSpec(strategy=s, side=side, variants=1 if s == "central" else variants)
        for side in sides
        for s in strategies
    )
