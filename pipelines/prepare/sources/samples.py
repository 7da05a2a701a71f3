"""Which class the label files in an archive give to its images, as in WebDataset shards.

`NAME.cls` gives the class of `NAME.jpg`; the class in `NAME.json` counts where there is no other.
An image may have further dots: of `frame.001.jpg` the label is that of `frame.001`, else that of
`frame`. Labels stand beside their images, or before them. Labels that come after are known where
the archive could be looked through first; else they end the job with a message, never in silence.
"""

import json
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from pipelines.errors import UserError

LABEL_SUFFIXES = (".cls", ".class", ".label", ".cls.txt")
JSON_FIELDS = ("label", "cls", "class", "class_name", "target", "category")
MAX_LABEL_BYTES = 1 << 10
MAX_JSON_BYTES = 1 << 16
MAX_SAMPLE_IMAGES = 16  # that wait for a label beside them
NO_CLASS = "-1"


class LateLabels(UserError):
    """An archive that is read as a stream has labels behind images that have gone already."""


Image = TypeVar("Image")


class File(NamedTuple, Generic[Image]):
    """A file of an archive that matters: an image, or a class for its namesakes."""

    name: str
    """Key of the image, or of a label without the suffix that says so."""
    image: Image | None
    bytes: int = 0
    label: str | None = None
    is_weak: bool = False
    """Whether the label counts only where there is no other."""


def label_stem(name: str) -> tuple[str, str] | None:
    """Name without the suffix of a label file, and that suffix; None for other files."""
    lower = name.lower()
    for suffix in (*LABEL_SUFFIXES[::-1], ".json"):
        if lower.endswith(suffix) and not lower.endswith("/" + suffix):
            return name[: -len(suffix)], suffix
    return None


def read_label(data: bytes, suffix: str) -> str | None:
    """The class that a label file names; None for none.

    Raises:
        ValueError: it is no text, or holds more than a label.
    """
    if suffix == ".json":
        fields = json.loads(data)
        if not isinstance(fields, dict):
            return None
        found = next((fields[name] for name in JSON_FIELDS if name in fields), None)
        if isinstance(found, bool) or not isinstance(found, str | int):
            return None
        text = str(found).strip()
    else:
        text = data.decode("utf-8-sig").strip("\0 \t\r\n")
        if text[:1] == '"':
            text = str(json.loads(text)).strip()
        if "\n" in text or "\0" in text:
            raise ValueError("more than one line")
    if text.isdecimal():
        text = str(int(text))  # 003 is the number 3, as WebDataset reads it
    return None if text in ("", NO_CLASS) else text


def candidates(name: str) -> Iterator[str]:
    """Names that a label of an image may have, the longest first: its own less one dot group."""
    folder, slash, file = name.rpartition("/")
    while "." in file[1:]:
        file = file.rpartition(".")[0]
        yield folder + slash + file


class Labels:
    """The labels of one archive."""

    def __init__(self, *, are_all: bool = False) -> None:
        """None yet; `are_all` when every label is added before the first image is asked for."""
        self.are_all = are_all
        self._strong: dict[str, str] = {}
        self._weak: dict[str, str] = {}
        self._used: set[str] = set()

    def add(self, stem: str, label: str, *, is_weak: bool) -> None:
        """A label; a weak one counts only where there is no other."""
        (self._weak if is_weak else self._strong)[stem] = label

    def of(self, name: str) -> str | None:
        """The label of an image."""
        if not self._strong and not self._weak:
            return None
        for stem in candidates(name):
            found = self._strong.get(stem) or self._weak.get(stem)
            if found is not None:
                self._used.add(stem)
                return found
        return None

    def forget(self) -> None:
        """Let go of what has been used where labels still come: those images are gone."""
        if self.are_all:
            return
        for stem in self._used:
            self._strong.pop(stem, None)
            self._weak.pop(stem, None)
        self._used.clear()

    def unused(self) -> list[str]:
        """Names of labels that no image took."""
        return [stem for stem in (*self._strong, *self._weak) if stem not in self._used]


def with_labels(
    files: Iterable[File[Image]], labels: Labels, source: str, *, max_bytes: int
) -> Iterator[tuple[Image, str | None]]:
    """Each image with the class that a label file gives it.

    Args:
        files: of an archive in its order.
        labels: those that are known already; more are added as they come.
        source: for messages.
        max_bytes: of images that may wait for a label.

    Raises:
        LateLabels: a label comes too late.
    """
    waiting: deque[tuple[File[Image], Image]] = deque()
    held = 0
    bare = _Names()
    group = ""

    def leave() -> tuple[Image, str | None]:
        nonlocal held
        file, image = waiting.popleft()
        held -= file.bytes
        label = labels.of(file.name)
        if label is None:
            bare.add(file.name)
        return image, label

    for file in files:
        own = _group(file.name)
        if own != group:
            while waiting:
                yield leave()
            labels.forget()
            group = own
        if file.label is not None:
            labels.add(file.name, file.label, is_weak=file.is_weak)
        if file.image is not None:
            waiting.append((file, file.image))
            held += file.bytes
            while len(waiting) > MAX_SAMPLE_IMAGES or (held > max_bytes and len(waiting) > 1):
                yield leave()
    while waiting:
        yield leave()
    late = [stem for stem in labels.unused() if stem in bare]
    if late:
        raise LateLabels(
            f"--source '{source}' has labels far behind their images, such as that of '{late[0]}' "
            f"({len(late)} in this archive), where it can only be read from its begin to its end; "
            "pack it sorted by name (tar --sort=name), or give it as a plain .tar on a local disk"
        )


def _group(name: str) -> str:
    """Path up to the name's first dot."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


class _Names:
    """Names of labels that images without a class might have had, as 8 bytes each."""

    def __init__(self) -> None:
        self._numbers = array("q")
        self._sorted: np.ndarray | None = None

    def add(self, name: str) -> None:
        self._numbers.extend(hash(stem) for stem in candidates(name))

    def __contains__(self, stem: str) -> bool:
        if self._sorted is None:
            self._sorted = np.sort(np.array(self._numbers, np.int64))
        at = int(np.searchsorted(self._sorted, hash(stem)))
        return at < len(self._sorted) and int(self._sorted[at]) == hash(stem)
