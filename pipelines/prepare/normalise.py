"""One untrusted image -> one upright RGB JPEG of bounded size, or the reason why not.

Pixels always go through decode and encode: bytes that an image carries behind its image data,
its metadata and its quirks end here. What may be opened, and how, is `pipelines.data.untrusted`'s.
"""

from typing import Literal, NamedTuple

import cv2

from pipelines.data import images, untrusted
from pipelines.data.images import ImageArray as Pixels
from pipelines.data.orientation import turn_upright

FaultClass = Literal[
    "unidentified",
    "unsupported_format",
    "truncated",
    "corrupt",
    "too_large",
    "tiny",
    "animated",
    "unreadable",
    "refused",
    "missing_label",
    "broken_archive",
    "duplicate_key",
    "duplicate",
]

MAX_SIDE = 65_500  # px; libjpeg neither reads nor writes a longer one
MAX_ASPECT = 32  # of the sides; training enlarges the shorter one to that of its window
SUFFIXES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WebP",
    ".avif": "AVIF",
}


class Fault(Exception):
    """An image that is quarantined: bad data, never bad luck."""

    def __init__(self, kind: FaultClass, message: str) -> None:
        """Keep the class of fault beside the message."""
        super().__init__(message)
        self.kind = kind


class Stored(NamedTuple):
    """An image as it is stored."""

    jpeg: bytes
    height: int
    width: int
    rgb_sums: tuple[int, int, int]
    """Exact sums of the stored pixels, for the mean colour of a dataset."""
    conversions: tuple[str, ...]
    """What had to be changed, such as `grey` or `rotated`."""


class Limits(NamedTuple):
    """What an image may be and how it is stored."""

    stored_side: int
    """The shorter side is at most this, px; a smaller image is never enlarged."""
    jpeg_quality: int
    max_pixels: int
    """A larger image is quarantined before it is decoded."""
    min_side: int
    """An image with a shorter side is quarantined, px."""


def normalise(data: bytes, name: str, limits: Limits) -> Stored:
    """Validate, decode, turn upright, shrink and encode one image.

    Raises:
        Fault: the bytes are not an image that can be used.
    """
    try:
        found = untrusted.decode(
            data,
            untrusted.Limits(
                max_pixels=limits.max_pixels,
                min_side=limits.min_side,
                max_side=MAX_SIDE,
                max_aspect=MAX_ASPECT,
                enough_side=limits.stored_side,
                advice="raise it with --max-pixels",
            ),
        )
    except untrusted.BadImage as error:
        raise Fault(error.kind, str(error)) from None
    conversions = list(found.conversions)
    suffix = "." + name.lower().rpartition(".")[2]
    if SUFFIXES.get(suffix, found.form) != found.form:
        conversions.append("misnamed")
    pixels = shrink(found.pixels, limits.stored_side)
    if found.orientation != 1:
        pixels = turn_upright(pixels, found.orientation)
        conversions.append("rotated")
    jpeg = images.encode(pixels, limits.jpeg_quality)
    red, green, blue, _ = (int(value) for value in cv2.sumElems(pixels))
    height, width = pixels.shape[:2]
    return Stored(jpeg, height, width, (red, green, blue), tuple(conversions))


def shrink(pixels: Pixels, side: int) -> Pixels:
    """Bring the shorter side down to `side` px; a smaller image stays as it is.

    Below a factor of 2 bilinear weights still reach every source pixel, at a fifth of the cost of
    averaging over areas (on 100 VOC photos, against Lanczos: 37.5 dB and 38.9 dB). Larger JPEGs
    come here already shrunk by the decoder.
    """
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    if shorter <= side:
        return pixels
    size = (max(side, round(width * side / shorter)), max(side, round(height * side / shorter)))
    how = cv2.INTER_LINEAR if shorter < 2 * side else cv2.INTER_AREA
    return cv2.resize(pixels, size, interpolation=how)  # type: ignore[no-any-return]
