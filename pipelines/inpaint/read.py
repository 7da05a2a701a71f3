"""Images and their masks, read and checked before they are filled."""

from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ce_model.mask_tensors import shrink
from ce_model.masks import Strategy, mask_for
from ce_model.networks import output_side
from pipelines import storage
from pipelines.data import untrusted
from pipelines.data.untrusted import BadImage
from pipelines.models.files import LoadedModel

# Black beside a white shape comes out of a JPEG as grey: up to 39 at quality 75, 125 at 30.
JPEG_NOISE = 127


Pixels = NDArray[np.uint8]


Hole = NDArray[np.bool_]


class HoleSource(NamedTuple):
    """Where the hole of an image comes from."""

    masks_uri: str | None
    strategy: Strategy | None
    seed: int


class UnreadableImage(ValueError):
    """This image cannot be filled; the others can."""


def output_uri(name: str) -> str:
    """Name of a filled image."""
    return str(PurePosixPath(name).with_suffix(".png"))


def read_image(
    name: str, *, images_uri: str, holes: HoleSource, model: LoadedModel
) -> tuple[Pixels, Hole]:
    """An image, uint8 (H, W, 3) RGB, and its hole, bool (H, W).

    Raises:
        BadPicture: it cannot be read, or the hole does not fit it or the model.
    """
    data = _bytes(storage.join(images_uri, name))
    try:
        picture = untrusted.open_rgb(data)
    except BadImage as error:
        raise UnreadableImage(str(error)) from None
    height, width = picture.shape[:2]
    if holes.strategy is not None:
        drawn = mask_for(holes.seed, holes.strategy, model.side, name, 0)
        shown = shrink(torch.from_numpy(drawn)[None], model.objective.overlap)[0].numpy()
        hole = ~touched_pixels(~shown, height, width)  # no pixel that the network sees a part of
        if not hole.any():
            raise UnreadableImage(f"{width} x {height} px; too small for a drawn hole")
    else:
        assert holes.masks_uri is not None
        data = _bytes(_mask_uri(holes.masks_uri, name))
        try:
            mask = untrusted.open_planes(data)
        except BadImage as error:
            raise UnreadableImage(f"its mask: {error}") from None
        # A grey value of a colour may be rounded to black, one of 16 bits cut off.
        hole = mask.values.max(axis=2) > (JPEG_NOISE if mask.form == "JPEG" else 0)
        if mask.values.any() and not hole.any():
            raise UnreadableImage("the mask is a dark JPEG; white is filled, or save it as PNG")
    if hole.shape != (height, width):
        raise UnreadableImage(f"the mask has {hole.shape[::-1]} px, the image {(width, height)}")
    if not (touched_pixels(hole, model.side, model.side) & ~fillable_pixels(model)).any():
        return picture, hole
    raise UnreadableImage(
        "the hole reaches outside the middle of the image, which is all that this model fills"
    )


def _mask_uri(masks: str, name: str) -> str:
    """The mask of the same name, or the same name as PNG."""
    same = storage.join(masks, name)
    return same if storage.exists(same) else storage.join(masks, output_uri(name))


def _bytes(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        raise UnreadableImage(f"'{uri}' is not there") from None


def fillable_pixels(model: LoadedModel) -> Hole:
    """bool (S, S): where a hole may be; a central prediction needs its ring of known context."""
    side, inner = model.side, output_side(model.network)
    first = (side - inner) // 2 + model.objective.overlap
    allowed = np.zeros((side, side), bool)
    allowed[first : side - first, first : side - first] = True
    return allowed


def touched_pixels(hole: Hole, height: int, width: int) -> Hole:
    """The mask at another size: True where any part of the pixel is True; exact at any scale."""
    sums = np.pad(hole.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    (top, bottom), (left, right) = _spans(hole.shape[0], height), _spans(hole.shape[1], width)
    below, above = sums[bottom], sums[top]
    found: Hole = below[:, right] - above[:, right] - below[:, left] + above[:, left] > 0
    return found


def _spans(before: int, after: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every new pixel the first old one it overlaps, and one past the last."""
    pixel = np.arange(after)
    return pixel * before // after, -(-(pixel + 1) * before // after)
