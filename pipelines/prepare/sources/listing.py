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

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any, Literal, NamedTuple

from pipelines import storage
from pipelines.errors import UserError
from pipelines.prepare.sources import layout, lists, patterns, ranges, tables
from pipelines.prepare.sources.label_maps import Suspects
from pipelines.prepare.sources.layout import FILE, TREE_FOLDERS, Layout, Place, Rules
from pipelines.prepare.sources.ranges import (
    ARCHIVE_SUFFIXES,
    IMAGE_SUFFIXES,
    Range,
    archive_stem,
    is_seen,
    is_whole,
    plain_folder,
    ranges_of,
)
from pipelines.prepare.sources.splits import named_split

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".lst", ".jsonl", ".ndjson")
NO_IMAGES = re.compile(  # names without a suffix that programs and people leave beside images
    r"readme|license|licence|copying|notice|authors|changelog|changes|citation|contributors|"
    r"makefile|dockerfile|manifest|checksums?|(md5|sha1|sha256)sums?|rename\d*|_.*",
    re.IGNORECASE,
)
UNKNOWN = -1  # size of an image that only a list names
NUMBERED = re.compile(r"(?<!^n\d{7})\d$")  # shards; n01440764.tar is a class
HIVE = re.compile(r"(label|labels|class|target|category|species)=(.+)", re.IGNORECASE)


class Piece(NamedTuple):
    """A part of a source that one task reads. There are millions: a tuple is quick to store."""

    kind: Literal["file", "tar", "parquet"]
    uri: str
    key: str
    """Of a file: its key. Else what stands before the keys of its images."""
    bytes: int
    split: str | None = None
    """`train` or `val` where the source says so."""
    class_name: str | None = None
    begin: int = 0
    """First byte of a tar's range, or of a zip's directory; first row group."""
    end: int = 0
    """Last row group + 1; end of a zip's part of the directory; see `ranges.Range`."""
    layout: list[Any] | None = None
    """Of an archive: the `Layout` of what is in it; see `place_in`."""
    folder: str = ""
    """Of an archive: the folder of the tree that its root is."""
    differs: bool = False
    """Whether the layout places a member elsewhere than its innermost folder says, which was the
    whole rule once: then it is a part of the identity of the piece."""


class Found(NamedTuple):
    """What listing learns beside the pieces."""

    others: Counter[str]
    """What is there and not read, by kind."""
    notes: list[str]
    """What a person should be told of splits and classes."""
    folders: Counter[str]
    """Images by folder of the tree, as far as they were seen."""

    @classmethod
    def empty(cls) -> "Found":
        """Nothing yet."""
        return cls(Counter(), [], Counter())


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
        names = _Names(spool, found, rules)
        for named in patterns.expand(sources):
            names.add(named)
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


