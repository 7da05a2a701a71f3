"""Images and their holes, read and checked before they are filled."""

from typing import NamedTuple

from ce_model.masks import Strategy
from pipelines import storage
from pipelines.data import untrusted
from pipelines.data.hole_masks import BadMask, Hole, Polarity, read_mask, strategy_hole
from pipelines.data.images import ImageArray
from pipelines.data.untrusted import BadImage
from pipelines.inpaint.sources import Source


class HoleSource(NamedTuple):
    """Where the hole of an image comes from: its mask, or a strategy."""

    strategy: Strategy | None
    seed: int
    polarity: Polarity = "auto"


class UnreadableImage(ValueError):
    """This image cannot be filled; the others can."""


def read_image(
    name: str, source: Source, holes: HoleSource, *, overlap: int
) -> tuple[ImageArray, Hole, str]:
    """An image, uint8 (H, W, 3) RGB, its hole, bool (H, W), and what was assumed of the mask.

    Args:
        name: of which a drawn hole depends.
        source: where image and mask are.
        holes: where the hole comes from.
        overlap: ring that a drawn hole leaves visible, of the model's objective, px of 128.

    Raises:
        UnreadableImage: one of both cannot be read, or they do not fit.
    """
    try:
        image = untrusted.open_rgb(_bytes(source.image))
        shape = image.shape[:2]
        if holes.strategy is not None:
            return (
                image,
                strategy_hole(holes.strategy, holes.seed, name, shape, overlap=overlap),
                "",
            )
        if source.mask is None:
            raise UnreadableImage("it has no mask")
        hole, note = read_mask(_bytes(source.mask), shape, polarity=holes.polarity)
        return image, hole, note
    except (BadImage, BadMask) as error:
        raise UnreadableImage(str(error)) from None


def _bytes(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        raise UnreadableImage(f"'{uri}' is not there") from None
