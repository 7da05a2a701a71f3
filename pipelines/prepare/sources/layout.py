"""Where the images of a source lie, and what follows for their splits and classes: the one rule.

The rule sees a source as a tree of folders with numbers of images, whatever holds the folders: a
disk, a bucket, an archive. An archive or a Parquet file stands in the tree as a folder of its own
where its name speaks of a split (`train-000.tar`) or is a class (`n01440764.tar` beside others).

Splits. From the top, the first level whose folders are named for splits (`splits.named_split`)
holds the splits of what is below. A test part is left out. Where folders of one level are named
for splits and others are not, or images lie outside of all splits while there is a part for
validation or test, the rule refuses: --train and --val say it then.

Classes. The first folder below the split, else below the folder that holds everything. A folder
such as `images` that alone holds the images of its split is no class. In `cat/train/1.jpg`, where
the split lies below several folders, the folder above it is the class.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pipelines.errors import UserError
from pipelines.prepare.sources.splits import Split, named_split

ClassFrom = Literal["parent", "first", "name", "none"]
NEUTRAL = frozenset("images image imgs img jpegimages jpeg jpegs jpg png photos data".split())
FILE = ":"  # ends the name of an archive or a Parquet file that stands in the tree as a folder
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
        path = _join(path, folder) if folder else path
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


def matched(pattern: str, path: str) -> int | None:
    """How many folders of `path` a pattern names; None where it does not match.

    A pattern is a path below the source, or a glob: `*` stays within a name, `**` does not. What
    matches a folder matches all that is in it. One that names a single image names no folder, so
    that `--val 'cat/1.jpg'` leaves it in its class.
    """
    parts = pattern.strip("/").removeprefix("./").split("/")
    pattern = "/".join(parts)
    found = re.match(rf"(?:{glob_regex(pattern)})(?:/|$)", path)
    if not found:
        return None
    if "**" not in pattern and re.fullmatch(glob_regex(pattern), path):  # it names the file
        parts = parts[:-1] if re.search(r"[*?\[]", pattern) else []
    while parts and not parts[-1].strip("*"):
        parts.pop()
    depth = next((at for at, part in enumerate(parts) if "**" in part), len(parts))
    return min(depth, path.count("/"))


def glob_regex(pattern: str) -> str:
    """A glob as a regular expression: `*` stays within a name, `**` does not."""
    return "".join(
        {"**": ".*", "**/": "(?:.*/)?"}.get(part)
        or fnmatch.translate(part)[4:-3].replace(".*", "[^/]*")
        for part in re.split(r"(\*\*/?)", pattern)
    )


def _class_of(
    layout: Layout, folders: tuple[str, ...], name: str, split: Split | None, begin: int
) -> str | None:
    wanted = layout.rules.class_from
    below = [folder for folder in folders[begin:] if not folder.endswith(FILE)]
    if wanted == "none":
        return None
    if wanted == "name":
        return class_in_name(name)
    if wanted == "parent":
        return below[-1] if below else None
    if layout.guessed and wanted is None:
        below = [folder for folder in below if not _is_empty_word(folder)]
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


@dataclass
class _Node:
    """A folder of the tree."""

    images: int = 0
    total: int = 0
    children: "dict[str, _Node]" = field(default_factory=dict)


class Survey(NamedTuple):
    """A layout, and what a person should be told of it."""

    layout: Layout
    notes: tuple[str, ...] = ()


def survey(source: str, folders: Mapping[str, int], rules: Rules = Rules()) -> Survey:  # noqa: B008
    """The layout of a tree.

    Args:
        source: as the user wrote it, for messages.
        folders: images directly in each folder, by its path below the source ("" is the source).
        rules: what was asked for.

    Raises:
        UserError: the rule is unsure.
    """
    root = _tree(folders)
    if rules.train:
        return Survey(Layout(rules=rules))
    splits: dict[str, Split] = {}
    doubts: list[tuple[list[str], list[str]]] = []
    _find_splits(root, "", root.total, splits, doubts)
    if rules.val:
        return Survey(Layout(splits=splits, rules=rules))
    if doubts:
        _refuse(source, *doubts[0])
    decided = set(splits.values()) - {"train"}
    if decided:
        stray = [path for path in _outside(root, "", splits) if path not in _above(splits)]
        if stray:
            _refuse(source, list(splits), stray)
    if splits and set(splits.values()) == {"test"}:
        raise UserError(
            f"--source is '{source}'; all its images lie in a test part, {quoted(splits)}, which "
            "is never trained on. To use them all the same, give --train "
            f"'{next(iter(splits))}'"
        )
    base = _base(root)
    if rules.class_from is None:
        splits = {_base_of_split(root, path, splits): split for path, split in splits.items()}
    layout = Layout(
        splits=splits,
        base=base,
        neutral=tuple(_neutral(root, splits, base)),
        class_above=_is_class_above(root, splits),
        outside=bool(decided),
        rules=rules,
    )
    return Survey(layout, tuple(_notes(root, layout)))


def _tree(folders: Mapping[str, int]) -> _Node:
    root = _Node()
    for path, images in folders.items():
        node = root
        node.total += images
        for name in path.split("/") if path else ():
            node = node.children.setdefault(name, _Node())
            node.total += images
        node.images += images
    return root


def _find_splits(
    node: _Node,
    path: str,
    whole: int,
    splits: dict[str, Split],
    doubts: list[tuple[list[str], list[str]]],
) -> None:
    """The splits below a folder, and where folders beside them are none.

    Args:
        node: the folder.
        path: of it.
        whole: images of the source.
        splits: what is found.
        doubts: splits and the folders beside them.
    """
    named = {name: found for name in node.children if (found := named_split(name))}
    chosen = {
        name: found.split
        for name, found in named.items()
        if not found.others
        or name.endswith(FILE)
        or any(o.others == found.others and o.split != found.split for o in named.values())
    }
    is_all = len(node.children) == 1 and not node.images and node.total == whole
    if not chosen and is_all:
        chosen = {name: found.split for name, found in named.items()}
    others = [name for name in node.children if name not in chosen]
    flat_train = set(chosen.values()) == {"train"} and not any(
        node.children[name].children for name in chosen
    )
    if chosen and others and (set(chosen.values()) != {"train"} or flat_train):
        doubts.append(([_join(path, name) for name in chosen], [_join(path, n) for n in others]))
    splits.update({_join(path, name): split for name, split in chosen.items()})
    for name in others:
        _find_splits(node.children[name], _join(path, name), whole, splits, doubts)


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _outside(node: _Node, path: str, splits: Mapping[str, Split]) -> Iterator[str]:
    """Folders with images that are in no split."""
    if path in splits:
        return
    if node.images:
        yield path
    for name, child in node.children.items():
        yield from _outside(child, _join(path, name), splits)


def _above(splits: Iterable[str]) -> set[str]:
    """The folders above splits; images that lie in them are covers and samples."""
    found = {""}
    for path in splits:
        parts = path.split("/")
        found |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
    return found


def _refuse(source: str, splits: list[str], others: list[str]) -> None:
    raise UserError(
        f"--source is '{source}'; beside {quoted(splits)}, named for splits, there are folders "
        f"with images that belong to no split, such as {quoted(others)}. Say what is what with "
        f"--train and --val, such as --train '{splits[0]}' (all else is left out), or --train '**' "
        "where the names are classes and no splits"
    )


def quoted(names: Iterable[str]) -> str:
    """The first few names of many."""
    known = sorted({name.rstrip(FILE) for name in names})
    rest = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(f"'{name}'" for name in known[:SHOWN]) + rest


def _base(root: _Node) -> str:
    """The deepest folder that holds everything and has folders itself."""
    node, path = root, ""
    while not node.images and len(node.children) == 1:
        ((name, child),) = node.children.items()
        if not child.children:
            break
        node, path = child, _join(path, name)
    return path


def _base_of_split(root: _Node, path: str, splits: Iterable[str]) -> str:
    """Where the classes of a split lie: `train/images`, `seg_train/seg_train`, `train/mnist`."""
    roots = [_node_at(root, each) for each in splits]
    node = _node_at(root, path)
    while not node.images and len(node.children) == 1:
        ((name, child),) = node.children.items()
        shared = len(roots) > 1 and all(list(each.children) == [name] for each in roots)
        if not child.children or not (shared or _is_empty_word(name, path)):
            break
        node, path, roots = child, _join(path, name), []
    return path


def _is_empty_word(name: str, path: str = "") -> bool:
    """Whether a folder's name says what it holds, or that of the folder `path` that it lies in."""
    named = named_split(name)
    is_split = named is not None and not named.others and not name.endswith(FILE)
    return name.lower() in NEUTRAL or is_split or name == path.rpartition("/")[2]


