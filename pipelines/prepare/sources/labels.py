"""A label list: which class an image belongs to, whatever its place says.

    NAME LABEL      one image per line, columns as in `lists`; NAME is a key, the end of one, a file
                    name, or any of them without suffix
    LABEL           line n belongs to the image whose file name ends in the number n, as in the
                    official list for ILSVRC2012_val_00000001.JPEG and on; never to one in train

With a class list an integer LABEL is its place there. It has one class name per line, or
`n01440764 tench, Tinca tinca`, of which the first word is the name. Places are counted from 0 where
a label is 0, from 1 where one is the number of classes or the list is of the second form, whose
official numbers (ILSVRC2012_ID) follow the devkit's order of synsets and not the sorted one; else
--label-base says it.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from pipelines import storage
from pipelines.errors import UserError
from pipelines.prepare.sources import lists

WORDNET_ID = re.compile(r"n\d+\s")
SYNSET = re.compile(r"n\d{8}$")


class AmbiguousLabel(Exception):
    """A bare name of the list that several of its entries have, with different labels."""


@dataclass(frozen=True)
class Labels:
    """A label list in memory."""

    by_name: dict[str, str]
    by_number: tuple[str, ...]
    splits: dict[str, str] = field(default_factory=dict)
    """Split by name, where the list has a column of them."""

    def in_key(self) -> dict[str, Any]:
        """What the key of a job follows from; lists without splits have the keys that they had."""
        found = {"by_name": self.by_name, "by_number": self.by_number}
        return {**found, "splits": self.splits} if self.splits else found

    def split_of(self, key: str) -> str | None:
        """The split of an image; None where the list says none."""
        entry = self.entry(key) if self.splits else None
        return None if entry is None else self.splits.get(entry)

    def of(self, key: str, split: str | None = None) -> str | None:
        """The class of an image; None where the list does not name it."""
        if self.by_number:
            if split == "train":
                return None
            number = re.search(r"(\d+)$", PurePosixPath(key).stem)
            index = int(number.group(1)) if number else 0
            return self.by_number[index - 1] if 1 <= index <= len(self.by_number) else None
        entry = self.entry(key)
        return None if entry is None else self.by_name[entry]

    def entry(self, key: str) -> str | None:
        """The name in the list that means an image.

        Raises:
            AmbiguousLabel: several do, with different labels.
        """
        parts = key.split("/")
        for depth in range(len(parts)):
            name = "/".join(parts[depth:])
            for spelt in (name, _without_suffix(name)):
                if spelt in self.by_name:
                    return spelt
        longer = [
            name
            for name in self._by_file.get(parts[-1], ())
            if name.endswith(f"/{key}") or (name.endswith(f"/{parts[-1]}") and len(parts) == 1)
        ]
        if len({self.by_name[name] for name in longer}) > 1:
            raise AmbiguousLabel(f"the label list names {longer[0]} and {longer[1]}")
        return longer[0] if longer else None

    def is_bare(self, entry: str) -> bool:
        """Whether an entry has no folder, so that it may mean several images."""
        return "/" not in entry

    @cached_property
    def _by_file(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for name in self.by_name:
            if "/" in name:
                found[name.rpartition("/")[2]].append(name)
        return dict(found)


def _without_suffix(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + PurePosixPath(file).stem


def read_labels(
    uri: str,
    class_list: str | None,
    base: int | None = None,
    notes: list[str] | None = None,
) -> Labels:
    """Read a label list.

    Args:
        uri: the list.
        class_list: names of the classes, for labels that are numbers.
        base: what the places in it are counted from, where it was said.
        notes: gets what a person should know of it.

    Raises:
        UserError: the list is not one of the two forms, or contradicts itself.
    """
    notes = [] if notes is None else notes
    place = storage.absolute(uri)
    rows = list(lists.read_rows(place, "--labels", notes))
    names = _class_names(class_list) if class_list else []
    if not rows:
        lines = list(lists.text_lines(place, "--labels"))
        what = "that file holds a header and no label" if lines else "that file is empty"
        raise UserError(f"--labels is '{uri}'; {what}")
    if all(row.label is None for row in rows) and any(row.split for row in rows):
        raise UserError(
            f"--labels is '{uri}'; it has a column of splits and none of labels: give it as "
            "--source, or its images to --train and --val"
        )
    if all(row.label is None for row in rows):
        numbered = [row.name for row in rows]
        return Labels({}, tuple(_named(numbered, names, uri, base, notes, is_official=True)))
    odd = next((row for row in rows if row.label is None), None)
    if odd:
        raise UserError(
            f"--labels is '{uri}'; each line must be `NAME LABEL`, or each `LABEL`, and that of "
            f"'{odd.name}' is not (line {odd.line})"
        )
    texts = [row.label or "" for row in rows]
    found = _named(texts, names, uri, base, notes, is_official=False)
    by_name: dict[str, str] = {}
    for row, label in zip(rows, found, strict=True):
        name = _plain(row.name)
        if by_name.setdefault(name, label) != label:
            raise UserError(
                f"--labels is '{uri}'; line {row.line} gives '{name}' the label '{label}', an "
                f"earlier one '{by_name[name]}'. Keep one of them"
            )
    splits: dict[str, str] = {}
    for row in rows:
        name = _plain(row.name)
        if row.split is not None and splits.setdefault(name, row.split) != row.split:
            raise UserError(
                f"--labels is '{uri}'; line {row.line} gives '{name}' the split '{row.split}', an "
                f"earlier one '{splits[name]}'. Keep one of them"
            )
    return Labels(by_name, (), splits)


def _plain(name: str) -> str:
    return name.removeprefix("./").lstrip("/")


def _class_names(uri: str) -> list[str]:
    lines = [line for _, line in lists.text_lines(storage.absolute(uri), "--class-list")]
    if not lines:
        raise UserError(f"--class-list is '{uri}'; that file is empty")
    if all(WORDNET_ID.match(line + " ") for line in lines):
        lines = [line.split()[0] for line in lines]
    elif all(re.fullmatch(r"\S+ \d+", line) for line in lines):  # Places365: `/a/airfield 0`
        lines = [line.rsplit(None, 1)[0] for line in sorted(lines, key=lambda x: int(x.split()[1]))]
    seen: dict[str, int] = {}
    for number, name in enumerate(lines, 1):
        if name in seen:
            raise UserError(
                f"--class-list is '{uri}'; '{name}' is class {seen[name]} and class {number}. Two "
                "classes of one name would become one: give them two names, such as "
                f"'{name} ({number})', or use a list of synsets"
            )
        seen[name] = number
    return lines


def _named(
    labels: list[str],
    names: list[str],
    uri: str,
    base: int | None,
    notes: list[str],
    *,
    is_official: bool,
) -> list[str]:
    """The class names of labels."""
    if not names or set(labels) <= set(names):
        return labels
    numbers = [int(label) if label.isdecimal() else -1 for label in labels]
    if base is None:
        base = _base_of(numbers, len(names), uri, is_official=is_official)
    wrong = [
        label
        for label, number in zip(labels, numbers, strict=True)
        if not 0 <= number - base < len(names)
    ]
    if wrong:
        raise UserError(
            f"--labels is '{uri}'; label '{wrong[0]}' is no place in class_list, which has "
            f"{len(names)} classes (counted from {base})"
        )
    if is_official and all(map(SYNSET.match, names)) and names == sorted(names):
        notes.append(
            f"--labels '{uri}' holds a number per line and --class-list sorted synsets: the "
            "official numbers of ImageNet (ILSVRC2012_ID) follow the order of the devkit, not the "
            "sorted one, and would give every image a wrong class. Check a few"
        )
    return [names[number - base] for number in numbers]


def _base_of(numbers: list[int], classes: int, uri: str, *, is_official: bool) -> int:
    if 0 in numbers:
        return 0
    if max(numbers) == classes or is_official:
        return 1
    if min(numbers) < 0 or max(numbers) > classes:
        return 0  # one of them is refused
    raise UserError(
        f"--labels is '{uri}'; its labels are {min(numbers)} to {max(numbers)} of {classes} "
        "classes, which may be counted from 0 or from 1. Say it with --label-base 0 or 1"
    )
