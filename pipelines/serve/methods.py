"""What a filling is compared with: methods without training."""

from collections.abc import Callable

import cv2
import numpy as np

from pipelines.data.hole_masks import Hole
from pipelines.data.images import Picture
from pipelines.models.fill import smooth

RADIUS_PX = 5  # of the neighbourhood of a pixel, as in evaluation
CONTEXT_PX = 32  # around the box of all holes


def mean_colour(image: Picture, hidden: Hole) -> Picture:
    """The mean colour of the image's visible pixels."""
    filled = image.copy()
    filled[hidden] = image[~hidden].mean(axis=0).round()
    return filled


def smooth_start(image: Picture, hidden: Hole) -> Picture:
    """The surroundings continued smoothly, from which the preset unet starts."""
    filled = image.copy()
    part = _around(hidden)
    colours = smooth(image[part].astype(np.float32), ~hidden[part])
    filled[part][hidden[part]] = colours[hidden[part]].round()
    return filled


def telea(image: Picture, hidden: Hole) -> Picture:
    """Telea, "An image inpainting technique based on the fast marching method", 2004."""
    filled = image.copy()
    part = _around(hidden)
    blanked = np.where(hidden[part][..., None], np.uint8(0), image[part])
    mask = hidden[part].astype(np.uint8)
    found = cv2.inpaint(blanked, mask, RADIUS_PX, cv2.INPAINT_TELEA)
    filled[part][hidden[part]] = found[hidden[part]]
    return filled


def _around(hidden: Hole) -> tuple[slice, slice]:
    """The box of all that is hidden, with context."""
    spans = []
    for axis in (1, 0):
        held = np.flatnonzero(hidden.any(axis=axis))
        spans.append(slice(max(int(held[0]) - CONTEXT_PX, 0), int(held[-1]) + CONTEXT_PX + 1))
    return spans[0], spans[1]


METHODS: dict[str, Callable[[Picture, Hole], Picture]] = {
    "telea": telea,
    "smooth": smooth_start,
    "mean-colour": mean_colour,
}
TITLES = {
    "telea": "Telea (no training)",
    "smooth": "Smooth (no training)",
    "mean-colour": "Mean colour of the image",
}