def _node_at(root: _Node, path: str) -> _Node:
    for name in path.split("/") if path else ():
        root = root.children[name]
    return root


def _neutral(root: _Node, splits: Mapping[str, Split], base: str) -> Iterator[str]:
    """Folders such as `images` that hold all images of their split, directly."""
    for path in splits or [base]:
        node = _node_at(root, path)
        for name, child in node.children.items():
            alone = child.total == node.total and not child.children
            if alone and (_is_empty_word(name, path) if splits else name.lower() in NEUTRAL):
                yield _join(path, name)


def _is_class_above(root: _Node, splits: Mapping[str, Split]) -> bool:
    parents = {path.rpartition("/")[0] for path in splits}
    if not splits or any(_node_at(root, path).children for path in splits):
        return False
    return len(parents) > 1 or _node_at(root, min(parents)).total < root.total


def _notes(root: _Node, layout: Layout) -> Iterator[str]:
    """What is not plain: deeper folders, images without a split."""
    if layout.rules.class_from is None:
        deep = [
            name
            for path in layout.splits or [layout.base]
            if layout.splits.get(path) != "test"
            for name, child in _node_at(root, path).children.items()
            if len(child.children) > 1 or (child.images and child.children)
        ]
        if deep:
            yield (
                f"a class is the first folder, as {quoted(set(deep))}; folders in it are not told "
                "apart (--class-from parent takes the folder right above each image)"
            )
    if layout.splits and not layout.outside:
        outside = Counter(path or "." for path in _outside(root, "", layout.splits))
        if outside:
            yield (
                f"{quoted(outside)} lies in no split beside {quoted(layout.splits)}; images for "
                "validation are drawn from all"
            )
