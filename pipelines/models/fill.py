"""Fill the holes of one photograph of any size with any model; the rest stays bit by bit.

Each hole (holes that lie near each other are one) gets a crop with context around it: at its own
resolution where the network can see all of the hole at once, else shrunk until it can. Where the
crop leaves the photograph it is continued by reflection. A network that predicts only the middle
of its image gets the hole moved into the middle, so it fills a hole anywhere. What is hidden is
never seen, neither by the network nor through a reflection or a shrunken pixel.

The prediction is joined to its surroundings without a seam: the difference between photograph and
prediction on the rim is continued smoothly into the hole and added (a membrane, as in Perez,
Gangnet and Blake, "Poisson Image Editing", SIGGRAPH 2003).
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ce_model import training
from ce_model.networks import output_side, predicts_images
from ce_model.push_pull import smooth_fill
from pipelines.data.images import ImageArray
from pipelines.errors import UserError
from pipelines.models.crops import ROUNDS, Box, Crop, Hole, plan_crops, reach_of
from pipelines.models.files import LoadedModel

BATCH = 16  # crops that the network sees at once
RIM_PX = 6  # width of the visible rim to which a filling is joined


class View(NamedTuple):
    """What a network sees of a crop.

    Shape:
        square: uint8 (H, W, 3); hole: bool (H, W), what it has to fill.
    """

    square: ImageArray
    hole: Hole


def fill_photograph(model: LoadedModel, image: ImageArray, hidden: Hole) -> ImageArray:
    """Fill one photograph; see `fill_photographs`."""
    return fill_photographs(model, [image], [hidden])[0]


def fill_photographs(
    model: LoadedModel, images: Sequence[ImageArray], hidden: Sequence[Hole]
) -> list[ImageArray]:
    """Fill photographs of any sizes, many holes in one pass of the network.

    Args:
        model: any context encoder, on any device.
        images: uint8 (H, W, 3) RGB each.
        hidden: bool (H, W) each, True where to fill; nothing is filled where none is.

    Returns:
        uint8 (H, W, 3) each; outside of the hole the bits of the image.

    Raises:
        UserError: sizes differ, a mask hides the whole photograph, or the model fills nothing.
    """
    if not predicts_images(model.network):
        raise UserError(
            f"the model is of preset {model.network.preset}, which learns features and fills no "
            "holes; take one of preset unet, inpaint or alexnet"
        )
    for image, hole in zip(images, hidden, strict=True):
        _check(image, hole)
    filled = [image.copy() for image in images]
    left = [hole.copy() for hole in hidden]
    reach = reach_of(model)
    crops = [(n, crop) for n, hole in enumerate(hidden) for crop in plan_crops(hole, reach)]
    for number in range(ROUNDS):
        part = [(n, crop) for n, crop in crops if crop.round == number]
        for first in range(0, len(part), BATCH):
            batch = part[first : first + BATCH]
            views = [_view(model, filled[n], left[n], crop) for n, crop in batch]
            for (n, crop), colours in zip(batch, _predict(model, views), strict=True):
                _paste(filled[n], left[n], crop, colours, model)
        for n, crop in part:
            left[n][crop.box] = False
    return filled


def _check(image: ImageArray, hole: Hole) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(
            f"an image has shape {image.shape} and type {image.dtype}; it must be uint8 (H, W, 3)"
        )
    if hole.shape != image.shape[:2] or hole.dtype != np.bool_:
        raise UserError(
            f"a mask has shape {hole.shape} and type {hole.dtype}, its image {image.shape}; the "
            "mask must be bool (H, W)"
        )
    if hole.size and hole.all():
        raise UserError("the mask hides the whole image, so there is nothing to fill it from")


class Place(NamedTuple):
    """The part of a crop inside the photograph, along one axis."""

    inside: slice
    """Px of the photograph."""
    first: int
    """Where it begins on the canvas, px."""
    size: int
    """Its size on the canvas, px."""


def _places(shape: tuple[int, ...], crop: Crop) -> tuple[Place, Place]:
    places = []
    for start, size in ((crop.top, shape[0]), (crop.left, shape[1])):
        inside = slice(max(start, 0), min(start + crop.side, size))
        first = (inside.start - start) * crop.canvas // crop.side
        after = -(-(inside.stop - start) * crop.canvas // crop.side)
        places.append(Place(inside, first, after - first))
    return places[0], places[1]


def _view(model: LoadedModel, image: ImageArray, hidden: Hole, crop: Crop) -> View:
    """The crop at the network's scale; no hidden pixel has any influence on it."""
    rows, columns = _places(hidden.shape, crop)
    gone = hidden[rows.inside, columns.inside]
    part = np.where(gone[..., None], np.uint8(0), image[rows.inside, columns.inside])
    if gone.shape != (rows.size, columns.size):
        part = cv2.resize(part, (columns.size, rows.size), interpolation=cv2.INTER_AREA)
        # Above 0 where INTER_AREA met any hidden pixel.
        share = gone.astype(np.float32)
        gone = cv2.resize(share, (columns.size, rows.size), interpolation=cv2.INTER_AREA) > 0
    part = smooth(part.astype(np.float32), ~gone).round().astype(np.uint8)
    edges = (
        *(rows.first, crop.canvas - rows.first - rows.size),
        *(columns.first, crop.canvas - columns.first - columns.size),
    )
    square = cv2.copyMakeBorder(part, *edges, cv2.BORDER_REFLECT)
    hole = cv2.copyMakeBorder(gone.astype(np.uint8), *edges, cv2.BORDER_REFLECT)
    margin = _margin(model)
    if margin:  # of another hole, whose place is not predicted, the smooth start is seen
        first, end = (
            margin + model.objective.overlap,
            crop.canvas - margin - model.objective.overlap,
        )
        middle = np.zeros_like(hole)
        middle[first:end, first:end] = 1
        hole &= middle
    # The network takes a hole with its ring of known context and shrinks it by that itself.
    ring = np.ones((2 * model.objective.overlap + 1,) * 2, np.uint8)
    return View(square, cv2.dilate(hole, ring) > 0)


