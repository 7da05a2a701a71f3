"""Classical ways to fill a hole, as baselines under the same masks.

Each takes an image uint8 (S, S, 3) and a hole bool (S, S), True where hidden, looks at the visible
pixels only, and returns the filled image.
"""

from collections.abc import Callable
from typing import get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.feature import hog
from skimage.restoration import inpaint_biharmonic

from ce_model.transfer.metrics import nearest
from pipelines.data.classical_fill import Hole, inside, mean_colour, navier_stokes, telea
from pipelines.data.images import ImageArray
from pipelines.evaluation.settings import Baseline

Fill = Callable[[ImageArray, Hole], ImageArray]

HOG_CELL_PX = 8


def biharmonic(image: ImageArray, hole: Hole) -> ImageArray:
    """Biharmonic equation, as in scikit-image."""
    filled = inpaint_biharmonic(mean_colour(image, hole), hole, channel_axis=2)
    return inside((filled.clip(0, 1) * 255).round().astype(np.uint8), image, hole)


def shift_map(image: ImageArray, hole: Hole) -> ImageArray:
    """Copied patches, He and Sun 2012: the nearest open stand-in for content-aware fill."""
    lab = cv2.cvtColor(mean_colour(image, hole), cv2.COLOR_RGB2Lab)
    filled = cv2.cvtColor(_xphoto(lab, hole, cv2.xphoto.INPAINT_SHIFTMAP), cv2.COLOR_Lab2RGB)
    return inside(filled, image, hole)


def frequency_selective(image: ImageArray, hole: Hole) -> ImageArray:
    """Frequency-selective reconstruction, Genser, Seiler, Schilling, Kaup 2018."""
    filled = _xphoto(mean_colour(image, hole), hole, cv2.xphoto.INPAINT_FSR_FAST)
    return inside(filled, image, hole)


FILLS: dict[Baseline, Fill] = {
    "mean colour": mean_colour,
    "Telea": telea,
    "Navier-Stokes": navier_stokes,
    "biharmonic": biharmonic,
    "shift-map (patches)": shift_map,
    "FSR": frequency_selective,
}
assert tuple(FILLS) == get_args(Baseline)


def hog_features(images: NDArray[np.uint8], hole: Hole) -> NDArray[np.float64]:
    """Histograms of oriented gradients (N, D) of the visible cells of images (N, S, S, 3)."""
    rows = []
    for image in images:
        grey = cv2.cvtColor(mean_colour(image, hole), cv2.COLOR_RGB2GRAY)
        rows.append(
            hog(
                grey,
                pixels_per_cell=(HOG_CELL_PX,) * 2,
                cells_per_block=(1, 1),
                feature_vector=False,
            )
        )
    cells = np.stack(rows)  # (N, rows, columns, 1, 1, 9)
    down, across = cells.shape[1:3]
    visible = [
        not hole[i * HOG_CELL_PX :, j * HOG_CELL_PX :][:HOG_CELL_PX, :HOG_CELL_PX].any()
        for i in range(down)
        for j in range(across)
    ]
    found: NDArray[np.float64] = cells.reshape(len(cells), down * across, -1)[:, visible]
    return found.reshape(len(cells), -1)


def neighbour_fill(
    images: NDArray[np.uint8],
    hole: Hole,
    features: NDArray[np.float64],
    database: NDArray[np.uint8],
    database_features: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """Copy the hole from the training image whose visible context is nearest (table 1)."""
    best = nearest(features, database_features, 1)[:, 0]
    filled: NDArray[np.uint8] = np.where(hole[None, :, :, None], database[best], images)
    return filled


def _xphoto(image: ImageArray, hole: Hole, how: int) -> ImageArray:
    """cv2.xphoto counts the other way round: 0 is hidden."""
    cv2.setRNGSeed(0)
    filled = np.empty_like(image)
    cv2.xphoto.inpaint(image, np.where(hole, 0, 255).astype(np.uint8), filled, how)
    return filled
