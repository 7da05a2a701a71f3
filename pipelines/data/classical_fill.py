"""Quick ways to fill a hole without training: what a trained network is held against.

Each takes an image uint8 (H, W, 3) and a hole bool (H, W), True where hidden, looks at the visible
pixels only, and returns the filled image. Slower methods are in the evaluation.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.data.images import ImageArray

Hole = NDArray[np.bool_]

RADIUS_PX = 5.0  # of Telea and Navier-Stokes


def mean_colour(image: ImageArray, hole: Hole) -> ImageArray:
    """The mean of the visible pixels of this image."""
    filled = image.copy()
    filled[hole] = image[~hole].mean(axis=0).round()
    return filled


def telea(image: ImageArray, hole: Hole) -> ImageArray:
    """Fast marching, Telea 2004."""
    return _opencv(image, hole, cv2.INPAINT_TELEA)


def navier_stokes(image: ImageArray, hole: Hole) -> ImageArray:
    """Fluid dynamics, Bertalmio, Bertozzi, Sapiro 2001."""
    return _opencv(image, hole, cv2.INPAINT_NS)


def inside(filled: ImageArray, image: ImageArray, hole: Hole) -> ImageArray:
    """Visible pixels stay as they are."""
    pasted: ImageArray = np.where(hole[:, :, None], filled, image)
    return pasted


def _opencv(image: ImageArray, hole: Hole, how: int) -> ImageArray:
    filled = cv2.inpaint(mean_colour(image, hole), hole.astype(np.uint8), RADIUS_PX, how)
    return inside(filled, image, hole)
