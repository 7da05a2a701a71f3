"""Sample images for a first run: crops of ten photographs that the dependencies carry.

scikit-image and scikit-learn ship these photographs under free licences. Each is one class. The
right part of a photograph is for validation; no training crop touches it.
"""

from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pipelines import storage
from pipelines.data import images
from pipelines.data.images import ImageArray

VERSION = 1  # raise it when the crops change
PHOTOGRAPHS = {
    "astronaut": ("skimage.data", "astronaut.png"),
    "chelsea": ("skimage.data", "chelsea.png"),
    "china": ("sklearn.datasets.images", "china.jpg"),
    "coffee": ("skimage.data", "coffee.png"),
    "flower": ("sklearn.datasets.images", "flower.jpg"),
    "hubble": ("skimage.data", "hubble_deep_field.jpg"),
    "ihc": ("skimage.data", "ihc.png"),
    "motorcycle": ("skimage.data", "motorcycle_left.png"),
    "retina": ("skimage.data", "retina.jpg"),
    "rocket": ("skimage.data", "rocket.jpg"),
}
PHOTOGRAPH_SHORTER = 448  # px: brings the photographs to one scale
VALIDATION_SHARE = 0.34  # of the width
TRAIN_CROPS, VALIDATION_CROPS = 130, 16  # per photograph
CROP_SIDES = (128, 192)  # px; validation crops are 128 px up to what fits into their part
QUALITY = 95


class Crop(NamedTuple):
    """A square of a photograph, px."""

    top: int
    left: int
    side: int


def ensure(store: str) -> str:
    """Write the sample images in class folders unless they are there; returns their folder."""
    folder = storage.join(storage.absolute(store), f"samples-{VERSION}")
    done = storage.join(folder, "done.json")
    if storage.exists(done):
        return storage.join(folder, "pictures")
    for name in PHOTOGRAPHS:
        image = photograph(name)
        for split, crops in cuts(image, name).items():
            for number, crop in enumerate(crops):
                jpeg = images.encode(_cut(image, crop), QUALITY)
                path = storage.join(folder, "pictures", split, name, f"{number:04d}.jpg")
                storage.publish(path, jpeg)
    storage.publish_json(done, {"photographs": sorted(PHOTOGRAPHS)})
    return storage.join(folder, "pictures")


def photograph(name: str) -> ImageArray:
    """uint8 (H, W, 3), shorter side PHOTOGRAPH_SHORTER."""
    package, file = PHOTOGRAPHS[name]
    data = Path(str(files(package) / file)).read_bytes()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return images.resize_shorter(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), PHOTOGRAPH_SHORTER)


def cuts(image: ImageArray, name: str) -> dict[str, list[Crop]]:
    """Where the crops of a photograph lie: train left of a line, val right of it."""
    height, width = image.shape[:2]
    line = round(width * (1 - VALIDATION_SHARE))
    rng = np.random.Generator(np.random.PCG64([VERSION, *name.encode()]))
    return {
        "train": [_draw(rng, height, 0, line) for _ in range(TRAIN_CROPS)],
        "val": [_draw(rng, height, line, width) for _ in range(VALIDATION_CROPS)],
    }


def _draw(rng: np.random.Generator, height: int, left: int, right: int) -> Crop:
    side = int(rng.integers(CROP_SIDES[0], min(CROP_SIDES[1], right - left) + 1))
    top = int(rng.integers(height - side + 1))
    return Crop(top, int(rng.integers(left, right - side + 1)), side)


def _cut(image: ImageArray, crop: Crop) -> ImageArray:
    return image[crop.top : crop.top + crop.side, crop.left : crop.left + crop.side]
