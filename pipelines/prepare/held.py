"""What the dataset holds already, as every task of a job sees it: sorted digests, no strings."""

import hashlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines import storage
from pipelines.prepare import digests
from pipelines.prepare.digests import Digests
from pipelines.prepare.sources.member import Member

FILES = {
    "keys": "S16",
    "labels": "<i4",
    "is_val": "?",
    "contents": "S16",
    "content_rows": "<i8",
    "aside": "S16",
}


class HeldImages(NamedTuple):
    """The images in the shards of a dataset; none in those of a new one."""

    keys: Digests
    """Of all images, rising; the place of an image here is its row."""
    labels: NDArray[np.int32]
    """Of each row; -1 without one."""
    is_val: NDArray[np.bool_]
    """Of each row: whether it is for validation."""
    contents: Digests
    """Of the bytes in the source, rising."""
    content_rows: NDArray[np.int64]
    """Row of each content."""
    aside: Digests
    """Key and bytes of what earlier jobs quarantined: not told again when they still are bad."""
    classes: tuple[str, ...]

    @classmethod
    def none(cls) -> "HeldImages":
        """Of a new dataset."""
        arrays = [np.empty(0, kind) for kind in FILES.values()]
        return cls(*arrays, ())  # type: ignore[call-arg, arg-type]

    def row_of_key(self, key: str) -> int | None:
        """The row of an image by its key."""
        return digests.find(self.keys, digests.of_key(key))

    def row_of_content(self, sha256: str | bytes) -> int | None:
        """The row of an image by the sha256 of its bytes."""
        at = digests.find(self.contents, digests.of_content(sha256))
        return None if at is None else int(self.content_rows[at])

    def row_of(self, member: Member) -> int | None:
        """The row of an image that is held with its key and its bytes, not only its name."""
        if member.data is None or not len(self.keys):
            return None
        row = self.row_of_key(member.key)
        if row is None or self.row_of_content(hashlib.sha256(member.data).digest()) != row:
            return None
        return row

    def class_of(self, row: int) -> str | None:
        """The class of an image."""
        label = int(self.labels[row])
        return self.classes[label] if label >= 0 else None

    def split_of(self, row: int) -> str:
        """The split of an image."""
        return "val" if self.is_val[row] else "train"

    def by_class(self) -> dict[str, tuple[int, int]]:
        """Class -> images of it, and those for validation; "" is no class."""
        size = len(self.classes) + 1
        every = np.bincount(self.labels + 1, minlength=size)
        validation = np.bincount(self.labels[self.is_val] + 1, minlength=size)
        names = ("", *self.classes)
        return dict(zip(names, zip(every.tolist(), validation.tolist(), strict=True), strict=True))


def write_held(work: str, held: HeldImages) -> None:
    """Store what the dataset holds for all tasks of a job."""
    for name in FILES:
        array = getattr(held, name)
        storage.publish(storage.join(work, f"held-{name}"), array.tobytes())
    storage.publish_json(storage.join(work, "held-classes"), held.classes)


@lru_cache(maxsize=1)
def read_held(work: str) -> HeldImages:
    """What the dataset holds."""
    arrays = [
        np.frombuffer(storage.read_bytes(storage.join(work, f"held-{name}")), kind)
        for name, kind in FILES.items()
    ]
    classes = tuple(storage.read_json(storage.join(work, "held-classes")))
    return HeldImages(*arrays, classes)  # type: ignore[call-arg, arg-type]