class _Names:
    """All names of a source on their way through a temporary file."""

    def __init__(self, spool: IO[str], found: Found, rules: Rules) -> None:
        self._spool, self._found, self._rules = spool, found, rules
        self._suspects = Suspects()
        self._inside: dict[str, set[str]] = {}
        self._archive_names: dict[str, list[str]] = {}
        self._class_folders: dict[str, dict[str, str]] = {}
        self._left_archives: set[str] = set()
        self._hidden: set[str] = set()
        self._archives: list[tuple[str, int, str]] = []
        self._told_columns = False
        self._tables_without_images: Counter[str] = Counter()
        self._single: str | None = None
        self.any = False

    def add(self, named: patterns.Named) -> None:
        """A file, or all files below a folder."""
        if not named.is_folder:
            self._file(named.uri, named.path, storage.size(named.uri), alone=named.is_alone)
            return
        for below, size in storage.walk(named.uri):
            path = f"{named.path}/{below}" if named.path else below
            self._file(storage.join(named.uri, below), path, size, alone=False)

    def _file(self, uri: str, path: str, size: int, *, alone: bool) -> None:
        self.any = True
        lower = path.lower()
        suffix = PurePosixPath(lower).suffix
        if not is_seen(path):
            if suffix in IMAGE_SUFFIXES:
                self._found.others["image with a hidden name"] += 1
        elif lower.endswith(ARCHIVE_SUFFIXES):
            self._archive(uri, path, size, alone=alone)
        elif suffix == ".parquet":
            self._table(uri, path)
        elif suffix in IMAGE_SUFFIXES or (not suffix and not _is_no_image(path)):
            self._count(printable(path).rpartition("/")[0], 1)
            self._suspects.add(printable(path))
            self._keep("file", uri, path, size)
        else:
            self._found.others[suffix or "file like README or LICENSE"] += 1

    def _count(self, folder: str, images: int) -> None:
        folders = self._found.folders
        if folder not in folders and len(folders) > TREE_FOLDERS:
            folder = "/".join(folder.split("/")[:3])
        folders[folder] += images

    def _keep(self, *entry: Any) -> None:
        self._spool.write(json.dumps(entry) + "\n")

    def _table(self, uri: str, path: str) -> None:
        if not tables.has_images(uri):
            self._tables_without_images[uri] += 1
            return
        columns = tables.columns_of_images(uri)
        if len(columns) > 1 and not self._told_columns:
            self._told_columns = True
            self._found.notes.append(
                f"'{printable(path)}' has images in {layout.quoted(columns)}; those of "
                f"'{columns[0]}' are read. Name another one 'image' to have it read"
            )
        folder = tree_folder(path, self._rules, is_table=True)
        for first, last, held, rows in tables.row_group_runs(uri, ranges.RANGE_BYTES):
            self._count(folder, rows)
            self._keep("parquet", uri, path, held, folder, first, last, rows)

    def _archive(self, uri: str, path: str, size: int, *, alone: bool) -> None:
        stem = "" if alone else f"{archive_stem(printable(path))}/"
        folder = "" if alone else tree_folder(path, self._rules)
        self._single = path if alone else None
        uri_folder, _, name = uri.rpartition("/")
        self._archive_names.setdefault(uri_folder, []).append(name)
        if is_whole(uri, path, size):
            self._count(folder, 1)
            self._keep("tar", uri, path, folder, Range(stem, 0, size), True)
            return
        ranges = ranges_of(uri, size, stem)
        inside = self._inside.setdefault(uri, set())
        for member in ranges.members():
            inside.add(member.rpartition("/")[0])
            path_in_tree = _join(folder, member)
            self._count(path_in_tree.rpartition("/")[0], 1)
            self._suspects.add(path_in_tree)
        self._hidden |= {uri} if ranges.hides else set()
        self._archives.append((uri, size, folder))
        for found in ranges.found:
            self._keep("tar", uri, path, folder, found, False)

    def placed(self, shown: str) -> Iterator[Piece]:
        """The pieces, each with its split and class."""
        others, folders = self._found.others, self._found.folders
        if self._tables_without_images:
            uri, *_ = self._tables_without_images
            if not folders:
                tables.refuse_without_images(uri)
            others[".parquet without a column of images"] += len(self._tables_without_images)
        maps = self._suspects.convicted(self._paths()) if self._suspects.images else {}
        if self._rules.train:
            maps = {}
        for folder, ends in maps.items():
            for end in ends:
                self._acquit(folder, end)
        surveyed = layout.survey(shown, {f: n for f, n in folders.items() if n}, self._rules)
        self._found.notes.extend(surveyed.notes)
        rule = surveyed.layout._replace(maps=maps)
        self._spool.seek(0)
        for line in self._spool:
            yield from self._piece(rule, json.loads(line), shown)

    def _paths(self) -> Iterator[str]:
        self._spool.seek(0)
        for line in self._spool:
            entry = json.loads(line)
            if entry[0] == "file":
                yield printable(entry[2])
        for uri, size, folder in self._archives:
            for member in ranges_of(uri, size, "").members():
                yield _join(folder, member)

    def _acquit(self, folder: str, end: str) -> None:
        """Take label maps out of the tree, so that their folder is no class."""
        counts = self._found.folders
        if end:
            counts[folder] -= self._suspects.images[folder, end]
            return
        for path in [p for p in counts if p == folder or p.startswith(f"{folder}/")]:
            counts[path] = 0

    def _piece(self, rule: Layout, entry: list[Any], shown: str) -> Iterator[Piece]:
        kind, uri, path = entry[:3]
        if kind == "file":
            key = printable(path)
            *folders, name = key.split("/")
            where = layout.place(rule, tuple(folders), name)
            if not self._left_out(where, folders, 1):
                yield Piece("file", uri, key, entry[3], where.split, where.class_name)
        elif kind == "parquet":
            _, _, _, held, folder, first, last, rows = entry
            stem = printable(path)[: -len(".parquet")]
            folders = folder.split("/") if folder else []
            where = layout.place(rule, tuple(folders), "")
            if where.left_out == layout.BESIDE:
                self._is_left_out(where, path, shown)
            class_name = next((m[2] for part in folders if (m := HIVE.fullmatch(part))), None)
            if not self._left_out(where, folders, rows):
                yield Piece("parquet", uri, f"{stem}/", held, where.split, class_name, first, last)
        else:
            yield from self._tar_piece(rule, entry, shown)

    def _left_out(self, where: Place, folders: list[str], images: int) -> bool:
        if where.left_out is None:
            return False
        self._found.others[f"image {where.left_out}"] += images
        return True

    def _tar_piece(self, rule: Layout, entry: list[Any], shown: str) -> Iterator[Piece]:
        _, uri, path, folder, found, is_guess = entry
        found = Range(*found)
        folders = tuple(folder.split("/")) if folder else ()
        own = layout.place(rule, folders, "")
        inside = self._inside.get(uri, set())
        if own.left_out == layout.BESIDE and not is_guess and "" not in inside:
            own = Place(None, None)  # its folders say more than its own place
        if self._single != path and self._is_left_out(own, path, shown):
            return
        stem = archive_stem(PurePosixPath(path).name)
        named = named_split(stem) if self._single == path else None
        if (
            named
            and named.split == "test"
            and not (named.others or rule.splits or rule.rules.train)
        ):
            raise UserError(
                f"--source is '{shown}'; its name says that it is a test part, which is never "
                "trained on. To use it all the same, give --train '**'"
            )
        here = rule._replace(
            splits={p: s for p, s in rule.splits.items() if _is_near(p, folder)},
            maps={p: ends for p, ends in rule.maps.items() if _is_near(p, folder)},
            neutral=tuple(p for p in rule.neutral if _is_near(p, folder)),
            fallback=named.split if named and named.split != "test" else None,
            fallback_class=self._archive_class(uri, path),
            guessed=is_guess or found.class_name is not None,
        )
        piece = Piece(
            "tar",
            uri,
            found.key,
            found.bytes,
            own.split or here.fallback,
            found.class_name,
            found.begin,
            found.end,
            list(here),
            _join(folder, found.folder),
        )
        differs = uri in self._hidden or any(_differs(piece, member) for member in inside)
        yield piece._replace(differs=differs and found.class_name is None)

    def _is_left_out(self, own: Place, path: str, shown: str) -> bool:
        """Whether a whole archive is: one in the test part, told once."""
        if own.left_out == layout.BESIDE:
            raise UserError(
                f"--source is '{shown}'; '{printable(path)}' lies beside files or folders that are "
                "named for splits, and its own name speaks of none. Say what is what with --train "
                "and --val: paths or globs below the source"
            )
        if own.split != "test":
            return False
        if path not in self._left_archives:
            self._left_archives.add(path)
            self._found.others[f"archive {own.left_out}"] += 1
        return True

    def _archive_class(self, uri: str, path: str) -> str | None:
        """The class that an archive is, where each of several beside it is one."""
        if self._single == path or self._rules.class_from is not None:
            return None
        folder, _, name = uri.rpartition("/")
        if folder not in self._class_folders:
            self._class_folders[folder] = _class_archives(self._archive_names[folder])
        return self._class_folders[folder].get(name)


