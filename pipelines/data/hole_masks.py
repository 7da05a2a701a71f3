"""Masks as people have them -> the hole of an image, or a question where it is not clear.

White on black, black on white, strokes on a transparent layer, a photograph with an erased part;
of any format that `untrusted` reads, of another size than the image. What was assumed is said.
"""

from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from ce_model.masks import Strategy, mask_for
from pipelines.data import untrusted
from pipelines.data.untrusted import BadImage, Limits, Planes

Hole = NDArray[np.bool_]
"""bool (H, W), True where to fill."""
Polarity = Literal["auto", "white", "black", "opaque", "transparent"]
POLARITIES: tuple[Polarity, ...] = get_args(Polarity)

# Black beside a white shape comes out of a JPEG as grey: up to 39 at quality 75, 125 at 30.
LOSSY_NOISE = 127
FRAME_SHARE = 0.9  # of the border; a mask with more of it hidden, and half of all, is doubtful
SAME_ASPECT = 0.02  # relative difference up to which a mask of another size is resized
DRAWN_SIDE = 128  # px; holes of a strategy are drawn at this size and scaled


class BadMask(ValueError):
    """A mask that cannot be used; the message says why and what to do."""


class HoleMask(NamedTuple):
    """A hole and what was assumed to find it."""

    hole: Hole
    note: str
    """Empty where nothing had to be assumed."""


def read_mask(
    data: bytes,
    shape: tuple[int, int],
    *,
    polarity: Polarity = "auto",
    limits: Limits = untrusted.DEFAULT,
) -> HoleMask:
    """An encoded mask -> the hole of an image of `shape` (H, W).

    Args:
        data: JPEG, PNG, WebP or AVIF.
        shape: height and width of the upright image.
        polarity: what is filled: `white` is all that is not black, `black` all that is not white,
            `opaque` and `transparent` go by alpha. `auto` takes `opaque` for strokes of one colour
            on a transparent layer, `transparent` for an image with an erased part, else `white`.
        limits: of the mask's size.

    Raises:
        BadMask: unreadable, empty, full, of another shape, or not clear.
    """
    try:
        planes = untrusted.open_planes(data, limits)
    except BadImage as error:
        raise BadMask(f"its mask: {error}") from None
    hole, note = _hole(planes, polarity)
    if not hole.any():
        raise BadMask(
            f"the mask hides nothing: {_meaning(polarity, planes)} is filled, and there is none; "
            "name what is filled as mask polarity: white, black, opaque or transparent"
        )
    if hole.all():
        raise BadMask(
            "the mask hides everything, so there is nothing to fill the image from; name what is "
            "filled as mask polarity: white, black, opaque or transparent"
        )
    if polarity == "auto" and _doubtful(hole):
        raise BadMask(
            f"the mask hides {hole.mean():.0%} of the image and its border, so it may be meant the "
            "other way round; say what is filled: mask polarity black, or white if it is so"
        )
    if hole.shape != shape:
        hole, resized = resize_hole(hole, shape), hole.shape[::-1]
        if hole.all():
            raise BadMask("the mask hides everything once it has the size of the image")
        note = "; ".join(filter(None, (note, f"the mask was resized from {_px(resized)}")))
    return HoleMask(hole, note)


def _hole(planes: Planes, polarity: Polarity) -> tuple[Hole, str]:
    values, alpha = planes.values, planes.alpha
    top = np.iinfo(values.dtype).max
    lossy = planes.form != "PNG"
    noise = LOSSY_NOISE if lossy else 0
    if polarity in ("opaque", "transparent"):
        if alpha is None:
            raise BadMask(f"mask polarity is {polarity}, and the mask has no alpha channel")
        return (alpha > noise if polarity == "opaque" else alpha < top - noise), ""
    if polarity == "auto" and alpha is not None and alpha.min() != alpha.max():
        opaque = values[alpha > top // 2]
        if len(opaque) == 0 or (opaque == opaque[0]).all():
            return alpha > noise, "the mask's opaque pixels were taken for the hole"
        if len(np.unique(opaque.max(axis=1))) == 2:
            raise BadMask(
                "the mask has black, white and transparent pixels; say what is filled: mask "
                "polarity white, black, opaque or transparent"
            )
        return alpha < top - noise, "the mask's transparent pixels were taken for the hole"
    if polarity == "black":
        return values.min(axis=2) < top - noise, ""
    white = values.max(axis=2) > noise
    if values.any() and not white.any():
        raise BadMask("the mask is a dark JPEG; white is filled, or save it as PNG")
    return white, ""


def _meaning(polarity: Polarity, planes: Planes) -> str:
    return "what is not black" if polarity in ("auto", "white") else f"what is {polarity}"


def _doubtful(hole: Hole) -> bool:
    border = np.concatenate([hole[0], hole[-1], hole[:, 0], hole[:, -1]])
    return bool(hole.mean() > 0.5 and border.mean() > FRAME_SHARE)


def resize_hole(hole: Hole, shape: tuple[int, int]) -> Hole:
    """The hole of a mask of another size; True where any part of the pixel is hidden.

    Raises:
        BadMask: the sides have another ratio, so the mask is not of this image.
    """
    height, width = shape
    ratio = hole.shape[1] * height / (hole.shape[0] * width)
    # A mask that was shrunk with its image may have lost half a pixel of a side to rounding.
    rounding = 1 / (2 * min(hole.shape)) + 1 / (2 * min(shape))
    if abs(ratio - 1) > max(SAME_ASPECT, rounding):
        raise BadMask(
            f"the mask has {_px(hole.shape[::-1])} and the image {_px((width, height))}; another "
            "size is resized, but these differ in shape"
        )
    if hole.shape[0] >= height and hole.shape[1] >= width:
        share = cv2.resize(hole.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(share > 0)
    return touched_pixels(hole, height, width)


def strategy_hole(
    strategy: Strategy, seed: int, key: str, shape: tuple[int, int], *, overlap: int = 0
) -> Hole:
    """A hole of a strategy, scaled to an image of `shape` (H, W), without a ring of `overlap`.

    The ring is part of what a network with a 64 px centre has to see; 4 px of 128.

    Raises:
        BadMask: the image is too small for one.
    """
    drawn = mask_for(seed, strategy, DRAWN_SIDE, key, 0)
    # As `mask_tensors.shrink`: beyond the border of the image there is nothing to show.
    ring = np.ones((2 * overlap + 1,) * 2, np.uint8)
    shown = cv2.erode(drawn.astype(np.uint8), ring) > 0
    hole: Hole = ~touched_pixels(~shown, *shape)  # no pixel that the network sees a part of
    if not hole.any():
        raise BadMask(f"{shape[1]} x {shape[0]} px; too small for a drawn hole")
    return hole


def touched_pixels(hole: Hole, height: int, width: int) -> Hole:
    """The mask at another size: True where any part of the pixel is True; exact at any scale."""
    sums = np.pad(hole.astype(np.int32).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    (top, bottom), (left, right) = _spans(hole.shape[0], height), _spans(hole.shape[1], width)
    below, above = sums[bottom], sums[top]
    found: Hole = below[:, right] - above[:, right] - below[:, left] + above[:, left] > 0
    return found


def _spans(before: int, after: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every new pixel the first old one it overlaps, and one past the last."""
    pixel = np.arange(after)
    return pixel * before // after, -(-(pixel + 1) * before // after)


def _px(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]} px"
