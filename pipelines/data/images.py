"""Stored JPEG -> the square uint8 image a network sees."""

from typing import Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

ImageArray = NDArray[np.uint8]
"""uint8 (H, W, 3), RGB, upright."""

Codec = Literal["simplejpeg", "pillow"]


def decode(jpeg: bytes | memoryview) -> ImageArray:
    """A JPEG of the shard contract -> uint8 (H, W, 3) RGB."""
    image: ImageArray = simplejpeg.decode_jpeg(jpeg, colorspace="RGB", fastdct=False)
    return image


def encode(image: ImageArray, quality: int) -> bytes:
    """uint8 (H, W, 3) RGB -> JPEG with 4:2:0 chroma, the usual choice for photographs."""
    jpeg: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    return jpeg


def resize_shorter(image: ImageArray, shorter: int) -> ImageArray:
    """Keep the aspect ratio and bring the shorter side to `shorter` px."""
    height, width = image.shape[:2]
    if min(height, width) == shorter:
        return image
    scale = shorter / min(height, width)
    size = (max(shorter, round(width * scale)), max(shorter, round(height * scale)))
    # INTER_AREA averages what it shrinks (no aliasing); it cannot enlarge smoothly.
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized: ImageArray = cv2.resize(image, size, interpolation=how)
    return resized


def square(image: ImageArray, side: int, shorter: int, down: float, across: float) -> ImageArray:
    """A side x side window of the image.

    Args:
        image: uint8 (H, W, 3).
        side: px.
        shorter: the image's shorter side is first resized to this many px; 0 keeps the stored
            size. An image smaller than the window is enlarged to it.
        down, across: where the window lies, 0 (top, left) to 1 (bottom, right); 0.5 is the centre.
    """
    wanted = shorter or min(image.shape[:2])
    image = resize_shorter(image, max(wanted, side))
    top = round(down * (image.shape[0] - side))
    left = round(across * (image.shape[1] - side))
    return image[top : top + side, left : left + side]


def resized_crop(
    image: ImageArray, size: tuple[int, int], side: int, down: float, across: float
) -> ImageArray:
    """A window of an image, resized to side x side.

    Args:
        image: uint8 (H, W, 3).
        size: height and width of the window, px, no larger than the image.
        side: px.
        down, across: where the window lies, 0 (top, left) to 1 (bottom, right).
    """
    top = round(down * (image.shape[0] - size[0]))
    left = round(across * (image.shape[1] - size[1]))
    window = image[top : top + size[0], left : left + size[1]]
    how = cv2.INTER_AREA if min(size) > side else cv2.INTER_LINEAR
    resized: ImageArray = cv2.resize(window, (side, side), interpolation=how)
    return resized
