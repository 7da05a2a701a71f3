"""The draw for validation: of every class its share, by a hash of the key.

Of a class with n images that have no split of their own, share * n are for validation, rounded, at
least one of two or more, and never all of them: those with the smallest hashes. Images without a
class are drawn as if they were one. What the dataset holds already counts and never moves; of the
images that are added to a class at most their own share is drawn, rounded up.

So an image that is added to a source moves at most one other image of its class to another split,
when the whole is prepared again, and none in a dataset that it is added to.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.prepare.digests import hash64

CANDIDATE = np.dtype([("class", "<u4"), ("hash", "<u8")])
AT_ONCE = 1 << 21  # candidates in memory, beside twice those that are drawn
NEAR = 2  # times the share: hashes below are spilled apart, as almost all drawn ones are

Candidates = NDArray[np.void]
"""Of CANDIDATE: number of the class in a list of names, and hash of the key."""


class Draw(NamedTuple):
    """Which images are for validation."""

    seed: int
    limits: dict[str, int]
    """Class -> the largest hash that is drawn; "" is no class. Of others nothing is."""
    rows: int
    """Images that are drawn."""

    def holds(self, key: str, class_name: str | None) -> bool:
        """Whether an image without a split of its own is for validation."""
        limit = self.limits.get(class_name or "")
        return limit is not None and of_key(self.seed, key) <= limit

    def is_near(self, share: float) -> bool:
        """Whether all that is drawn has a hash of `near`."""
        return all(near(limit, share) for limit in self.limits.values())


def of_key(seed: int, key: str) -> int:
    """The hash that an image is drawn by, 0 .. 2^64 - 1."""
    return hash64("split", seed, key)


def near(number: int, share: float) -> bool:
    """Whether a hash is so small that it is drawn from all but small classes."""
    return number < NEAR * share * 2**64


def wanted(images: int, share: float) -> int:
    """Images for validation of so many."""
    if images < 2 or not share:
        return 0
    return min(max(int(share * images + 0.5), 1), images - 1)


def draw(
    seed: int,
    share: float,
    parts: Callable[[], Iterable[tuple[tuple[str, ...], Candidates]]],
    same_class: Mapping[str, str],
    held: Mapping[str, tuple[int, int]],
) -> Draw:
    """Draw from all candidates, which are looked at twice; memory is that of the drawn ones.

    Args:
        seed: of the hash.
        share: of the images of a class that is for validation.
        parts: the candidates, each part with the names of its classes.
        same_class: spelling of a class -> the class, where several are one.
        held: class -> images that the dataset holds: all, and those for validation.
    """
    counts: Counter[str] = Counter()
    spellings: dict[str, str] = {}
    for names, candidates in parts():
        spellings |= {name: same_class.get(name, name) for name in names}
        for number, count in enumerate(np.bincount(candidates["class"], minlength=len(names))):
            counts[spellings[names[number]]] += int(count)
    classes = {name: number for number, name in enumerate(counts)}
    most = np.zeros(len(classes), np.int64)
    for name, count in counts.items():
        images, validation = held.get(name, (0, 0))
        lacking = max(wanted(images + count, share) - validation, 0)
        most[classes[name]] = min(lacking, math.ceil(share * count))
    chosen = np.empty(0, CANDIDATE)
    room = AT_ONCE
    for names, candidates in parts():
        numbers = np.array([classes[spellings[name]] for name in names], np.uint32)
        found = candidates.copy()
        found["class"] = numbers[candidates["class"]]
        chosen = np.concatenate([chosen, found[most[found["class"]] > 0]])
        if len(chosen) > room:
            chosen = _smallest(chosen, most)
            room = max(AT_ONCE, 2 * len(chosen))
    chosen = _smallest(chosen, most)
    largest = {int(number): int(hash_) for number, hash_ in chosen.tolist()}
    limits = {
        spelling: largest[number]
        for spelling, name in spellings.items()
        if (number := classes[name]) in largest
    }
    return Draw(seed, limits, len(chosen))


def _smallest(candidates: Candidates, most: NDArray[np.int64]) -> Candidates:
    """Of each class those with the smallest hashes, at most so many, in rising order."""
    ordered = candidates[np.lexsort((candidates["hash"], candidates["class"]))]
    begins = np.searchsorted(ordered["class"], np.arange(len(most)))
    ranks = np.arange(len(ordered)) - begins[ordered["class"]]
    kept: Candidates = ordered[ranks < most[ordered["class"]]]
    return kept
