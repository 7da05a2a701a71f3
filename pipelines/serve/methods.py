"""What a filling is compared with: methods without training."""

from collections.abc import Callable
from functools import partial

import numpy as np

from pipelines.data import classical_fill
from pipelines.data.hole_masks import Hole
from pipelines.data.images import ImageArray
from pipelines.models import fill

CONTEXT_PX = 32  # around the box of all holes

Method = Callable[[ImageArray, Hole], ImageArray]


def _near(method: Method, image: ImageArray, hidden: Hole) -> ImageArray:
    """What a method makes of the holes and what is near them; nothing else is changed."""
    filled = image.copy()
    part = _around(hidden)
    found = method(image[part], hidden[part])
    filled[part][hidden[part]] = found[hidden[part]]
    return filled


def _around(hidden: Hole) -> tuple[slice, slice]:
    """The box of all that is hidden, with context."""
    spans = []
    for axis in (1, 0):
        held = np.flatnonzero(hidden.any(axis=axis))
        spans.append(slice(max(int(held[0]) - CONTEXT_PX, 0), int(held[-1]) + CONTEXT_PX + 1))
    return spans[0], spans[1]


METHODS: dict[str, Method] = {
    "telea": partial(_near, classical_fill.telea),
    "smooth": partial(_near, fill.smooth_start),  # from which the preset unet starts
    "mean-colour": classical_fill.mean_colour,
}
TITLES = {
    "telea": "Telea (no training)",
    "smooth": "Smooth (no training)",
    "mean-colour": "Mean colour of the image",
}
