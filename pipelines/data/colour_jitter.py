"""Random changes of an image's colours: one matrix per image, drawn from (seed, epoch, key).

Brightness, contrast, saturation and hue change in this order, and a share of the images becomes
grey. Each is an affine map of the colours of a pixel, so all together are one, which costs one pass
over the pixels; values are cut to 0 to 255 at the end alone.

Source: Chen et al., "A Simple Framework for Contrastive Learning", 2020, arXiv:2002.05709,
appendix A, for the ranges that are usual; hue as a rotation in YIQ, as in its reference code's
image library.
"""

import hashlib
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.data.images import ImageArray
from pipelines.errors import UserError

LUMA = np.array([0.299, 0.587, 0.114])  # of red, green, blue in the brightness of a pixel
TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
FROM_YIQ = np.linalg.inv(TO_YIQ)
Shares = tuple[float, float, float, float, float]
"""Where in their ranges the changes and the choice of grey lie, 0 to 1, as `matrix` names them."""


@dataclass(frozen=True, kw_only=True)
class ColourJitter:
    """Ranges of the changes."""

    brightness: float = 0.0
    """A factor from 1 - brightness to 1 + brightness."""
    contrast: float = 0.0
    """A factor of the distance from the image's mean brightness, in the same way."""
    saturation: float = 0.0
    """A factor of the distance of a pixel from its grey, in the same way."""
    hue: float = 0.0
    """Largest turn of the colour circle, in either direction; 0.5 is half of it."""
    grey: float = 0.0
    """Share of the images that become grey."""

    def __post_init__(self) -> None:
        """Refuse what is no range."""
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0),
                           ("hue", 0.5), ("grey", 1.0)):  # fmt: skip
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise UserError(
                    f"{name} is {value}; it must be 0 to {most:g} (--colour-jitter BRIGHTNESS "
                    "CONTRAST SATURATION HUE, --grey SHARE)"
                )

    def matrix(self, drawn: Shares, mean: float) -> NDArray[np.float64]:
        """What maps red, green, blue and 1 to the new colours: (3, 4).

        Args:
            drawn: where in the ranges.
            mean: brightness of the image, 0 to 255.
        """
        bright, strong, full, turned, chosen = drawn
        brightness, contrast, saturation = (
            1 + most * (2 * where - 1)
            for most, where in (
                (self.brightness, bright), (self.contrast, strong), (self.saturation, full),
            )
        )  # fmt: skip
        angle = 2 * math.pi * self.hue * (2 * turned - 1)
        turn = np.array([
            [1, 0, 0],
            [0, math.cos(angle), -math.sin(angle)],
            [0, math.sin(angle), math.cos(angle)],
        ])  # fmt: skip
        grey = np.tile(LUMA, (3, 1))
        colours = FROM_YIQ @ turn @ TO_YIQ @ (saturation * np.eye(3) + (1 - saturation) * grey)
        if chosen < self.grey:
            colours = grey @ colours
        # Each of these maps keeps grey as it is, and so what contrast adds.
        added = (1 - contrast) * brightness * mean
        return np.hstack([contrast * brightness * colours, np.full((3, 1), added)])


def draw(seed: int, epoch: int, key: str) -> Shares:
    """The draw of an image in an epoch."""
    bits = hashlib.blake2b(f"{seed}/{epoch}/{key}/colour".encode(), digest_size=10).digest()
    values = np.frombuffer(bits, "<u2") / 65535
    bright, strong, full, turned, chosen = values.tolist()
    return bright, strong, full, turned, chosen * 65535 / 65536  # below 1: share 1 is all


def change(image: ImageArray, jitter: ColourJitter, drawn: Shares) -> ImageArray:
    """An image uint8 (H, W, 3) with other colours."""
    mean = float(np.dot(cv2.mean(image)[:3], LUMA))
    changed: ImageArray = cv2.transform(image, jitter.matrix(drawn, mean))
    return changed
