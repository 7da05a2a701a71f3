"""Features as files: Parquet with key, label and a vector of fixed size, named by a manifest.

    OUTPUT/part-*.parquet    key string, label string (class name, null where there is none),
                             features fixed_size_list<float32 or float16>
    OUTPUT/faults.parquet    key, fault of every image that is left out, where there are any
    OUTPUT/embeddings.json   what was embedded with what, and every file; written last

The features exist exactly when `embeddings.json` does; what it does not name belongs to no result.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import storage
from pipelines.errors import UserError

FORMAT_VERSION = 1
MANIFEST, FAULTS, PART = "embeddings.json", "faults.parquet", "part-"
ROW_GROUP_BYTES = 8 << 20  # of features; a reader holds one row group at a time


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """A finished result."""

    key: str
    width: int
    rows: int
    faults: dict[str, int]
    files: tuple[dict[str, Any], ...]
    """path, rows, bytes, sha256 and unit of every file."""
    settings: dict[str, Any]
    """Model, layer, pool, normalize, dtype and source."""


class Part(NamedTuple):
    """Some rows of the result."""

    keys: list[str]
    labels: list[str | None]
    features: NDArray[np.float32]
    unit: int


def schema(width: int, dtype: str) -> pa.Schema:
    """Columns of a file."""
    value = pa.float16() if dtype == "float16" else pa.float32()
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("features", pa.list_(pa.field("item", value, nullable=False), width)),
        ]
    )


class Writer:
    """Rows on their way to a Parquet file, in row groups of a bounded size."""

    def __init__(self, file: pq.ParquetWriter, columns: pa.Schema) -> None:
        """Collect for an open file; `writer` makes one."""
        self._file, self._columns = file, columns
        width = columns.field("features").type.list_size
        self._group_rows = max(1, ROW_GROUP_BYTES // (4 * width))
        self._held: list[pa.Table] = []
        self.rows = 0

    def add(self, keys: list[str], labels: list[str | None], found: NDArray[np.float32]) -> None:
        """Append rows.

        Args:
            keys: N.
            labels: N.
            found: float32 (N, D).
        """
        kind = self._columns.field("features").type
        values = pa.array(found.astype(kind.value_type.to_pandas_dtype()).ravel())
        columns = [
            pa.array(keys, pa.string()),
            pa.array(labels, pa.string()),
            pa.FixedSizeListArray.from_arrays(values, type=kind),
        ]
        self._held.append(pa.table(columns, schema=self._columns))
        self.rows += len(keys)
        if sum(table.num_rows for table in self._held) >= self._group_rows:
            self.flush()

    def flush(self) -> None:
        """Write what is held as one row group."""
        if self._held:
            self._file.write_table(pa.concat_tables(self._held).combine_chunks())
            self._held = []


@contextmanager
def writer(path: Path, width: int, dtype: str) -> Iterator[Writer]:
    """A file for the block; whole when the block ends without an error."""
    columns = schema(width, dtype)
    # Features do not compress: a dictionary or zstd would cost time for a few per cent.
    with pq.ParquetWriter(
        path, columns, compression="none", use_dictionary=["label"], write_statistics=False
    ) as file:
        rows = Writer(file, columns)
        yield rows
        rows.flush()


def publish_manifest(uri: str, embeddings: Embeddings) -> None:
    """Commit: from now on the features exist.

    Raises:
        FileExistsError: another job committed first.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "key": embeddings.key,
        "width": embeddings.width,
        "rows": embeddings.rows,
        "faults": embeddings.faults,
        "settings": embeddings.settings,
        "files": list(embeddings.files),
    }
    storage.publish_json(storage.join(uri, MANIFEST), content, exclusive=True)


def find_embeddings(uri: str) -> Embeddings | None:
    """A finished result; None where there is none.

    Raises:
        UserError: the manifest is of another version, or not as it was written.
    """
    place = storage.join(uri, MANIFEST)
    if not storage.exists(place):
        return None
    try:
        raw = storage.read_json(place)
        version = raw.pop("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"'{uri}' has embedding format {version}; this program reads {FORMAT_VERSION}"
            )
        return Embeddings(**{**raw, "files": tuple(raw["files"])})
    except (AttributeError, KeyError, TypeError, storage.NotJsonError) as error:
        raise UserError(
            f"{MANIFEST} in '{uri}' is not as jobs/embed.py wrote it ({error}); embed again into "
            "another folder"
        ) from None


def parts(uri: str, embeddings: Embeddings) -> Iterator[Part]:
    """All rows, one row group at a time.

    Raises:
        UserError: a file is not the one that the manifest names.
    """
    for entry in embeddings.files:
        place = storage.join(uri, entry["path"])
        try:
            with storage.open_input(place) as opened:
                file = pq.ParquetFile(opened)
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group)
                    vectors = table.column("features").combine_chunks().flatten().to_numpy()
                    yield Part(
                        table.column("key").to_pylist(),
                        table.column("label").to_pylist(),
                        vectors.reshape(table.num_rows, -1).astype(np.float32),
                        entry["unit"],
                    )
        except (FileNotFoundError, pa.ArrowException) as error:
            raise UserError(
                f"'{uri}' does not hold what {MANIFEST} says ({entry['path']}: {error}); remove "
                "the folder and embed again"
            ) from None
