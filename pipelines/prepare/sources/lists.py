"""Lists of images as text: CSV by its header names, lines without a header, JSON lines.

    with a header   columns by name, in any order: NAMES, CLASSES, SPLITS; others are ignored.
                    Cells are split at tabs, commas, semicolons or bars and may be quoted (RFC 4180)
    without one     NAME, or NAME LABEL. The name ends at the suffix of an image, so that commas and
                    spaces in it are its own; the label follows a tab, comma, semicolon or space
    JSON lines      an object per line, its fields by the same names

A byte order mark, Windows line ends and backslashes in names are understood.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

from pipelines import storage
from pipelines.errors import UserError
from pipelines.prepare.sources.splits import Split, named_split

NAMES = tuple(
    "file_name filename image_path img_path image_file file_path filepath path image_name img_name "
    "file image img image_url img_url url uri imageid image_id name key id".split()
)
CLASSES = tuple(
    "label class class_name label_name labels category target cls fine_label breed species "
    "predictionstring class_id label_id cats tag y".split()
)
SPLITS = ("split", "subset", "partition", "set", "is_valid", "is_val")
NO_CLASS = frozenset(
    "caption text prompt description width height size w h md5 sha1 sha256 hash license author "
    "title date source bytes index unnamed: 0 exif status".split()
)
DELIMITERS = "\t,;|"
SUFFIX = re.compile(r"\.(?:jpe?g|jpe|jfif|png|bmp|gif|webp|tiff?|avif)(?=[\t,; ]|$)", re.I)
MAX_LINE_BYTES = 16 << 10  # a URI and a label
HEAD_LINES = 100  # looked at before anything is decided


class Row(NamedTuple):
    """One image of a list."""

    line: int
    name: str
    label: str | None
    split: Split | None


class Columns(NamedTuple):
    """Which column is what."""

    delimiter: str
    name: int
    label: int | None
    split: int | None
    header: list[str]
    ignored: list[str]
    """Columns that might have been classes."""


def read_rows(uri: str, flag: str, notes: list[str] | None = None) -> Iterator[Row]:
    """The rows of a list, streamed.

    Args:
        uri: the file.
        flag: that named it, for messages.
        notes: gets what a person should know of how it was understood.

    Raises:
        UserError: it is not text, a line is absurdly long or cannot be understood.
    """
    lines = text_lines(uri, flag)
    head = list(islice(lines, HEAD_LINES))
    every = chain(head, lines)
    if not head:
        return
    if head[0][1].startswith("{"):
        yield from _json_rows(uri, flag, every)
        return
    columns = _columns(head[0][1])
    if columns is None:
        for number, line in every:
            name, label = split_line(line, f"{flag} is '{uri}'; line {number}")
            yield Row(number, plain_name(name), label, None)
        return
    if columns.ignored and columns.label is None and notes is not None:
        notes.append(
            f"{flag} '{uri}': no column is taken for classes; of {', '.join(columns.ignored)}, "
            "name the one that holds them 'label'"
        )
    for number, cells in _cells(islice(every, 1, None), columns.delimiter):
        where = f"{flag} is '{uri}'; line {number}"
        if len(cells) <= max(columns.name, columns.label or 0, columns.split or 0):
            raise UserError(
                f"{where} holds {cells}, {len(cells)} of the {len(columns.header)} columns "
                f"{', '.join(columns.header)}. Put cells that hold the delimiter in quotes"
            )
        label = cells[columns.label].strip() if columns.label is not None else None
        if label and columns.header[columns.label or 0].lower() == "predictionstring":
            label = label.split()[0]  # the boxes of the objects follow
        split = _split_of(columns, cells, where)
        yield Row(number, plain_name(cells[columns.name].strip()), label or None, split)


def text_lines(uri: str, flag: str) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that hold something; `#` begins a comment."""
    try:
        with storage.open_range(uri) as file:
            for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                if len(raw) > MAX_LINE_BYTES:
                    raise UserError(
                        f"{flag} is '{uri}'; line {number} is longer than {MAX_LINE_BYTES} bytes"
                    )
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError:
                    raise UserError(f"{flag} is '{uri}'; line {number} is not UTF-8 text") from None
                if line and not line.startswith("#"):
                    yield number, line
    except FileNotFoundError:
        raise UserError(f"{flag} is '{uri}'; there is no such file") from None


def _columns(line: str) -> Columns | None:
    """The columns of a header; None where the line is none."""
    for delimiter in DELIMITERS:
        header = next(csv.reader([line], delimiter=delimiter), [])
        words = [cell.strip().lower().replace(" ", "_") for cell in header]
        name = next((words.index(known) for known in NAMES if known in words), None)
        if name is None or (len(words) == 1 and any(mark in line for mark in DELIMITERS)):
            continue
        label = next((words.index(known) for known in CLASSES if known in words), None)
        split = next((words.index(known) for known in SPLITS if known in words), None)
        free = [
            at
            for at, word in enumerate(words)
            if word and at not in (name, split) and word not in NO_CLASS and word not in NAMES
        ]
        if label is None and len(free) == 1:
            label = free[0]
        return Columns(delimiter, name, label, split, header, [header[at] for at in free])
    return None


