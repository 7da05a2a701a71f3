"""Regions that may hold an object: selective search, once per image, kept in Parquet.

    <store>/evaluate/proposals/<key>.parquet   name, boxes (list of 4 float32 each)

Source: Uijlings et al., "Selective Search for Object Recognition", IJCV 2013; OpenCV's "fast" mode.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import storage
from pipelines.evaluation.data.images import ImageSet, decode

VERSION = 1
LONGER_PX = 500  # of VOC images; larger ones are made smaller for the search
MIN_PX = 16  # shorter side of a region
MAX_REGIONS = 2000
CHUNK = 16  # images per file


def search(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Boxes (P, 4) of an image, in px, equal for equal images.

    OpenCV draws the order of the regions from C's `rand`; the set does not depend on it, so the
    boxes are sorted, and thinned evenly where there are too many.
    """
    scale = min(1.0, LONGER_PX / max(image.shape[:2]))
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    searcher = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    searcher.setBaseImage(np.ascontiguousarray(small[..., ::-1]))
    searcher.switchToSelectiveSearchFast()
    x, y, width, height = np.array(searcher.process(), np.float32).reshape(-1, 4).T
    corners = np.stack([x, y, x + width - 1, y + height - 1], axis=1) / scale
    last = np.array([image.shape[1] - 1, image.shape[0] - 1] * 2, np.float32)
    boxes = np.minimum(corners.astype(np.float32), last)
    large = (boxes[:, 2:] - boxes[:, :2] + 1).min(axis=1) >= MIN_PX
    boxes = np.unique(boxes[large], axis=0)
    if not len(boxes):
        boxes = np.array([[0, 0, *last[:2]]], np.float32)
    kept = np.arange(min(len(boxes), MAX_REGIONS)) * len(boxes) // min(len(boxes), MAX_REGIONS)
    chosen: NDArray[np.float32] = boxes[kept]
    return chosen


def chunks(images: ImageSet) -> list[ImageSet]:
    """Parts that are searched and stored on their own."""
    starts = range(0, len(images), CHUNK)
    return [images.take(range(at, min(at + CHUNK, len(images)))) for at in starts]


def uri_of(store: str, part: ImageSet) -> str:
    """Where the regions of a part are kept."""
    key = storage.content_key(["proposals", VERSION, part.fingerprint])
    return storage.join(storage.absolute(store), "evaluate", "proposals", f"{key[:16]}.parquet")


def ensure(store: str, part: ImageSet) -> str:
    """Search a part unless that is done; returns the URI of its file."""
    uri = uri_of(store, part)
    if storage.exists(uri):
        return uri
    cv2.setNumThreads(1)
    boxes = [search(decode(data, name)) for name, data in zip(part.keys, part.encoded, strict=True)]
    table = pa.table({"name": list(part.keys), "boxes": [b.ravel() for b in boxes]})
    with storage.staged_file(uri) as staged:
        pq.write_table(table, staged, compression="zstd")
    return uri


def read(uris: Sequence[str]) -> list[NDArray[np.float32]]:
    """Boxes (P, 4) of all images, in order."""
    found = []
    for uri in uris:
        with storage.open_input(uri) as file:
            for boxes in pq.read_table(file).column("boxes").to_pylist():
                found.append(np.array(boxes, np.float32).reshape(-1, 4))
    return found
