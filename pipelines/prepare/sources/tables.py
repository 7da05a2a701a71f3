"""Tables as sources: images in a Parquet column, and lists of URIs with labels.

An image column is binary, or a struct {bytes, path} as Hugging Face writes it. Labels are text, or
whole numbers with the class names in the schema's `huggingface` entry; they are floats where pandas
has met a missing one. Only the two columns that are needed are read, as plain Arrow types; nothing
in a schema is ever unpickled.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.errors import UserError
from pipelines.prepare.sources.lists import MAX_LINE_BYTES, Row, split_named

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "picture", "bytes", "content")
LABEL_NAMES = (
    *("label", "labels", "class", "cls", "class_name", "fine_label", "category"),
    *("target", "label_name", "species", "breed"),
)
URI_NAMES = ("uri", "url", "path", "file", "filename", "image", "file_name", "image_path")
IMAGE_STARTS = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
BOX = b"ftyp"  # at byte 4: AVIF, HEIC
LOOKED_AT = 64  # cells of a column, for one that begins as an image does
BUFFER_BYTES = 8 << 20  # pages are read as a stream, also where one row group fills the file
MAX_LABEL_CHARS = 1024
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
        raise UserError(
            f"--source holds '{uri}', which cannot be read as Parquet: {error}"
        ) from None


def row_group_runs(uri: str, run_bytes: int) -> Iterator[tuple[int, int, int, int]]:
    """Runs of row groups of about `run_bytes`: first, last + 1, bytes, rows."""
    file = open_parquet(uri)
    image_column(file, uri)
    first = held = rows = 0
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        if held and held + about.total_byte_size > run_bytes:
            yield first, group, held, rows
            first, held, rows = group, 0, 0
        held += about.total_byte_size
        rows += about.num_rows
    if held:
        yield first, file.num_row_groups, held, rows


def has_images(uri: str) -> bool:
    """Whether a Parquet file has a column that may hold images."""
    return bool(_fitting(open_parquet(uri).schema_arrow))


def refuse_without_images(uri: str) -> None:
    """Say what a Parquet file has instead of images.

    Raises:
        UserError: always.
    """
    schema = open_parquet(uri).schema_arrow
    have = ", ".join(f"{field.name} ({field.type})" for field in schema)
    kinds = {str(field.type) for field in schema}
    why = ""
    if any("bytes: null" in kind for kind in kinds):
        why = ". Its images are not embedded: give a folder of them, or embed them"
    elif any("list<" in kind and "binary" in kind for kind in kinds):
        why = ". Several images in a cell are not read: give each a row of its own"
    raise UserError(
        f"--source holds '{uri}', which has no column of images (binary, or {{bytes, path}}); "
        f"it has {have[:500]}{why}"
    )


def image_column(file: pq.ParquetFile, uri: str) -> str:
    """Name of the column that holds images: by its name, else by how its first cells begin.

    Raises:
        UserError: there is none.
    """
    fitting = _fitting(file.schema_arrow)
    for name in IMAGE_NAMES:
        if name in fitting:
            return name
    if len(fitting) > 1:
        # A hash is as binary as an image: look at what the columns hold.
        fitting = [name for name in fitting if _begins_as_image(file, name)] or fitting[:1]
    if not fitting:
        refuse_without_images(uri)
    return fitting[0]


def columns_of_images(uri: str) -> list[str]:
    """Columns that hold images, the one that is read first; only that where its name tells."""
    file = open_parquet(uri)
    chosen = image_column(file, uri)
    if chosen in IMAGE_NAMES:
        return [chosen]
    others = [name for name in _fitting(file.schema_arrow) if name != chosen]
    return [chosen, *(name for name in others if _begins_as_image(file, name))]


def _fitting(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if _holds_bytes(field.type)]


def _begins_as_image(file: pq.ParquetFile, name: str) -> bool:
    batches = file.iter_batches(1, columns=[name], use_threads=False)
    for batch, _ in zip(batches, range(LOOKED_AT), strict=False):
        held = _bytes_of(batch.column(0)[0])
        if held is not None:
            begin = held[:8].to_pybytes()
            return bool(begin.startswith(IMAGE_STARTS) or begin[4:] == BOX)
    return False


def _bytes_of(value: Any) -> pa.Buffer | None:
    held = value["bytes"] if isinstance(value, pa.StructScalar) and value.is_valid else value
    return held.as_buffer() if held.is_valid and not isinstance(held, pa.StructScalar) else None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return "bytes" in names and _holds_bytes(kind.field("bytes").type)
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or (hasattr(pa.types, "is_binary_view") and pa.types.is_binary_view(kind))
    )


def cells(uri: str, first_group: int, last_group: int) -> Iterator[TableRow]:
    """The rows of a run of row groups, decoded one at a time.

    One at a time costs no more than many, and a small file whose dictionary holds one large value
    for all its rows takes no more memory than that value (3 kB took 10 GB with 64 rows at once).

    Raises:
        UserError: a page is damaged, or text is not UTF-8.
    """
    file = open_parquet(uri)
    image = image_column(file, uri)
    label = next((name for name in LABEL_NAMES if name in file.schema_arrow.names), None)
    names = class_names(file.schema_arrow, label)
    wanted = [image, label] if label else [image]
    row = sum(file.metadata.row_group(group).num_rows for group in range(first_group))
    groups = list(range(first_group, last_group))
    try:
        for batch in file.iter_batches(1, groups, wanted, use_threads=False):
            (value,) = batch.column(image)
            class_name, bad = _class_of(batch.column(label)[0].as_py() if label else None, names)
            yield TableRow(row, _bytes_of(value), class_name, bad)
            row += 1
    except DAMAGE as error:
        raise UserError(f"--source holds '{uri}', which is damaged: {error}") from None


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
    if isinstance(label, list) and len(label) <= 1:  # a list of labels, of which there is one
        label = label[0] if label else None
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


def read_parquet_list(uri: str) -> Iterator[Row]:
    """Image, label and split of every row.

    Raises:
        UserError: a URI is absurdly long, a label no class, a split none, or the file damaged.
    """
    schema = open_parquet(uri).schema_arrow
    column = _uri_column(schema)
    assert column is not None, "is_list() says that there is one"
    label = next((name for name in LABEL_NAMES if name in schema.names), None)
    split = "split" if "split" in schema.names and column != "split" else None
    names = class_names(schema, label)
    columns = [name for name in (column, label, split) if name]
    row = 0
    try:
        for batch in open_parquet(uri, columns).iter_batches(LIST_ROWS, columns=columns):
            for cells in zip(*(batch.column(name) for name in columns), strict=True):
                row += 1
                found = dict(zip(columns, cells, strict=True))
                text = str(found[column].as_py())
                _check_length(uri, row, len(text))
                class_name, bad = _class_of(found[label].as_py() if label else None, names)
                if bad is not None:
                    below = f" below {len(names)}, the number of classes" if names else ""
                    raise UserError(
                        f"--source is '{uri}'; row {row} has the label {bad}, which is no class: a "
                        f"label must be text of at most {MAX_LABEL_CHARS} characters, a whole "
                        f"number{below}, or missing"
                    )
                given = str(found[split].as_py() or "") if split else ""
                yield Row(
                    row, text, class_name, split_named(given, f"--source is '{uri}'; row {row}")
                )
    except DAMAGE as error:
        raise UserError(f"--source holds '{uri}', which is damaged: {error}") from None


def _check_length(uri: str, row: int, length: int) -> None:
    if length > MAX_LINE_BYTES:
        raise UserError(f"--source is '{uri}'; row {row} is longer than {MAX_LINE_BYTES} bytes")
