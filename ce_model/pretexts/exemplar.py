"""Which image is this? Each image, transformed anew each time, is a class of its own.

The transformations are the paper's: translation, scale, rotation, contrast and colour. A view of
96 px is read from an image of 128 px (the paper: patches of 32 px, found where gradients are
large). What differs: the principal components of all pixels are those of grey, red against blue and
green against magenta, which come near them; the powers of saturation and value are left out, since
all colours change by one matrix and one addition.

Source: Dosovitskiy, Springenberg, Riedmiller, Brox, "Discriminative Unsupervised Feature Learning
with Convolutional Neural Networks", NIPS 2014, arXiv:1406.6909, section 2.1.
"""

import math

import torch
from torch import Tensor

from ce_model.pretexts.draws import between, uniform
from ce_model.pretexts.samples import Samples
from ce_model.pretexts.windows import read_windows

VIEW_PX = 96
SHIFT = 0.2  # of the side, at most
SCALES = (0.7, 1.4)
TURN_DEGREES = 20.0
CONTRASTS = (0.5, 2.0)  # of each component
HUE = 0.1  # of a turn of the colour circle, at most
VALUES = (0.7, 1.4)
ADDED = 0.1  # of the range of a colour, at most
NUM_DRAWS = 10


def make_samples(image: Tensor, origin: Tensor) -> Samples:
    """One view of each image; its class is its row.

    Shape:
        image: uint8 (B, S, S, 3); origin: see `draws`; views: (B, 1, 3, 96, 96).
    """
    drawn = uniform(origin, NUM_DRAWS)
    side = float(VIEW_PX)
    views = read_windows(
        image,
        centre=between(drawn[:, 0:2], -SHIFT * side, SHIFT * side),
        degrees=between(drawn[:, 2], -TURN_DEGREES, TURN_DEGREES),
        extent=side / _factor(drawn[:, 3], SCALES),
        side=VIEW_PX,
    )
    return Samples(change_colours(views, drawn[:, 4:]).unsqueeze(1), origin[:, :1])


def change_colours(x: Tensor, drawn: Tensor) -> Tensor:
    """Contrast of three components, hue, value and an addition, each drawn for each image.

    Shape:
        x: float (B, 3, H, W) in [-1, 1], as the result; drawn: (B, 6), from 0 to 1.
    """
    grey, warm, magenta = (
        part * _each_image(_factor(drawn[:, at], CONTRASTS))
        for at, part in enumerate(_components(x))
    )
    angle = between(drawn[:, 3], -HUE, HUE) * (2 * math.pi)
    cos, sin = _each_image(angle.cos()), _each_image(angle.sin())
    colours = _colours(grey, cos * warm - sin * magenta, sin * warm + cos * magenta)
    value = _each_image(_factor(drawn[:, 4], VALUES)).unsqueeze(1)
    added = _each_image(between(drawn[:, 5], -ADDED, ADDED)).unsqueeze(1)
    # As if black were 0 and white 1.
    return (colours * value + (value - 1) + 2 * added).clamp(-1, 1)


def _factor(share: Tensor, ends: tuple[float, float]) -> Tensor:
    """A share as a factor, drawn evenly in its logarithm."""
    return between(share, math.log(ends[0]), math.log(ends[1])).exp()


def _each_image(values: Tensor) -> Tensor:
    return values.float().view(-1, 1, 1)


def _components(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Along (1, 1, 1), (1, 0, -1) and (1, -2, 1), each of length 1: (B, H, W)."""
    red, green, blue = x.unbind(1)
    return (
        (red + green + blue) / math.sqrt(3),
        (red - blue) / math.sqrt(2),
        (red - 2 * green + blue) / math.sqrt(6),
    )


def _colours(grey: Tensor, warm: Tensor, magenta: Tensor) -> Tensor:
    """The inverse of `_components`."""
    grey, warm, magenta = grey / math.sqrt(3), warm / math.sqrt(2), magenta / math.sqrt(6)
    return torch.stack([grey + warm + magenta, grey - 2 * magenta, grey - warm + magenta], dim=1)
