"""A label list: which class an image belongs to where its place does not say so.

    NAME LABEL      one image per line, split at tabs, else at commas, else before the last
                    word; NAME is a key, a file name or a file name without suffix
    LABEL           line n belongs to the image whose file name ends in the number n, as in
                    the official list for ILSVRC2012_val_00000001.JPEG and on

With a class list an integer LABEL is its place there, counted from 0, or from 1 where the largest
label equals the number of classes. The list has one class name per line, or `n01440764 tench, Tinca
tinca`, of which the first word is the name. Under the header `PredictionString`, which is Kaggle's
for ImageNet, the LABEL is the first word: the boxes of the objects follow it.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipelines import storage
from pipelines.errors import UserError
from pipelines.prepare.sources.tables import fields

WORDNET_ID = re.compile(r"n\d+\s")
HEADERS = ("imageid", "name", "file", "filename", "key")  # of the first column


@dataclass(frozen=True)
class Labels:
    """A label list in memory."""

    by_name: dict[str, str]
    by_number: tuple[str, ...]

    def of(self, key: str) -> str | None:
        """The class of an image; None where the list does not name it."""
        path = PurePosixPath(key)
        if self.by_number:
            number = re.search(r"(\d+)$", path.stem)
            index = int(number.group(1)) if number else 0
            return self.by_number[index - 1] if 1 <= index <= len(self.by_number) else None
        for name in (key, path.name, path.stem):
            if name in self.by_name:
                return self.by_name[name]
        return None


def read_labels(uri: str, class_list: str | None) -> Labels:
    """Read a label list.

    Raises:
        UserError: the list is not one of the two forms.
    """
    rows = [fields(line) for line in _lines(uri, "labels")]
    names = _lines(class_list, "class_list") if class_list else []
    if all(len(row) == 1 for row in rows):
        return Labels({}, tuple(_named([row[0] for row in rows], names, uri)))
    odd = next((row for row in rows if len(row) < 2 or not row[1]), None)
    if odd:
        raise UserError(
            f"labels is '{uri}'; each line must be `NAME LABEL`, or each `LABEL`, and that of "
            f"'{odd[0]}' is not"
        )
    if rows[0][0].lower() in HEADERS:
        with_boxes = rows[0][1].lower() == "predictionstring"
        rows = [[row[0], row[1].split()[0] if with_boxes else row[1]] for row in rows[1:]]
    if not rows:
        raise UserError(f"labels is '{uri}'; that file holds a header and no label")
    found = _named([row[1] for row in rows], names, uri)
    return Labels({row[0]: label for row, label in zip(rows, found, strict=True)}, ())


def _lines(uri: str, name: str) -> list[str]:
    try:
        text = storage.read_bytes(storage.absolute(uri)).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{name} is '{uri}'; there is no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{name} is '{uri}'; that file is not UTF-8 text") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{name} is '{uri}'; that file is empty")
    return lines


def _named(labels: list[str], names: list[str], uri: str) -> list[str]:
    if not names:
        return labels
    if all(WORDNET_ID.match(name) for name in names):
        names = [name.split()[0] for name in names]
    numbers = [int(label) if label.isdecimal() else -1 for label in labels]
    base = 1 if max(numbers) == len(names) else 0
    wrong = [
        label
        for label, number in zip(labels, numbers, strict=True)
        if not 0 <= number - base < len(names)
    ]
    if wrong:
        raise UserError(
            f"labels is '{uri}'; label '{wrong[0]}' is no place in class_list, which has "
            f"{len(names)} classes"
        )
    return [names[number - base] for number in numbers]
