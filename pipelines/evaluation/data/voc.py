"""PASCAL VOC and CamVid folders: boxes, label maps, and several classes per image.

VOC: JPEGImages, Annotations (XML, corners counted from 1), SegmentationClass (palette PNG, 255 is
void), ImageSets/Main and ImageSets/Segmentation. CamVid: <split> with JPEG or PNG images and
<split>annot with PNG labels. Here corners count from 0 and both lie inside the box, and class 0 of
a label map is a class like any other (the background in VOC).
"""

import io
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ce_model.transfer.metrics import VOID
from pipelines import storage
from pipelines.errors import UserError
from pipelines.evaluation.data.images import SUFFIXES, ImageSet, layout_of, size_of, voc_root
from pipelines.evaluation.data.targets import IGNORED, TargetKind
from pipelines.evaluation.settings import VOC_CLASSES, VocSettings

CAMVID_CLASSES = tuple(
    "sky building pole road pavement tree sign fence car pedestrian bicyclist".split()
)


class Objects(NamedTuple):
    """The objects of one image."""

    box: NDArray[np.float32]
    """(G, 4): x1, y1, x2, y2 in px."""
    classes: NDArray[np.int64]
    """(G,), 0 for the first class."""
    difficult: NDArray[np.bool_]
    """(G,)."""


@dataclass(frozen=True)
class Annotated:
    """A split for detection."""

    images: ImageSet
    objects: tuple[Objects, ...]

    @property
    def fingerprint(self) -> str:
        """Content key of what is in here."""
        said = [[part.tolist() for part in objects] for objects in self.objects]
        return storage.content_key([self.images.fingerprint, said])


@dataclass(frozen=True)
class Mapped:
    """A split for segmentation."""

    images: ImageSet
    maps: tuple[NDArray[np.uint8], ...]
    """(H, W) each: class, or VOID."""

    @property
    def fingerprint(self) -> str:
        """Content key of what is in here."""
        digests = [storage.sha256_of_bytes(labels.tobytes()) for labels in self.maps]
        return storage.content_key([self.images.fingerprint, digests])


def read_annotated(uri: str, split: str, classes: tuple[str, ...]) -> Annotated:
    """Images of ImageSets/Main with their boxes.

    Raises:
        UserError: an empty split, a missing image or annotation, a class or box that cannot be.
    """
    root = _root(uri)
    names = _names(root, "Main", split)
    encoded = tuple(_required(root, f"JPEGImages/{name}.jpg", split) for name in names)
    objects = []
    for name, data in zip(names, encoded, strict=True):
        xml = _required(root, f"Annotations/{name}.xml", split)
        objects.append(_objects(xml, f"Annotations/{name}.xml", size_of(data, name), classes))
    return Annotated(_images(names, encoded, classes), tuple(objects))


