"""The classes of a dataset as a person should see them, and what looks wrong with them."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.errors import counted
from pipelines.prepare.sources.layout import NEUTRAL, quoted
from pipelines.prepare.sources.splits import named_split

NO_CLASS = "(none)"

ByClass = Mapping[str, Mapping[str, int]]  # split -> class -> images


def facts(by_class: ByClass, classes: tuple[str, ...], contradictions: int = 0) -> dict[str, Any]:
    """What a card says of classes.

    Args:
        by_class: images of every split by class; NO_CLASS are those without one.
        classes: of the dataset, also such as have no image.
        contradictions: images left out because the same bytes stand in another class.
    """
    counts: Counter[str] = Counter()
    for split in by_class.values():
        counts.update(split)
    without = counts.pop(NO_CLASS, 0)
    ranked = counts.most_common()
    return {
        "classes": len(classes),
        "largest": list(ranked[0]) if ranked else None,
        "smallest": list(ranked[-1]) if ranked else None,
        "without_class": without,
        "warnings": list(_warnings(by_class, classes, counts, without, contradictions)),
    }


def _warnings(
    by_class: ByClass,
    classes: tuple[str, ...],
    counts: Counter[str],
    without: int,
    contradictions: int,
) -> Iterator[str]:
    held = [name for name in classes if counts[name]]
    if not sum(by_class.get("train", {}).values()):
        yield "there is no image to train on"
    if len(held) == 1 and not without:
        yield f"one class, {quoted(held)}, holds every image: it says nothing"
    odd = [n for n in held if n.lower() in NEUTRAL or ((s := named_split(n)) and not s.others)]
    if odd:
        yield f"{_classes(odd)} called {quoted(odd)}: the name of a folder, it seems, of no class"
    hidden = [name for name in held if name.startswith(".")]
    if hidden:
        yield f"{_classes(hidden)} with a hidden name: {quoted(hidden)}"
    empty = [name for name in classes if not counts[name]]
    if empty:
        yield f"{_classes(empty)} without an image: {quoted(empty)}"
    if sum(1 for split in by_class.values() if sum(split.values())) > 1:
        for split, others in (("train", "val"), ("val", "train")):
            alone = [n for n in held if by_class[split].get(n) and not by_class[others].get(n)]
            if alone:
                yield f"{_classes(alone)} in {split} only: {quoted(alone)}"
    if held and without:
        yield f"{counted(without, 'image')} without a class beside {_classes(held)}"
    yield from (f"classes whose names look alike: {quoted(names)}" for names in _alike(held))
    if contradictions:
        yield (
            f"{counted(contradictions, 'image')} left out whose bytes stand in another class, too: "
            "see the quarantine for 'the same bytes in class', and remove one of each pair"
        )


def _classes(names: list[str]) -> str:
    return counted(len(names), "class", "classes")


def _alike(names: list[str]) -> list[list[str]]:
    texts: dict[str, list[str]] = defaultdict(list)
    for name in names:
        texts[unicodedata.normalize("NFKC", name).casefold().strip()].append(name)
    return [found for found in texts.values() if len(found) > 1]


def row(found: Mapping[str, Any]) -> tuple[str, str, str]:
    """The row of a table: what, how many, which."""
    if not found["largest"]:
        return "classes", "none", f"{counted(found['without_class'], 'image')} without one"
    (small, few), (large, many) = found["smallest"], found["largest"]
    between = f"{few:,} ('{small}') to {counted(many, 'image')} ('{large}')"
    if small == large:
        between = f"{counted(many, 'image')} ('{large}')"
    elif few == many:
        between = f"{counted(many, 'image')} each"
    without = found["without_class"]
    rest = f"; {counted(without, 'image')} without one" if without else ""
    return "classes", counted(found["classes"], "class", "classes"), between + rest
