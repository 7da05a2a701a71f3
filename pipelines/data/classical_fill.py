"""Quick ways to fill a hole without training: what a trained network is held against.

Each takes an image uint8 (H, W, 3) and a hole bool (H, W), True where hidden, looks at the visible
pixels only, and returns the filled image. Slower methods are in the evaluation.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.data.images import Picture

Hole = NDArray[np.bool_]

RADIUS_PX = 5.0  # of Telea and Navier-Stokes


def mean_colour(picture: Picture, hole: Hole) -> Picture:
    """The mean of the visible pixels of this image."""
    filled = picture.copy()
    filled[hole] = picture[~hole].mean(axis=0).round()
    return filled


def telea(picture: Picture, hole: Hole) -> Picture:
    """Fast marching, Telea 2004."""
    return _opencv(picture, hole, cv2.INPAINT_TELEA)


def navier_stokes(picture: Picture, hole: Hole) -> Picture:
    """Fluid dynamics, Bertalmio, Bertozzi, Sapiro 2001."""
    return _opencv(picture, hole, cv2.INPAINT_NS)


def inside(filled: Picture, picture: Picture, hole: Hole) -> Picture:
    """Visible pixels stay as they are."""
    pasted: Picture = np.where(hole[:, :, None], filled, picture)
    return pasted


def _opencv(picture: Picture, hole: Hole, how: int) -> Picture:
    filled = cv2.inpaint(mean_colour(picture, hole), hole.astype(np.uint8), RADIUS_PX, how)
    return inside(filled, picture, hole)
