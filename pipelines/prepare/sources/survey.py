"""The layout that follows from the tree of a source: which folders are splits, which are classes.

Splits. From the top, the first level whose folders are named for splits (`splits.named_split`)
holds the splits of what is below. A test part is left out. Where folders of one level are named
for splits and others are not, or images lie outside of all splits while there is a part for
validation or test, the rule refuses: --train and --val say it then.

Classes. The first folder below the split, else below the folder that holds everything. A folder
such as `images` that alone holds the images of its split is no class. In `cat/train/1.jpg`, where
the split lies below several folders, the folder above it is the class.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pipelines.errors import UserError
from pipelines.prepare.sources.layout import (
    FILE,
    NEUTRAL,
    Layout,
    Rules,
    is_empty_word,
    join,
    quoted,
)
from pipelines.prepare.sources.splits import Split, named_split


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


def survey(
    source: str,
    folders: Mapping[str, int],
    rules: Rules = Rules(),  # noqa: B008
    roots: tuple[str, ...] = (),
) -> Survey:
    """The layout of a tree.

    Args:
        source: as the user wrote it, for messages.
        folders: images directly in each folder, by its path below the source ("" is the source).
        rules: what was asked for.
        roots: folders of the tree that are one of several sources each. Where they hold folders
            and no images, those are the classes; of `--source cats dogs` the sources are.

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
    tops = _tops(root, roots) if not splits else ()
    if tops:
        base = tops[0]
    if rules.class_from is None:
        splits = {_base_of_split(root, path, splits): split for path, split in splits.items()}
    layout = Layout(
        splits=splits,
        base=base,
        neutral=tuple(_neutral(root, splits, tops or (base,))),
        class_above=_is_class_above(root, splits),
        outside=bool(decided),
        rules=rules,
    )
    return Survey(layout, tuple(_notes(root, layout, tops or (base,))))


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
        doubts.append(([join(path, name) for name in chosen], [join(path, n) for n in others]))
    splits.update({join(path, name): split for name, split in chosen.items()})
    for name in others:
        _find_splits(node.children[name], join(path, name), whole, splits, doubts)


def _outside(node: _Node, path: str, splits: Mapping[str, Split]) -> Iterator[str]:
    """Folders with images that are in no split."""
    if path in splits:
        return
    if node.images:
        yield path
    for name, child in node.children.items():
        yield from _outside(child, join(path, name), splits)


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


def _base(root: _Node) -> str:
    """The deepest folder that holds everything and has folders itself."""
    node, path = root, ""
    while not node.images and len(node.children) == 1:
        ((name, child),) = node.children.items()
        if not child.children:
            break
        node, path = child, join(path, name)
    return path


def _base_of_split(root: _Node, path: str, splits: Iterable[str]) -> str:
    """Where the classes of a split lie: `train/images`, `seg_train/seg_train`, `train/mnist`."""
    roots = [_node_at(root, each) for each in splits]
    node = _node_at(root, path)
    while not node.images and len(node.children) == 1:
        ((name, child),) = node.children.items()
        shared = len(roots) > 1 and all(list(each.children) == [name] for each in roots)
        if not child.children or not (shared or is_empty_word(name, path)):
            break
        node, path, roots = child, join(path, name), []
    return path


def _node_at(root: _Node, path: str) -> _Node:
    for name in path.split("/") if path else ():
        root = root.children.get(name, _Node())
    return root


def _tops(root: _Node, roots: tuple[str, ...]) -> tuple[str, ...]:
    """The sources in which classes lie, where each of several holds them; else nothing."""
    held = tuple(path for path in roots if _node_at(root, path).total)
    nodes = [_node_at(root, path) for path in held]
    depths = {path.count("/") for path in held}
    is_each = all(node.children and not node.images for node in nodes)
    return held if len(held) > 1 and len(depths) == 1 and is_each else ()


def _neutral(root: _Node, splits: Mapping[str, Split], tops: tuple[str, ...]) -> Iterator[str]:
    """Folders such as `images` that hold all images of their split, directly."""
    for path in splits or tops:
        node = _node_at(root, path)
        for name, child in node.children.items():
            alone = child.total == node.total and not child.children
            if alone and (is_empty_word(name, path) if splits else name.lower() in NEUTRAL):
                yield join(path, name)


def _is_class_above(root: _Node, splits: Mapping[str, Split]) -> bool:
    parents = {path.rpartition("/")[0] for path in splits}
    if not splits or any(_node_at(root, path).children for path in splits):
        return False
    return len(parents) > 1 or _node_at(root, min(parents)).total < root.total


def _notes(root: _Node, layout: Layout, tops: tuple[str, ...]) -> Iterator[str]:
    """What is not plain: deeper folders, images without a split."""
    if layout.rules.class_from is None:
        deep = [
            name
            for path in layout.splits or tops
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