def _predict(model: LoadedModel, views: Sequence[View]) -> list[NDArray[np.float32]]:
    """Colours 0 to 255 of each canvas, float32 (H, W, 3); a middle is continued to the edge."""
    place = next(model.generator.parameters()).device
    found = training.predict(
        model.generator,
        torch.from_numpy(np.stack([view.square for view in views])).to(place),
        torch.from_numpy(np.stack([view.hole for view in views])).to(place),
        network=model.network,
        objective=model.objective,
        dtype=torch.float32,
    ).prediction
    margin = (views[0].hole.shape[0] - found.shape[2]) // 2
    found = torch.nn.functional.pad(found.mul(255), (margin,) * 4, mode="replicate")
    colours = list(found.permute(0, 2, 3, 1).contiguous().cpu().numpy())
    if _predicts_the_rim(model):
        return colours
    return [np.where(v.hole[..., None], c, v.square) for v, c in zip(views, colours, strict=True)]


def _margin(model: LoadedModel) -> int:
    """Width of the frame around what a model predicts, px of its canvas."""
    return (model.side - output_side(model.network)) // 2


def _paste(
    filled: ImageArray, hidden: Hole, crop: Crop, predicted: NDArray[np.float32], model: LoadedModel
) -> None:
    """Put a prediction into the hidden pixels of a crop's box, joined to the visible rim."""
    region = _grown(crop.box, RIM_PX, hidden.shape)
    ats, valid = [], []
    for part, place in zip(region, _places(hidden.shape, crop), strict=True):
        scale = place.size / (place.inside.stop - place.inside.start)
        at = (np.arange(part.start, part.stop) + 0.5 - place.inside.start) * scale + place.first
        valid.append((at >= _margin(model)) & (at <= crop.canvas - _margin(model)))
        ats.append((at - 0.5).astype(np.float32))
    rows, columns = np.meshgrid(*ats, indexing="ij")
    colours = cv2.remap(predicted, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    hole = hidden[region]
    # A shrunken crop meets the pixels beside its hole only on average.
    if _predicts_the_rim(model) or crop.side > crop.canvas:
        near = cv2.dilate(hole.astype(np.uint8), np.ones((2 * RIM_PX + 1,) * 2, np.uint8)) > 0
        rim = near & ~hole & valid[0][:, None] & valid[1]
        if rim.any():
            colours += smooth(filled[region] - colours, rim)
    inside = np.zeros_like(hole)
    rows_in, columns_in = (
        slice(part.start - grown.start, part.stop - grown.start)
        for part, grown in zip(crop.box, region, strict=True)
    )
    inside[rows_in, columns_in] = hole[rows_in, columns_in]
    filled[region][inside] = colours[inside].clip(0, 255).round().astype(np.uint8)


def _grown(box: Box, margin: int, shape: tuple[int, ...]) -> Box:
    rows, columns = (
        slice(max(part.start - margin, 0), min(part.stop + margin, size))
        for part, size in zip(box, shape, strict=True)
    )
    return rows, columns


def _predicts_the_rim(model: LoadedModel) -> bool:
    """Whether the prediction of visible pixels beside a hole was trained."""
    return model.objective.overlap > 0 or model.objective.region == "image"


def smooth_start(image: ImageArray, hole: Hole) -> ImageArray:
    """The image with its hole as the preset unet finds it before it has learned anything.

    Args:
        image: uint8 (H, W, 3).
        hole: bool (H, W), True where to fill.

    Returns:
        uint8 (H, W, 3); outside of the hole the bits of the image.

    Source: see `ce_model.push_pull`.
    """
    colours = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1).unsqueeze(0)
    hidden = torch.from_numpy(hole)[None, None]
    found = smooth_fill(colours, hidden, torch.zeros(3, 1, 1))[0].permute(1, 2, 0).round()
    return np.where(hole[..., None], found.numpy().astype(np.uint8), image)


def smooth(values: NDArray[np.float32], known: Hole) -> NDArray[np.float32]:
    """Continue known values smoothly over unknown pixels by a push-pull pyramid.

    Args:
        values: float32 (H, W, C), anything where it is not known.
        known: bool (H, W), True where the value is kept.

    Source: Gortler et al., "The Lumigraph", SIGGRAPH 1996, section 3.4.
    """
    weight = known.astype(np.float32)[..., None]
    return _push_pull(values * weight, weight)


def _push_pull(sums: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values of weighted sums; a weight is 0 to 1."""
    height, width = weight.shape[:2]
    if weight.min() >= 1 or max(height, width) == 1:
        return _float32(sums / np.maximum(weight, 1e-6))
    sums_of_4, weight_of_4 = _sums_of_4(sums), _sums_of_4(weight)
    total = np.maximum(weight_of_4, 1)
    coarse = _push_pull(_float32(sums_of_4 / total), _float32(weight_of_4 / total))
    size = (2 * coarse.shape[1], 2 * coarse.shape[0])
    finer = cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)[:height, :width]
    return _float32(sums + (1 - weight) * finer.reshape(sums.shape))


def _sums_of_4(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each 2 x 2 pixels; beyond an odd edge lies nothing."""
    height, width = values.shape[:2]
    even = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    rows = even[::2] + even[1::2]
    return _float32(rows[:, ::2] + rows[:, 1::2])


def _float32(values: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)
