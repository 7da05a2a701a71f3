"""Parquet shards: the Arrow schema, and how row groups are opened and read."""

import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.data.manifest import Manifest, MaskSpec, ShardFile, Sidecar
from pipelines.errors import UserError

ZSTD_LEVEL = 3  # as fast as 1 on masks, and 3 % smaller; 5 takes twice the time


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


def read_row_group(
    uri: str, group: RowGroup, columns: list[str], cache: storage.FileCache | None = None
) -> pa.Table:
    """Some columns of a row group, from the shard and its sidecars or their copies in a cache.

    Raises:
        UserError: the file does not hold what the manifest promises.
        OSError: the storage failed for longer than we try, or gave other bytes than it holds.
    """
    parts: dict[ShardFile | Sidecar, list[str]] = {}
    for column in columns:
        part = next((s for s in group.file.sidecars if column in s.columns), group.file)
        parts.setdefault(part, []).append(column)
    try:
        tables = [_read_part(uri, part, group.index, names, cache) for part, names in parts.items()]
    except (FileNotFoundError, pa.ArrowException) as error:
        raise damaged_shard_error(uri, f"{group.file.path}: {error}") from None
    except OSError as error:  # Arrow's own for a page that it cannot read, or the storage's
        for part in parts:
            if storage.sha256_of_uri(storage.join(uri, part.path)) != part.sha256:
                raise damaged_shard_error(uri, f"{part.path}: {str(error).strip()}") from None
        raise
    found = {name: table.column(name) for table in tables for name in table.column_names}
    missing = [column for column in columns if column not in found]
    if missing or any(table.num_rows != group.rows for table in tables):
        rows = [table.num_rows for table in tables]
        raise damaged_shard_error(
            uri, f"{group.file.path}: missing columns {missing}, rows {rows} for {group.rows}"
        )
    return pa.table({column: found[column] for column in columns})


def _read_part(
    uri: str,
    part: ShardFile | Sidecar,
    group: int,
    columns: list[str],
    cache: storage.FileCache | None,
) -> pa.Table:
    place = storage.join(uri, part.path)
    if cache is None:
        return _open(place, part.bytes).read_row_group(group, columns=columns)
    wanted = storage.Wanted(place, part.bytes, part.sha256)
    if (path := cache.find(wanted)) is not None:
        try:
            file = _open(str(path), part.bytes)
            table = file.read_row_group(group, columns=columns)
        except (OSError, pa.ArrowException):  # somebody changed or removed it
            _open.cache_clear()
            cache.discard(wanted)
        else:
            cache.count_hit(_stored_bytes(file, group, columns))
            return table
    cache.count_miss()
    return _open(place, part.bytes, cache.count_stored).read_row_group(group, columns=columns)


def _stored_bytes(file: pq.ParquetFile, group: int, columns: list[str]) -> int:
    found = file.metadata.row_group(group)
    chunks = [found.column(at) for at in range(found.num_columns)]
    return sum(each.total_compressed_size for each in chunks if each.path_in_schema in columns)


def damaged_shard_error(uri: str, what: str) -> UserError:
    """The error for a dataset of which a file has changed."""
    return UserError(
        f"'{uri}' does not hold what its manifest says ({what}); find every file that is damaged "
        f"with python jobs/inspect_dataset.py --dataset {uri} --verify"
    )


@lru_cache(maxsize=64)
def _open(uri: str, size: int, count: Callable[[int], None] | None = None) -> pq.ParquetFile:
    """Shards never change under their name, so an open file and its footer can be kept.

    Raises:
        ArrowInvalid: it has another size than the manifest says, so it is another file.
    """
    local = storage.is_local(uri)
    file = pa.memory_map(str(storage.local_path(uri))) if local else storage.open_input(uri, count)
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
