"""Tables as sources: pictures in a Parquet column, and lists of URIs with labels.

An image column is binary, or a struct {bytes, path} as Hugging Face writes it. Labels are text, or
integers with the class names in the schema's `huggingface` entry. Only the two columns that are
needed are read, as plain Arrow types; nothing in a schema is ever unpickled.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.errors import UserError

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "picture", "bytes", "content")
LABEL_NAMES = ("label", "labels", "class", "cls", "class_name", "fine_label", "category")
URI_NAMES = ("uri", "url", "path", "file", "filename", "image")
BUFFER_BYTES = 8 << 20  # pages are read as a stream, also where one row group fills the file
BATCH_ROWS = 64


class Cell(NamedTuple):
    """One row of an image column."""

    row: int
    """Number of the row in its file."""
    data: bytes | None
    class_name: str | None
    bad_label: str | None
    """A label that is no class."""


def open_parquet(uri: str) -> pq.ParquetFile:
    """Open for streaming.

    Raises:
        UserError: it is not Parquet.
    """
    try:
        return pq.ParquetFile(storage.open_range(uri), buffer_size=BUFFER_BYTES, pre_buffer=False)
    except OSError:
        raise
    except Exception as error:  # also what a registered extension type makes of strange metadata
        raise UserError(f"source holds '{uri}', which cannot be read as Parquet: {error}") from None


def row_group_runs(uri: str, run_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Runs of row groups of about `run_bytes`: first, last + 1, bytes."""
    file = open_parquet(uri)
    image_column(file.schema_arrow, uri)
    first = held = 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).total_byte_size
        if held and held + size > run_bytes:
            yield first, group, held
            first, held = group, 0
        held += size
    if held:
        yield first, file.num_row_groups, held


def image_column(schema: pa.Schema, uri: str) -> str:
    """Name of the column that holds pictures.

    Raises:
        UserError: there is none.
    """
    fitting = [field.name for field in schema if _holds_bytes(field.type)]
    for name in (*IMAGE_NAMES, *fitting[:1]):
        if name in fitting:
            return str(name)
    have = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise UserError(
        f"source holds '{uri}', which has no column of pictures (binary, or {{bytes, path}}); "
        f"it has {have[:500]}"
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return "bytes" in names and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def cells(uri: str, first_group: int, last_group: int) -> Iterator[Cell]:
    """The rows of a run of row groups.

    Raises:
        UserError: a page is damaged.
    """
    file = open_parquet(uri)
    image = image_column(file.schema_arrow, uri)
    label = next((name for name in LABEL_NAMES if name in file.schema_arrow.names), None)
    names = class_names(file.schema_arrow, label)
    wanted = [image, label] if label else [image]
    row = sum(file.metadata.row_group(group).num_rows for group in range(first_group))
    groups = list(range(first_group, last_group))
    try:
        for batch in file.iter_batches(BATCH_ROWS, groups, wanted, use_threads=False):
            labels = batch.column(label).to_pylist() if label else [None] * batch.num_rows
            for value, given in zip(batch.column(image), labels, strict=True):
                data = value.as_py()
                data = data.get("bytes") if isinstance(data, dict) else data
                class_name, bad = _class_of(given, names)
                yield Cell(row, data, class_name, bad)
                row += 1
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"source holds '{uri}', which is damaged: {error}") from None


def class_names(schema: pa.Schema, label: str | None) -> list[str] | None:
    """Names of the classes, where Hugging Face wrote them down."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None or label is None:
        return None
    try:
        names = json.loads(raw)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _class_of(label: Any, names: list[str] | None) -> tuple[str | None, str | None]:
    if label is None or label == -1:  # -1 is what Hugging Face gives to hidden test labels
        return None, None
    if names is None or not isinstance(label, int):
        return (str(label), None) if isinstance(label, int | str) else (None, repr(label)[:50])
    return (names[label], None) if 0 <= label < len(names) else (None, str(label))


def is_list(uri: str) -> bool:
    """Whether a Parquet file names pictures instead of holding them."""
    schema = open_parquet(uri).schema_arrow
    return not any(_holds_bytes(field.type) for field in schema) and _uri_column(schema) is not None


def _uri_column(schema: pa.Schema) -> str | None:
    texts = {
        field.name
        for field in schema
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    }
    return next((name for name in URI_NAMES if name in texts), None)


def read_parquet_list(uri: str) -> Iterator[tuple[str, str | None]]:
    """URI and label of every row."""
    file = open_parquet(uri)
    column = _uri_column(file.schema_arrow)
    label = next((name for name in LABEL_NAMES if name in file.schema_arrow.names), None)
    names = class_names(file.schema_arrow, label)
    for batch in file.iter_batches(columns=[column, label] if label else [column]):
        labels = batch.column(label).to_pylist() if label else [None] * batch.num_rows
        for name, given in zip(batch.column(column).to_pylist(), labels, strict=True):
            yield str(name), _class_of(given, names)[0]


def read_list(uri: str) -> Iterator[tuple[str, str | None]]:
    """URI and label of every line of a text file: `URI`, or `URI LABEL` split by tab, comma, space.

    Raises:
        UserError: the file is not text.
    """
    with storage.open_range(uri) as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                raise UserError(f"source is '{uri}'; line {number} is not UTF-8 text") from None
            if not line or line.startswith("#"):
                continue
            parts = re.split(r"\t|,", line) if re.search(r"\t|,", line) else line.rsplit(None, 1)
            if number == 1 and parts[0].strip().lower() in URI_NAMES:
                continue
            yield parts[0].strip(), (parts[1].strip() or None) if len(parts) > 1 else None
