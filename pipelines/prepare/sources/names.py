"""All names of a source on their way through a temporary file, and the pieces that they become."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple

from pipelines import storage
from pipelines.errors import UserError
from pipelines.prepare.sources import patterns, ranges, tables
from pipelines.prepare.sources.label_maps import Suspects
from pipelines.prepare.sources.layout import (
    BESIDE,
    HIVE,
    TREE_FOLDERS,
    Layout,
    Place,
    Rules,
    place,
    quoted,
)
from pipelines.prepare.sources.piece import Piece
from pipelines.prepare.sources.placing import (
    Places,
    class_archives,
    differs,
    is_near,
    join_all,
    printable,
    tree_folder,
)
from pipelines.prepare.sources.ranges import (
    ARCHIVE_SUFFIXES,
    IMAGE_SUFFIXES,
    Range,
    archive_stem,
    is_seen,
    is_whole,
    ranges_of,
)
from pipelines.prepare.sources.splits import named_split
from pipelines.prepare.sources.survey import survey

NO_IMAGES = re.compile(  # names without a suffix that programs and people leave beside images
    r"readme|license|licence|copying|notice|authors|changelog|changes|citation|contributors|"
    r"makefile|dockerfile|manifest|checksums?|(md5|sha1|sha256)sums?|rename\d*|_.*",
    re.IGNORECASE,
)
SMALLEST_ARCHIVE = 20  # bytes: an empty zip has 22, an empty tar packed by gzip 20 and more
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
SHOWN_TABLES = 3


class Found(NamedTuple):
    """What listing learns beside the pieces."""

    others: Counter[str]
    """What is there and not read, by kind."""
    notes: list[str]
    """What a person should be told of splits and classes."""
    folders: Counter[str]
    """Images by folder of the tree, as far as they were seen."""

    tables: list[str]
    """Files beside the images that may hold their classes."""

    @classmethod
    def empty(cls) -> "Found":
        """Nothing yet."""
        return cls(Counter(), [], Counter(), [])


class Names:
    """All names of a source on their way through a temporary file."""

    def __init__(self, spool: IO[str], found: Found, rules: Rules) -> None:
        """Nothing is seen yet."""
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
        self._too_short: list[tuple[str, str, int]] = []
        self._has_files = False
        self._roots: list[str] = []
        self.any = False

    def add(self, named: patterns.Named) -> None:
        """A file, or all files below a folder."""
        if not named.is_folder:
            self._file(named.uri, named.path, storage.size(named.uri), alone=named.is_alone)
            return
        if named.path:
            self._roots.append(printable(named.path))
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
        elif lower.endswith(ARCHIVE_SUFFIXES) and size < SMALLEST_ARCHIVE and not alone:
            self._too_short.append((uri, path, size))
        elif lower.endswith(ARCHIVE_SUFFIXES):
            self._archive(uri, path, size, alone=alone)
        elif suffix == ".parquet":
            self._table(uri, path)
        elif suffix in IMAGE_SUFFIXES or (not suffix and not _is_no_image(path)):
            self._count(printable(path).rpartition("/")[0], 1)
            self._suspects.add(printable(path))
            self._has_files = True
            self._keep("file", uri, path, size)
        else:
            if suffix in TABLE_SUFFIXES and len(self._found.tables) < SHOWN_TABLES:
                self._found.tables.append(printable(path))
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
                f"'{printable(path)}' has images in {quoted(columns)}; those of "
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
            path_in_tree = join_all(folder, member)
            self._count(path_in_tree.rpartition("/")[0], 1)
            self._suspects.add(path_in_tree)
        self._hidden |= {uri} if ranges.hides else set()
        self._archives.append((uri, size, folder))
        for found in ranges.found:
            self._keep("tar", uri, path, folder, found, False)

    def placed(self, shown: str) -> Iterator[Piece]:
        """The pieces, each with its split and class."""
        others, folders = self._found.others, self._found.folders
        for uri, path, size in self._too_short:
            if self._has_files:  # a stray file; among archives alone it is a broken one
                others["archive too short to be one"] += 1
            else:
                self._archive(uri, path, size, alone=False)
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
        held = {folder: images for folder, images in folders.items() if images}
        surveyed = survey(shown, held, self._rules, tuple(self._roots))
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
                yield join_all(folder, member)

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
            where = place(rule, tuple(folders), name)
            if not self._left_out(where, folders, 1):
                yield Piece("file", uri, key, entry[3], where.split, where.class_name)
        elif kind == "parquet":
            _, _, _, held, folder, first, last, rows = entry
            stem = printable(path)[: -len(".parquet")]
            folders = folder.split("/") if folder else []
            where = place(rule, tuple(folders), "")
            if where.left_out == BESIDE:
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
        own = place(rule, folders, "")
        inside = self._inside.get(uri, set())
        if own.left_out == BESIDE and not is_guess and "" not in inside:
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
            splits={p: s for p, s in rule.splits.items() if is_near(p, folder)},
            maps={p: ends for p, ends in rule.maps.items() if is_near(p, folder)},
            neutral=tuple(p for p in rule.neutral if is_near(p, folder)),
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
            join_all(folder, found.folder),
        )
        places = Places(piece)
        is_other = uri in self._hidden or any(differs(piece, places, folder) for folder in inside)
        yield piece._replace(differs=is_other and found.class_name is None)

    def _is_left_out(self, own: Place, path: str, shown: str) -> bool:
        """Whether a whole archive is: one in the test part, told once."""
        if own.left_out == BESIDE:
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
            self._class_folders[folder] = class_archives(self._archive_names[folder])
        return self._class_folders[folder].get(name)


def _is_no_image(path: str) -> bool:
    return NO_IMAGES.fullmatch(PurePosixPath(path).name) is not None