def read_mapped(uri: str, split: str) -> Mapped:
    """Images with a class for every pixel, from a VOC or a CamVid folder.

    Raises:
        UserError: an empty split, a missing image, a map of another size or with unknown classes.
    """
    if layout_of(uri) == "camvid":
        files = storage.children(storage.join(uri, split))
        files = [file for file in files if file.lower().endswith(SUFFIXES)]
        _refuse_empty(files, split, storage.join(uri, split))
        names = [file.rsplit(".", 1)[0] for file in files]
        paths = [
            (f"{split}/{file}", f"{split}annot/{name}.png")
            for file, name in zip(files, names, strict=True)
        ]
        root, classes = uri, CAMVID_CLASSES
    else:
        root, classes = _root(uri), ("background", *VOC_CLASSES)
        names = _names(root, "Segmentation", split)
        paths = [(f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png") for name in names]
    encoded = tuple(_required(root, path, split) for path, _ in paths)
    maps = []
    for (path, map_path), data in zip(paths, encoded, strict=True):
        maps.append(_map(_required(root, map_path, split), map_path, size_of(data, path), classes))
    return Mapped(_images(names, encoded, classes), tuple(maps))


def read_several(uri: str, split: str, classes: tuple[str, ...]) -> TargetKind:
    """Images of ImageSets/Main with every class they show: a classification task."""
    found = read_annotated(uri, split, classes)
    targets = np.zeros((len(found.objects), len(classes)), np.float32)
    for row, objects in zip(targets, found.objects, strict=True):
        row[objects.classes[objects.difficult]] = IGNORED
        row[objects.classes[~objects.difficult]] = 1
    return TargetKind(found.images, targets, several=True)


def fingerprint_of_boxes(uri: str, settings: VocSettings, *versions: int) -> str:
    """Content key of the images and boxes that are read of a folder, and of how they are used."""
    parts = (settings.train, settings.test)
    found = [read_annotated(uri, part, settings.classes).fingerprint for part in parts]
    return storage.content_key([settings.classes, found, *versions])


def _root(uri: str) -> str:
    root = voc_root(uri)
    if root is None:
        raise UserError(f"data is '{uri}'; it must hold one VOC folder with JPEGImages")
    return root


def _names(root: str, kind: str, split: str) -> list[str]:
    """Names in an image set; a second column (VOC's per-class lists) is left out."""
    path = f"ImageSets/{kind}/{split}.txt"
    try:
        lines = storage.read_bytes(storage.join(root, path)).decode().splitlines()
    except FileNotFoundError:
        there = [n.removesuffix(".txt") for n in storage.children(f"{root}/ImageSets/{kind}")]
        raise UserError(
            f"split '{split}' has no {path} in '{root}'; there are "
            f"{', '.join(n for n in there if '_' not in n) or 'none'}"
        ) from None
    names = [line.split()[0] for line in lines if line.strip()]
    _refuse_empty(names, split, storage.join(root, path))
    return names


def _refuse_empty(names: list[str], split: str, where: str) -> None:
    if not names:
        raise UserError(f"split '{split}' is empty: {where} names no image")


def _required(root: str, path: str, split: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(root, path))
    except FileNotFoundError:
        raise UserError(
            f"'{path}' is missing in '{root}', and split '{split}' wants it; add it or take its "
            "name out of ImageSets"
        ) from None


def _images(names: list[str], encoded: tuple[bytes, ...], classes: tuple[str, ...]) -> ImageSet:
    none = np.full(len(names), -1, np.int64)
    return ImageSet(tuple(names), none, encoded, classes, seed=0)


def _objects(xml: bytes, path: str, size: tuple[int, int], classes: tuple[str, ...]) -> Objects:
    try:
        found = ET.fromstring(xml).findall("object")
        labels = [str(item.findtext("name")) for item in found]
        corners = [
            [float(str(item.findtext(f"bndbox/{c}"))) for c in ("xmin", "ymin", "xmax", "ymax")]
            for item in found
        ]
        difficult = [int(item.findtext("difficult") or 0) > 0 for item in found]
    except (ET.ParseError, ValueError) as error:
        raise UserError(f"'{path}' is not a VOC annotation: {error}") from None
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        raise UserError(
            f"'{path}' has the class '{unknown[0]}'; known are {', '.join(classes)}. Name the "
            "classes of your data with --voc.classes"
        )
    box = np.array(corners, np.float32).reshape(-1, 4) - 1
    for row in box:
        _check_box(row.tolist(), path, size)
    return Objects(
        box, np.array([classes.index(n) for n in labels], np.int64), np.array(difficult, bool)
    )


def _check_box(box: list[float], path: str, size: tuple[int, int]) -> None:
    x1, y1, x2, y2 = box
    height, width = size
    shown = " ".join(f"{value + 1:g}" for value in box)
    if x2 <= x1 or y2 <= y1:
        raise UserError(f"'{path}' has the box {shown}, which has no area; fix or remove it")
    if x1 < 0 or y1 < 0 or x2 > width - 1 or y2 > height - 1:
        raise UserError(
            f"'{path}' has the box {shown}, outside its image of {width} x {height} px; corners "
            "count from 1"
        )


def _map(
    data: bytes, path: str, size: tuple[int, int], classes: tuple[str, ...]
) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
            if opened.mode not in ("P", "L"):
                raise UserError(
                    f"'{path}' is a PNG of mode {opened.mode}; a label map has one number per "
                    "pixel (palette or grey)"
                )
            found = np.array(opened, np.uint8)
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"'{path}' cannot be decoded: {error}") from None
    if found.shape != size:
        raise UserError(
            f"'{path}' is {found.shape[1]} x {found.shape[0]} px; its image is {size[1]} x "
            f"{size[0]}, and they must be equal"
        )
    unknown = np.unique(found[(found >= len(classes)) & (found != VOID)])
    if len(unknown):
        raise UserError(
            f"'{path}' holds the label {unknown[0]}; labels are 0 to {len(classes) - 1} "
            f"({', '.join(classes)}) and {VOID} for void"
        )
    return found