def _class_archives(names: list[str]) -> dict[str, str]:
    """Name -> class of the archives of a folder, where it holds one per class."""
    stems = [archive_stem(name) for name in names]
    if len(stems) < 2 or any(named_split(stem) or NUMBERED.search(stem) for stem in stems):
        return {}
    return dict(zip(names, map(printable, stems), strict=True))


def _is_near(path: str, folder: str) -> bool:
    """Whether a folder of the tree is one above or below another."""
    return not folder or path == folder or path.startswith(f"{folder}/") or folder.startswith(path)


def _differs(piece: Piece, member: str) -> bool:
    """Whether the layout places a folder of an archive elsewhere than the first rule did."""
    earlier = {
        "train": "train",
        "training": "train",
        **dict.fromkeys(("val", "valid", "validation"), "val"),
    }
    folders = [part for part in member.split("/") if part]
    split = next((earlier[part] for part in folders if part in earlier), None) or piece.split
    own = folders[-1] if folders and folders[-1] not in earlier else None
    where = place_in(piece, f"{member}/x.jpg" if member else "x.jpg")
    return where != Place(split, piece.class_name or own)  # type: ignore[arg-type]


def is_guess(piece: Piece) -> bool:
    """Whether names alone place the members of an archive, before the whole is known."""
    if piece.kind != "tar" or piece.class_name is not None or piece.layout is None:
        return False
    rule = Layout(*piece.layout)
    return rule.guessed and not any(Rules(*rule.rules)[:2])


def place_in(piece: Piece, member: str) -> Place:
    """Split and class that the place of a member of an archive speaks of."""
    rule = Layout(*piece.layout) if piece.layout else Layout(guessed=True)
    rule = rule._replace(rules=Rules(*rule.rules))
    folders = tuple(part for part in folder_in(piece, member).split("/") if part)
    name = member.rpartition("/")[2]
    where = layout.place(rule, folders, name)
    split = where.split or piece.split
    return where._replace(split=split, class_name=piece.class_name or where.class_name)  # type: ignore[arg-type]


def folder_in(piece: Piece, member: str) -> str:
    """The folder of the tree in which a member of an archive lies."""
    return _join(piece.folder, plain_folder(member))


def tree_folder(path: str, rules: Rules, *, is_table: bool = False) -> str:
    """The folder of the tree that the root of an archive or of a Parquet file is."""
    folder, _, name = printable(path).rpartition("/")
    stem = name[: -len(".parquet")] if is_table else archive_stem(name)
    if rules.train or rules.val:
        return _join(folder, name + FILE)
    return _join(folder, stem + FILE) if named_split(stem) else folder


def _join(folder: str, name: str) -> str:
    return "/".join(part for part in (folder, name) if part)


def _is_no_image(path: str) -> bool:
    return NO_IMAGES.fullmatch(PurePosixPath(path).name) is not None


def printable(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 are written as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
