"""Where the images of a source lie, and what follows for their splits and classes: the one rule.

The rule sees a source as a tree of folders with numbers of images, whatever holds the folders: a
disk, a bucket, an archive. An archive or a Parquet file stands in the tree as a folder of its own
where its name speaks of a split (`train-000.tar`) or is a class (`n01440764.tar` beside others).

Which folders are splits and classes follows from the whole tree: see `survey`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from pipelines.prepare.sources.globs import matched
from pipelines.prepare.sources.splits import Split, named_split

ClassFrom = Literal["parent", "first", "name", "none"]
NEUTRAL = frozenset("images image imgs img jpegimages jpeg jpegs jpg png photos data".split())
FILE = ":"  # ends the name of an archive or a Parquet file that stands in the tree as a folder
HIVE = re.compile(r"(label|labels|class|target|category|species)=(.+)", re.IGNORECASE)
SHOWN = 3  # names of folders in a message
BESIDE = "beside the splits"
TREE_FOLDERS = 200_000  # in memory; deeper ones count for the folder above when there are more


class Rules(NamedTuple):
    """What a person has said of the splits and classes of a source."""

    train: tuple[str, ...] = ()
    """Paths or globs of what is for training, below the source."""
    val: tuple[str, ...] = ()
    class_from: ClassFrom | None = None


class Place(NamedTuple):
    """What the place of an image says of it."""

    split: Split | None
    class_name: str | None
    left_out: str | None = None
    """Why it is not read."""


class Layout(NamedTuple):
    """The rule, applied to one source: what each folder is. It travels as JSON."""

    splits: dict[str, Split] = {}  # noqa: RUF012
    """Folders that are splits."""
    base: str = ""
    """The folder that holds everything: classes lie in it."""
    neutral: tuple[str, ...] = ()
    """Folders below a split or the base that are no class."""
    class_above: bool = False
    """Whether the folder above a split is the class."""
    outside: bool = False
    """Whether images outside of all splits are left out."""
    maps: dict[str, list[str]] = {}  # noqa: RUF012
    """Folder -> ends of stems in it that mark label maps; "" is all that is in it."""
    fallback: Split | None = None
    """Of an archive: the split that its name speaks of, where its folders speak of none."""
    fallback_class: str | None = None
    rules: Rules = Rules()
    guessed: bool = False
    """Whether folders are met that were not known: names alone decide, and are held against the
    whole afterwards."""


def place(layout: Layout, folders: tuple[str, ...], name: str) -> Place:
    """Split and class of an image by its folders below the source and its file name."""
    rules = layout.rules
    asked = None
    if rules.train or rules.val:
        split, begin, left_out = asked = _asked(rules, layout, folders, name)
    else:
        split, begin, left_out = _found(layout, folders)
    if left_out or split == "test":
        root = "/".join(folder.rstrip(FILE) for folder in folders[:begin])
        return Place(split, None, left_out or f"in the test part '{root}'")
    if layout.maps and not asked and _is_map(layout.maps, folders, name):
        return Place(split, None, f"left out as a label map, in '{'/'.join(folders) or '.'}'")
    class_name = _class_of(layout, folders, name, split, begin)
    if class_name is None and rules.class_from is None:
        class_name = layout.fallback_class
    return Place(split or layout.fallback, class_name)


def _is_map(maps: Mapping[str, list[str]], folders: tuple[str, ...], name: str) -> bool:
    stem = name.rpartition(".")[0]
    path = ""
    for folder in ("", *folders):
        path = join(path, folder) if folder else path
        if "" in maps.get(path, ()):
            return True
    return any(stem.endswith(end) for end in maps.get(path, ()))


def _found(layout: Layout, folders: tuple[str, ...]) -> tuple[Split | None, int, str | None]:
    """Split, depth at which its folders begin, and why it is left out."""
    path = ""
    for depth, folder in enumerate(folders, 1):
        path = f"{path}/{folder}" if path else folder
        if path in layout.splits:
            return layout.splits[path], depth, None
        if layout.guessed and (named := named_split(folder)) and not named.others:
            return named.split, depth, None
    base = layout.base.count("/") + 1 if layout.base else 0
    return None, base, BESIDE if layout.outside else None


def _asked(
    rules: Rules, layout: Layout, folders: tuple[str, ...], name: str
) -> tuple[Split | None, int, str | None]:
    path = "/".join(folder.rstrip(FILE) for folder in (*folders, name) if folder)
    asked: dict[Split, tuple[str, ...]] = {"val": rules.val, "train": rules.train}
    for wanted, patterns in asked.items():
        for pattern in patterns:
            if (depth := matched(pattern, path)) is not None:
                return wanted, depth, None
    if rules.train:
        return None, 0, "matched by neither --train nor --val"
    split, begin, _ = _found(layout, folders)
    return ("test" if split == "test" else "train"), begin, None


def _class_of(
    layout: Layout, folders: tuple[str, ...], name: str, split: Split | None, begin: int
) -> str | None:
    wanted = layout.rules.class_from
    below = [folder for folder in folders[begin:] if not folder.endswith(FILE)]
    if wanted == "none":
        return None
    hive = next((found[2] for folder in below if (found := HIVE.fullmatch(folder))), None)
    if hive is not None and wanted != "name":
        return hive
    if wanted == "name":
        return class_in_name(name)
    if wanted == "parent":
        return below[-1] if below else None
    if layout.guessed and wanted is None:
        below = [folder for folder in below if not is_empty_word(folder)]
        below = below if split else below[-1:]
    if wanted is None and "/".join(folders[: begin + 1]) in layout.neutral:
        return None
    if below:
        return below[0]
    return folders[begin - 2] if layout.class_above and split and begin > 1 else None


def class_in_name(name: str) -> str | None:
    """The class that a file name begins with: `n01440764_36.JPEG`, `cat.12.jpg`, `beagle-2.png`."""
    found = re.match(r"(.*[^\W\d_].*?)[ ._-]+\d[\w ()-]*(\.\w+)?$", name)
    return found[1] if found else None


def is_empty_word(name: str, path: str = "") -> bool:
    """Whether a folder's name says what it holds, or that of the folder `path` that it lies in."""
    named = named_split(name)
    is_split = named is not None and not named.others and not name.endswith(FILE)
    return name.lower() in NEUTRAL or is_split or name == path.rpartition("/")[2]


def join(path: str, name: str) -> str:
    """A path and a name in it; the source itself is an empty path."""
    return f"{path}/{name}" if path else name


def quoted(names: Iterable[str]) -> str:
    """The first few names of many."""
    known = sorted({name.rstrip(FILE) for name in names})
    rest = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(f"'{name}'" for name in known[:SHOWN]) + rest
