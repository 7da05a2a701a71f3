"""What a source holds: a stream of pieces, each small to describe and large enough to read.

A source is one or several of (see `patterns`)
    a folder    the files in it may be images, archives (WebDataset shards, the ImageNet tars) or
                Parquet files
    an archive  .tar, alone or packed by gzip, bzip2, xz or zstd, or .zip
    Parquet     an image column: bytes, or {bytes, path} as Hugging Face writes it
    a list      .txt, .csv, .tsv, .jsonl of images with labels, or Parquet with a URI column

A piece is a file, a byte range of a tar between two members, a tar inside a tar, a compressed
archive, or a run of row groups. Listing reads names, sizes and headers only, twice: all names go
through a temporary file while the folders are counted, then the layout that follows from them (see
`layout`) gives each its split and class. Its memory does not grow with the number of images.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator

from pipelines import storage
from pipelines.errors import UserError
from pipelines.prepare.sources import lists, patterns, tables
from pipelines.prepare.sources.layout import Rules
from pipelines.prepare.sources.names import Found, Names
from pipelines.prepare.sources.piece import UNKNOWN, Piece
from pipelines.prepare.sources.ranges import ARCHIVE_SUFFIXES

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".lst", ".jsonl", ".ndjson")


def pieces(
    source: str | tuple[str, ...],
    others: Counter[str] | None = None,
    rules: Rules = Rules(),  # noqa: B008
    found: Found | None = None,
) -> Iterator[Piece]:
    """All pieces of a source in a fixed order; what else is there is counted, files by suffix.

    Raises:
        UserError: there is nothing at that place, or it is unsure what is for training.
    """
    sources = (source,) if isinstance(source, str) else source
    found = found or Found.empty()
    if others is not None:
        found = found._replace(others=others)
    shown = " ".join(sources)
    lists = [name for name in sources if _is_list(name)]
    if lists:
        if len(sources) > 1:
            raise UserError(f"--source is '{shown}'; a list, '{lists[0]}', must be the only source")
        archives = _archives_in(sources[0])
        if not archives:
            yield from _of_list(sources[0], found)
            return
        sources = archives
    with tempfile.TemporaryFile("w+", prefix="names-") as spool:
        names = Names(spool, found, rules)
        try:
            for named in patterns.expand(sources):
                names.add(named)
        except UserError as error:
            raise UserError(f"in the list '{shown}': {error}" if lists else str(error)) from None
        if not names.any:
            raise UserError(f"--source is '{shown}'; that folder is empty")
        yield from names.placed(shown)


def _is_list(source: str) -> bool:
    name = source.rsplit("/", 1)[-1].lower()
    if not name.endswith((*LIST_SUFFIXES, ".parquet")) or not storage.exists(source):
        return False
    if storage.is_folder(source):
        return False
    return name.endswith(LIST_SUFFIXES) or tables.is_list(source)


def _archives_in(source: str) -> tuple[str, ...]:
    """The archives and Parquet files that a list names; nothing where it names images.

    Raises:
        UserError: it names both.
    """
    if source.lower().endswith(".parquet"):
        return ()
    named: list[str] = []
    folder = source.rpartition("/")[0]
    for row in lists.read_rows(source, "--source"):
        if not row.name.lower().endswith((*ARCHIVE_SUFFIXES, ".parquet")):
            if named:
                raise UserError(
                    f"--source is '{source}'; line {row.line} is '{row.name}': a list names images "
                    "or archives, and not both"
                )
            return ()
        is_place = "://" in row.name or row.name.startswith("/")
        named.append(row.name if is_place else storage.join(folder, row.name))
    return tuple(named)


def _of_list(source: str, found: Found) -> Iterator[Piece]:
    is_table = source.lower().endswith(".parquet")
    rows = (
        tables.read_parquet_list(source)
        if is_table
        else lists.read_rows(source, "--source", found.notes)
    )
    folder = source.rpartition("/")[0]
    below = None
    for row in rows:
        name = row.name
        if row.split == "test":
            found.others["image in the test part"] += 1
            continue
        if below is None and name.startswith("/"):
            # The first slash of Places365's lists is the root of the images.
            inside = storage.join(folder, name.lstrip("/"))
            below = not storage.exists(name) and storage.exists(inside)
        if below:
            name = name.lstrip("/")
        uri = name if "://" in name or name.startswith("/") else storage.join(folder, name)
        yield Piece("file", uri, name, UNKNOWN, row.split, row.label)
