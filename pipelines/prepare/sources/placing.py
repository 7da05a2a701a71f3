"""Where archives and what is in them belong in the tree of a source (see `layout`)."""

import os
import re

from pipelines.prepare.sources.layout import FILE, Layout, Place, Rules, join, place
from pipelines.prepare.sources.piece import Piece
from pipelines.prepare.sources.ranges import archive_stem, plain_folder
from pipelines.prepare.sources.splits import named_split

NUMBERED = re.compile(r"(?<!^n\d{7})\d$")  # shards; n01440764.tar is a class
KNOWN_FOLDERS = 10_000  # of one piece, in memory


def class_archives(names: list[str]) -> dict[str, str]:
    """Name -> class of the archives of a folder, where it holds one per class."""
    stems = [archive_stem(name) for name in names]
    if len(stems) < 2 or any(named_split(stem) or NUMBERED.search(stem) for stem in stems):
        return {}
    return dict(zip(names, map(printable, stems), strict=True))


def is_near(path: str, folder: str) -> bool:
    """Whether a folder of the tree is one above or below another."""
    return not folder or path == folder or path.startswith(f"{folder}/") or folder.startswith(path)


def differs(piece: Piece, places: "Places", member: str) -> bool:
    """Whether the layout places a folder of an archive elsewhere than the first rule did."""
    earlier = {
        "train": "train",
        "training": "train",
        **dict.fromkeys(("val", "valid", "validation"), "val"),
    }
    folders = [part for part in member.split("/") if part]
    split = next((earlier[part] for part in folders if part in earlier), None) or piece.split
    own = folders[-1] if folders and folders[-1] not in earlier else None
    where = places.of(f"{member}/x.jpg" if member else "x.jpg")
    return where != Place(split, piece.class_name or own)  # type: ignore[arg-type]


def is_guess(piece: Piece) -> bool:
    """Whether names alone place the members of an archive, before the whole is known."""
    if piece.kind != "tar" or piece.class_name is not None or piece.layout is None:
        return False
    rule = Layout(*piece.layout)
    return rule.guessed and not any(Rules(*rule.rules)[:2])


class Places:
    """Where the members of a piece of an archive belong; a folder is looked at once."""

    def __init__(self, piece: Piece) -> None:
        """Take the layout out of the piece."""
        rule = Layout(*piece.layout) if piece.layout else Layout(guessed=True)
        self._rule = rule._replace(rules=Rules(*rule.rules))
        self._piece = piece
        self.is_guess = is_guess(piece)
        rules = self._rule.rules
        self._by_name = bool(self._rule.maps or rules.train or rules.val) or (
            rules.class_from == "name"
        )
        self._known: dict[str, Place] = {}

    def of(self, member: str) -> Place:
        """Split and class that the place of a member speaks of."""
        folder, _, name = member.rpartition("/")
        if self._by_name:
            return self._find(folder, name)
        found = self._known.get(folder)
        if found is None:
            if len(self._known) == KNOWN_FOLDERS:
                self._known.clear()
            found = self._known[folder] = self._find(folder, name)
        return found

    def _find(self, folder: str, name: str) -> Place:
        path = folder_in(self._piece, f"{folder}/{name}")
        where = place(self._rule, tuple(part for part in path.split("/") if part), name)
        return where._replace(
            split=where.split or self._piece.split,  # type: ignore[arg-type]
            class_name=self._piece.class_name or where.class_name,
        )


def folder_in(piece: Piece, member: str) -> str:
    """The folder of the tree in which a member of an archive lies."""
    return join_all(piece.folder, plain_folder(member))


def tree_folder(path: str, rules: Rules, *, is_table: bool = False) -> str:
    """The folder of the tree that the root of an archive or of a Parquet file is."""
    folder, _, name = printable(path).rpartition("/")
    stem = name[: -len(".parquet")] if is_table else archive_stem(name)
    if rules.train or rules.val:
        return join_all(folder, name + FILE)
    return join_all(folder, stem + FILE) if named_split(stem) else folder


def join_all(folder: str, name: str) -> str:
    """A path of two parts that may be empty."""
    return join(folder, name) if folder and name else folder or name


def printable(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 are written as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
