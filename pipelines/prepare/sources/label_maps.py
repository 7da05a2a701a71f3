"""Label maps beside images: `SegmentationClass/000001.png`, `0001_mask.png`. They are no images.

A file is taken for a label map where three things agree: its folder or the end of its name says so
(WORDS), it is stored without loss (SUFFIXES), and its name repeats that of an image elsewhere. Of
each folder a sample of names is held against all others.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

WORDS = frozenset(
    "mask masks segmentation segmentations seg segs label labels labelmap annotation annotations "
    "annot trimap trimaps gt groundtruth truth semantic panoptic instance instances instanceids "
    "labelids depth depths matte mattes".split()
)
SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
SAMPLE = 100  # names per group
PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
END = re.compile(r"[._-][A-Za-z]+$")

Group = tuple[str, str]  # folder, and the end of the stem; "" for all that is in the folder


def group_of(path: str) -> tuple[Group, str] | None:
    """The group that a file belongs to by its name, and the name of its image."""
    if not path.lower().endswith(SUFFIXES):
        return None
    pure = PurePosixPath(path)
    for depth, folder in enumerate(pure.parts[:-1], 1):
        if _speaks(folder):
            stem = pure.stem
            end = END.search(stem)
            own = stem[: end.start()] if end and _speaks(end[0]) else stem
            return ("/".join(pure.parts[:depth]), ""), own
    end = END.search(pure.stem)
    if end and _speaks(end[0]):
        return (str(pure.parent) if len(pure.parts) > 1 else "", end[0]), pure.stem[: end.start()]
    return None


def dotted_end(name: str) -> str | None:
    """`.seg.png` of `0001.seg.png`: in an archive of samples, a dotted word says what a file is."""
    stem, _, suffix = name.rpartition(".")
    end = END.search(stem) if "." in stem and name.lower().endswith(SUFFIXES) else None
    if end and end[0].startswith(".") and _speaks(end[0]):
        return f"{end[0]}.{suffix}".lower()
    return None


def _speaks(name: str) -> bool:
    return any(word.lower() in WORDS for word in PART.findall(name))


class Suspects:
    """The groups of a source whose names are those of label maps."""

    def __init__(self) -> None:
        """Nothing is suspected yet."""
        self.images: Counter[Group] = Counter()
        self._samples: dict[Group, set[str]] = defaultdict(set)

    def add(self, path: str) -> None:
        """See an image file."""
        found = group_of(path)
        if found:
            group, stem = found
            self.images[group] += 1
            if len(self._samples[group]) < SAMPLE:
                self._samples[group].add(stem)

    def convicted(self, paths: Iterable[str]) -> dict[str, list[str]]:
        """Folder -> ends of stems, of the groups whose names repeat those of other images."""
        wanted: dict[str, list[Group]] = defaultdict(list)
        for group, stems in self._samples.items():
            for stem in stems:
                wanted[stem].append(group)
        hits: dict[Group, set[str]] = defaultdict(set)
        for path in paths:
            pure = PurePosixPath(path)
            for group in wanted.get(pure.stem, ()):
                if group_of(path) is None and (
                    not group[1] or str(pure.parent) == (group[0] or ".")
                ):
                    hits[group].add(pure.stem)
        maps: dict[str, list[str]] = defaultdict(list)
        for group, stems in self._samples.items():
            if 2 * len(hits[group]) >= len(stems):
                maps[group[0]].append(group[1])
        return dict(maps)
