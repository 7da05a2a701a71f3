"""Images to measure on: a prepared dataset, class folders, or any folder of images.

Images stay encoded in memory and are decoded batch by batch; `limit` bounds how many are kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ce_model.pixels import network_input
from pipelines import storage
from pipelines.data import images, shards, untrusted
from pipelines.data.images import ImageArray
from pipelines.data.manifest import Manifest, is_dataset, read_manifest
from pipelines.data.untrusted import BadImage
from pipelines.errors import UserError
from pipelines.evaluation.settings import Layout

SUFFIXES = (".jpg", ".jpeg", ".png")
NAMES = 10  # shown in a message


@dataclass(frozen=True)
class ImageSet:
    """One split: encoded images with their keys and labels."""

    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    """-1 where there is none."""
    encoded: tuple[bytes, ...]
    classes: tuple[str, ...]
    seed: int
    """Seed of the masks of these images."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.keys)

    def take(self, chosen: Sequence[int] | NDArray[np.int64]) -> "ImageSet":
        """Some of the images, in the order given."""
        return replace(
            self,
            keys=tuple(self.keys[at] for at in chosen),
            labels=self.labels[np.asarray(chosen, np.int64)],
            encoded=tuple(self.encoded[at] for at in chosen),
        )

    def squares(self, side: int) -> NDArray[np.uint8]:
        """uint8 (N, side, side, 3): shorter side resized to `side`, centre square."""
        found = np.empty((len(self), side, side, 3), np.uint8)
        for at, data in enumerate(self.encoded):
            found[at] = images.square(decode(data, self.keys[at]), side, side, 0.5, 0.5)
        return found

    def batches(self, side: int, size: int = 32) -> Iterator[torch.Tensor]:
        """Centre squares as float (B, 3, side, side) in [-1, 1], channels_last."""
        for start in range(0, len(self), size):
            chosen = range(start, min(start + size, len(self)))
            yield to_network(self.take(chosen).squares(side))

    @property
    def fingerprint(self) -> str:
        """Content key of what is in here."""
        digest = [_digest(data) for data in self.encoded]
        return storage.content_key([self.keys, self.labels.tolist(), digest, self.seed])


def _digest(data: bytes) -> str:
    """What is measured follows from; a PNG of 16 bits was white in results of earlier versions."""
    digest = storage.sha256_of_bytes(data)
    return f"{digest} by its upper bits" if untrusted.is_deep_png(data) else digest


