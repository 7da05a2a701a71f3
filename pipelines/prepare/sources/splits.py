"""Which split a name speaks of: train, val or test, in the spellings that collections use.

A name is cut into words at signs, digits and capital letters. Words of size and kind (`images`,
`set`, `64x64`, `00000-of-00004`) say nothing. What is left is
    exact      one word of WORDS: train, Training_set, train2017, val_256, test-00000-of-00002
    compound   such a word beside others: cars_train, ILSVRC2012_img_val, bullet_train

A compound name is a split only where a sibling has the same other words and another split (see
`layout`): cars_train beside cars_test is one, bullet_train beside railway_station is a class. A
test part is never trained on. `eval` is a test part and `dev` validation, as Hugging Face reads
them (datasets, "Structure your repository", Keywords).
"""

import re
from typing import Literal, NamedTuple

Split = Literal["train", "val", "test"]
WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trainset", "trainval", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev", "minival"), "val"),
    **dict.fromkeys(("test", "tests", "testing", "testset", "eval", "evaluation"), "test"),
}
SILENT = frozenset("set split data images image imgs img part of x px shard".split())
PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


class Named(NamedTuple):
    """What a name says of a split."""

    split: Split
    others: tuple[str, ...]
    """Its other words; without any the name is exact."""


def named_split(name: str) -> Named | None:
    """The split that a name speaks of; None where it speaks of none, or of two."""
    name = name.partition("=")[2] if name.lower().startswith("split=") else name
    words = [word.lower() for word in PART.findall(name)]
    splits: set[Split] = {WORDS[word] for word in words if word in WORDS}
    if splits == {"train", "val"}:  # trainval
        splits = {"train"}
    if len(splits) != 1:
        return None
    others = (word for word in words if word not in WORDS and word not in SILENT)
    return Named(splits.pop(), tuple(others))