def _cells(lines: Iterable[tuple[int, str]], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Cells of the rows; a quoted cell may hold the delimiter and line ends."""
    number = 0

    def texts() -> Iterator[str]:
        nonlocal number
        for number, line in lines:  # noqa: B007
            yield line + "\n"

    for cells in csv.reader(texts(), delimiter=delimiter):
        if any(cells):
            yield number, cells


def _split_of(columns: Columns, cells: list[str], where: str) -> Split | None:
    if columns.split is None:
        return None
    given = cells[columns.split].strip()
    if columns.header[columns.split].strip().lower() in ("is_valid", "is_val"):
        return "val" if given.lower() in ("true", "1", "yes") else "train"
    return split_named(given, where)


def split_named(given: str, where: str) -> Split | None:
    """The split that a cell names.

    Raises:
        UserError: it is none.
    """
    named = named_split(given) if given else None
    if given and (named is None or named.others):
        raise UserError(f"{where} has the split '{given}'; it must be train, val or test")
    return named.split if named else None


def split_line(line: str, where: str) -> tuple[str, str | None]:
    """Name and label of a line without a header.

    Raises:
        UserError: words follow the name that are no label.
    """
    if line.startswith('"') or "\t" in line:
        cells = next(csv.reader([line], delimiter="\t" if "\t" in line else _first_mark(line)))
        return cells[0].strip(), cells[1].strip() or None if len(cells) > 1 else None
    found = SUFFIX.search(line)
    if found is None:
        return _split_without_suffix(line)
    if found.end() == len(line):
        return line, None  # the whole is a name
    name, mark, rest = line[: found.end()], line[found.end() : found.end() + 1], line[found.end() :]
    if [match for match in SUFFIX.finditer(line) if match.end() == len(line)]:
        raise UserError(
            f"{where} holds two names of images, '{name}' and '{rest.strip()}'; give the file a "
            "header that names its columns, such as filename,label"
        )
    if mark == " ":
        words = rest.split()
        if len(words) > 1 and any(re.fullmatch(r"-?[\d.]+", word) for word in words):
            raise UserError(
                f"{where} has '{rest.strip()}' behind the name '{name}'; give the file a header "
                "that names its columns, such as filename,label"
            )
        if rest.strip()[:1] not in DELIMITERS:
            return name, rest.strip() or None
    cells = next(csv.reader([rest.strip()], delimiter=rest.strip()[:1] or ","))
    return name, cells[1].strip() or None if len(cells) > 1 else None


def _first_mark(line: str) -> str:
    end = line.find('"', 1) + 1
    return line[end : end + 1] if line[end : end + 1] in DELIMITERS and line[end:] else ","


def _split_without_suffix(line: str) -> tuple[str, str | None]:
    """A key or a URL without a suffix: it ends at a comma, or before the last word."""
    is_url = "://" in line
    if is_url and " " in line:
        name, _, label = line.partition(" ")
        return name, label.strip() or None
    mark = next((mark for mark in ",;" if mark in line), None)
    parts = [part.strip() for part in (line.split(mark) if mark else line.rsplit(None, 1))]
    return parts[0], parts[1] or None if len(parts) > 1 else None


def plain_name(name: str) -> str:
    """A name with slashes, as it stands below a folder: Windows writes backslashes."""
    if "\\" in name and "/" not in name:
        return name.replace("\\", "/")
    return name


def _json_rows(uri: str, flag: str, lines: Iterable[tuple[int, str]]) -> Iterator[Row]:
    for number, line in lines:
        where = f"{flag} is '{uri}'; line {number}"
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is no JSON object: {error}") from None
        fields = {str(key).lower(): value for key, value in row.items()} if row else {}
        field = next((known for known in NAMES if fields.get(known) is not None), None)
        name = None if field is None else fields[field]
        if field is None:
            raise UserError(
                f"{where} names no image; one of its fields {', '.join(fields) or '(none)'} must "
                f"be {', '.join(NAMES[:6])} ..."
            )
        if not isinstance(name, str | int):
            raise UserError(
                f"{where} has {name!r:.60} in '{field}'; it must be the path or URI of an image"
            )
        label = next((fields[known] for known in CLASSES if known in fields), None)
        if not isinstance(label, str | int | None):
            raise UserError(f"{where} has the label {label!r:.50}; it must be text or a number")
        text = None if label is None or label == "" else str(label)
        split = split_named(str(fields.get("split") or ""), where)
        yield Row(number, plain_name(str(name)), text, split)