def to_network(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (B, S, S, 3) -> float (B, 3, S, S) in [-1, 1], channels_last."""
    return network_input(torch.from_numpy(np.array(images, order="C")))


def decode(data: bytes, name: str) -> ImageArray:
    """Encoded image -> uint8 (H, W, 3) RGB, upright.

    Raises:
        UserError: it cannot be decoded.
    """
    try:
        return untrusted.open_rgb(data)
    except BadImage as error:
        raise _cannot(name, error) from None


def size_of(data: bytes, name: str) -> tuple[int, int]:
    """Height and width of the upright image; of a JPEG from the header alone.

    Raises:
        UserError: it cannot be decoded.
    """
    try:
        return untrusted.size_of(data)
    except BadImage as error:
        raise _cannot(name, error) from None


def _cannot(name: str, error: BadImage) -> UserError:
    return UserError(
        f"image '{name}' cannot be used ({error}); leave it out, or let "
        "python jobs/prepare.py quarantine it"
    )


def layout_of(uri: str) -> Layout:
    """What kind of data a URI holds.

    Raises:
        UserError: nothing of use.
    """
    if found := find_layout(uri):
        return found
    storage.require_folder(uri, "data")
    inside = storage.children(uri)
    raise UserError(
        f"data is '{uri}', which holds {', '.join(sorted(inside)[:NAMES]) or 'nothing'}; it must "
        "be a prepared dataset (manifest.json), class folders (train/<class>/), a folder of "
        "images, a VOC folder (JPEGImages, Annotations, ImageSets) or a CamVid folder (train, "
        "trainannot)"
    )


def find_layout(uri: str) -> Layout | None:
    """What kind of data a URI holds; None where no task could read it as it is."""
    if is_dataset(uri):
        return "prepared"
    if not storage.is_folder(uri):
        return None
    inside = set(storage.children(uri))
    if voc_root(uri):
        return "voc"
    if {"train", "trainannot"} <= inside:
        return "camvid"
    if "train" in inside and _has_classes(storage.join(uri, "train")):
        return "classes"
    if any(name.lower().endswith(SUFFIXES) for name in inside):
        return "images"
    return None


def voc_root(uri: str) -> str | None:
    """The folder with JPEGImages and ImageSets at or under `uri` (VOCdevkit/VOC2007)."""
    for _ in range(3):
        inside = storage.children(uri)
        if {"JPEGImages", "ImageSets"} <= set(inside):
            return uri
        deeper = [name for name in inside if name.startswith("VOC")]
        if len(deeper) != 1:
            return None
        uri = storage.join(uri, deeper[0])
    return None


def read_images(uri: str, split: str, limit: int) -> ImageSet:
    """A split of a prepared dataset or of class folders; a flat folder counts as any split.

    Args:
        uri: the data.
        split: "train" or "val".
        limit: maximum number of images, evenly spaced over the split; 0: all.
    """
    layout = layout_of(uri)
    if layout == "prepared":
        found = _read_prepared(uri, split, limit)
    elif layout == "classes":
        files, classes = _class_files(uri, split, limit)
        found = _read_files(uri, files, classes)
    elif layout == "images":
        names = [n for n in storage.children(uri) if n.lower().endswith(SUFFIXES)]
        names = [names[at] for at in pick_evenly(len(names), limit)]
        found = _read_files(uri, [(name, -1) for name in names], ())
    else:
        raise UserError(f"data is '{uri}', a {layout} folder; this task wants images or classes")
    _refuse_empty(len(found), split, uri)
    return found


def read_labels(uri: str, split: str, limit: int) -> NDArray[np.int64]:
    """Labels of what `read_images` reads, -1 where there is none; no image is opened."""
    if layout_of(uri) == "prepared":
        manifest = read_manifest(uri)
        tables = _prepared(uri, manifest, split, limit, ["label"])
        labels = [label for table in tables for label in _labels(table)]
    else:
        files, _ = _class_files(uri, split, limit)
        labels = [label for _, label in files]
    _refuse_empty(len(labels), split, uri)
    return np.array(labels, np.int64)


def _refuse_empty(count: int, split: str, uri: str) -> None:
    if not count:
        raise UserError(f"split '{split}' of '{uri}' is empty; it must hold at least one image")


def _read_prepared(uri: str, split: str, limit: int) -> ImageSet:
    manifest = read_manifest(uri)
    keys: list[str] = []
    labels: list[int] = []
    encoded: list[bytes] = []
    for table in _prepared(uri, manifest, split, limit, ["key", "label", "image"]):
        keys += table.column("key").to_pylist()
        labels += _labels(table)
        encoded += table.column("image").to_pylist()
    return ImageSet(
        tuple(keys), np.array(labels, np.int64), tuple(encoded), manifest.classes, manifest.seed
    )


def _prepared(
    uri: str, manifest: Manifest, split: str, limit: int, columns: list[str]
) -> Iterator[pa.Table]:
    """Some columns of the chosen rows, row group by row group."""
    wanted = set(pick_evenly(manifest.rows(split), limit))
    for group in shards.row_groups(manifest, split):
        chosen = [at for at in range(group.rows) if group.first_row + at in wanted]
        if chosen:
            yield shards.read_row_group(uri, group, columns).take(chosen)


def _labels(table: pa.Table) -> list[int]:
    found: list[int] = table.column("label").fill_null(-1).to_pylist()
    return found


def _class_files(uri: str, split: str, limit: int) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """Names with labels, and the classes."""
    classes = _class_names(storage.join(uri, "train"))
    here = classes if split == "train" else _class_names(storage.join(uri, split))
    unknown = sorted(set(here) - set(classes))
    if unknown:
        raise UserError(
            f"'{storage.join(uri, split)}' has the classes {', '.join(unknown[:NAMES])}, which "
            f"train/ has not; both must hold the same classes"
        )
    files = [
        (f"{split}/{name}/{file}", label)
        for label, name in enumerate(classes)
        for file in storage.children(storage.join(uri, split, name))
        if file.lower().endswith(SUFFIXES)
    ]
    return [files[at] for at in pick_evenly(len(files), limit)], tuple(classes)


def _read_files(uri: str, files: list[tuple[str, int]], classes: tuple[str, ...]) -> ImageSet:
    names = tuple(name for name, _ in files)
    labels = np.array([label for _, label in files], np.int64)
    encoded = tuple(storage.read_bytes(storage.join(uri, name)) for name in names)
    return ImageSet(names, labels, encoded, classes, seed=0)


def _class_names(uri: str) -> list[str]:
    names = set(_perhaps_classes(uri))
    return storage.folders_among(uri, names) if names else []


def _has_classes(uri: str) -> bool:
    return any(storage.is_folder(storage.join(uri, name)) for name in _perhaps_classes(uri))


def _perhaps_classes(uri: str) -> list[str]:
    # An image is taken for a file unasked: in a bucket each question is a request.
    names = (name for name in storage.children(uri) if not name.startswith("."))
    return [name for name in names if not name.lower().endswith(SUFFIXES)]


def pick_evenly(count: int, limit: int) -> list[int]:
    """At most `limit` numbers below `count`, evenly spaced; all of them for 0."""
    if not limit or limit >= count:
        return list(range(count))
    return [at * count // limit for at in range(limit)]
