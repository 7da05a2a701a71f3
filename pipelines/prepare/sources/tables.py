"""Tables as sources: images in a Parquet column, and lists of URIs with labels.

An image column is binary, or a struct {bytes, path} as Hugging Face writes it. Labels are text, or
whole numbers with the class names in the schema's `huggingface` entry; they are floats where pandas
has met a missing one. Only the two columns that are needed are read, as plain Arrow types; nothing
in a schema is ever unpickled.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.errors import UserError

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "picture", "bytes", "content")
LABEL_NAMES = ("label", "labels", "class", "cls", "class_name", "fine_label", "category")
URI_NAMES = ("uri", "url", "path", "file", "filename", "image")
BUFFER_BYTES = 8 << 20  # pages are read as a stream, also where one row group fills the file
MAX_LABEL_CHARS = 1024
MAX_LINE_BYTES = 16 << 10  # of a list: a URI and a label
LIST_ROWS = 4096
DAMAGE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError)


class TableRow(NamedTuple):
    """One row of an image column."""

    row: int
    """Number of the row in its file."""
    data: pa.Buffer | None
    """A view, so that its size is known before it is copied; None where the cell is null."""
    class_name: str | None
    bad_label: str | None
    """A label that is no class."""


def open_parquet(uri: str, as_dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    """Open for streaming.

    Args:
        uri: the file.
        as_dictionaries: columns whose repeated values stay one value in memory.

    Raises:
        UserError: it is not Parquet.
    """
    try:
        return pq.ParquetFile(
            storage.open_range(uri),
            buffer_size=BUFFER_BYTES,
            pre_buffer=False,
            read_dictionary=list(as_dictionaries),
        )
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
    """Name of the column that holds images.

    Raises:
        UserError: there is none.
    """
    fitting = [field.name for field in schema if _holds_bytes(field.type)]
    for name in (*IMAGE_NAMES, *fitting[:1]):
        if name in fitting:
            return str(name)
    have = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise UserError(
        f"source holds '{uri}', which has no column of images (binary, or {{bytes, path}}); "
        f"it has {have[:500]}"
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return "bytes" in names and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def cells(uri: str, first_group: int, last_group: int) -> Iterator[TableRow]:
    """The rows of a run of row groups, decoded one at a time.

    One at a time costs no more than many, and a small file whose dictionary holds one large value
    for all its rows takes no more memory than that value (3 kB took 10 GB with 64 rows at once).

    Raises:
        UserError: a page is damaged, or text is not UTF-8.
    """
    file = open_parquet(uri)
    image = image_column(file.schema_arrow, uri)
    label = next((name for name in LABEL_NAMES if name in file.schema_arrow.names), None)
    names = class_names(file.schema_arrow, label)
    wanted = [image, label] if label else [image]
    row = sum(file.metadata.row_group(group).num_rows for group in range(first_group))
    groups = list(range(first_group, last_group))
    try:
        for batch in file.iter_batches(1, groups, wanted, use_threads=False):
            (value,) = batch.column(image)
            held = value["bytes"] if isinstance(value, pa.StructScalar) else value
            class_name, bad = _class_of(batch.column(label)[0].as_py() if label else None, names)
            yield TableRow(row, held.as_buffer(), class_name, bad)
            row += 1
    except DAMAGE as error:
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
    """Class of a label, or what is wrong with it; both None where there is no label."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    # -1 is what Hugging Face gives to hidden test labels; only NaN differs from itself.
    if label is None or label in (-1, "") or label != label:
        return None, None
    if isinstance(label, str) and len(label) > MAX_LABEL_CHARS:
        return None, f"{label[:50]!r}... of {len(label)} characters"
    if names is None or not isinstance(label, int):
        return (str(label), None) if isinstance(label, int | str) else (None, repr(label)[:50])
    return (names[label] or None, None) if 0 <= label < len(names) else (None, str(label))


def is_list(uri: str) -> bool:
    """Whether a Parquet file names images instead of holding them."""
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
    """URI and label of every row.

    Raises:
        UserError: a URI is absurdly long, a label no class, or the file damaged.
    """
    schema = open_parquet(uri).schema_arrow
    column = _uri_column(schema)
    assert column is not None, "is_list() says that there is one"
    label = next((name for name in LABEL_NAMES if name in schema.names), None)
    names = class_names(schema, label)
    columns = [column, label] if label else [column]
    row = 0
    try:
        for batch in open_parquet(uri, columns).iter_batches(LIST_ROWS, columns=columns):
            labels = batch.column(label) if label else repeat(None, batch.num_rows)
            for name, given in zip(batch.column(column), labels, strict=True):
                text, row = str(name.as_py()), row + 1
                _check_length(uri, f"row {row}", len(text))
                class_name, bad = _class_of(given.as_py() if label else None, names)
                if bad is not None:
                    below = f" below {len(names)}, the number of classes" if names else ""
                    raise UserError(
                        f"source is '{uri}'; row {row} has the label {bad}, which is no class: a "
                        f"label must be text of at most {MAX_LABEL_CHARS} characters, a whole "
                        f"number{below}, or missing"
                    )
                yield text, class_name
    except DAMAGE as error:
        raise UserError(f"source holds '{uri}', which is damaged: {error}") from None


def read_list(uri: str) -> Iterator[tuple[str, str | None]]:
    """URI and label of every line of a text file: `URI`, or `URI LABEL` split as in `fields`.

    Raises:
        UserError: the file is not text, or a line absurdly long.
    """
    with storage.open_range(uri) as file:
        for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            _check_length(uri, f"line {number}", len(raw))
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                raise UserError(f"source is '{uri}'; line {number} is not UTF-8 text") from None
            if not line or line.startswith("#"):
                continue
            parts = fields(line)
            if number == 1 and parts[0].lower() in URI_NAMES:
                continue
            yield parts[0], (parts[1] or None) if len(parts) > 1 else None


def fields(line: str) -> list[str]:
    """Split a line at its tabs, else at its commas, else before its last word."""
    mark = next((mark for mark in "\t," if mark in line), None)
    return [part.strip() for part in (line.split(mark) if mark else line.rsplit(None, 1))]


def _check_length(uri: str, where: str, length: int) -> None:
    if length > MAX_LINE_BYTES:
        raise UserError(f"source is '{uri}'; {where} is longer than {MAX_LINE_BYTES} bytes")
