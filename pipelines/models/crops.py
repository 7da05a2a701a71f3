"""Where a network has to look in order to fill the holes of a photograph.

A hole is cut into tiles that the network can fill at once, at the photograph's own resolution
where the hole is thin enough for that: a scratch across a whole photograph is filled piece by
piece, a solid hole that is larger than what the network reaches is seen shrunken. Tiles beside each
other are filled one after the other, as the fields of a chessboard, so that the later ones see the
earlier ones.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ce_model.networks import output_side, takes_any_size
from pipelines.models.files import LoadedModel

Hole = NDArray[np.bool_]
"""bool (H, W), True where to fill."""
Box = tuple[slice, slice]
"""Rows and columns, px of the photograph."""

GRID = 1024  # cells of the longer side on which holes are told apart; nearer ones are one hole
ROUNDS = 2
FULL_SHARE = 0.5  # side of a hole in what a network for the whole image sees
# Of the side in training: a network of any size sees more around holes of the size it knows.
WIDER, WIDER_SHARE = 2, 0.75


class Reach(NamedTuple):
    """What a network can fill at once, px at its own scale."""

    canvas: int
    """Side of the square that it sees."""
    hole: int
    """Side of the largest hole in it."""
    central: bool
    """Whether the hole has to lie in the middle."""


class Crop(NamedTuple):
    """A square around a tile of a hole; it may leave the photograph."""

    top: int
    left: int
    side: int
    """Px of the photograph."""
    canvas: int
    """Px of the side that the network sees."""
    box: Box
    """What is filled: the hidden pixels in here."""
    round: int


def reach_of(model: LoadedModel) -> Reach:
    """What a model can fill at once."""
    side, inner = model.side, output_side(model.network)
    if inner < side:
        return Reach(side, inner - 2 * model.objective.overlap, True)
    if takes_any_size(model.network):
        return Reach(side * WIDER, int(side * WIDER_SHARE), False)
    return Reach(side, int(side * FULL_SHARE), False)


def plan_crops(hidden: Hole, reach: Reach) -> list[Crop]:
    """The crops in which a photograph is filled; every hidden pixel lies in the box of one."""
    tiles: list[tuple[Box, int, int]] = []
    small: list[Box] = []
    for box, thickness in hole_boxes(hidden):
        if max(_extents(box)) <= reach.hole:
            small.append(box)
            continue
        # Where a hole is shrunk, its edges may touch a pixel more on each side.
        tile = (
            reach.hole
            if thickness <= reach.hole
            else -(-thickness * reach.hole // (reach.hole - 2))
        )
        tiles.extend((part, tile, number) for part, number in _tiles(hidden, box, tile))
    tiles.extend((box, reach.hole, 0) for box in _joined(small, reach.hole))
    return [_crop(box, tile, number, hidden.shape, reach) for box, tile, number in tiles]


def _crop(box: Box, tile: int, number: int, shape: tuple[int, ...], reach: Reach) -> Crop:
    side = reach.canvas if tile == reach.hole else -(-tile * reach.canvas // reach.hole)
    starts = []
    for part, size in zip(box, shape, strict=True):
        start = (part.start + part.stop - side) // 2
        if not reach.central and side <= size:  # real surroundings instead of reflected ones
            start = min(max(start, 0), size - side)
        starts.append(start)
    return Crop(starts[0], starts[1], side, reach.canvas, box, number)


def hole_boxes(hidden: Hole) -> list[tuple[Box, int]]:
    """The box of each hole, and how thick the hole is at its thickest place, px."""
    cell = max(1, -(-max(hidden.shape) // GRID))
    padded = np.pad(hidden, [(0, -size % cell) for size in hidden.shape])
    rows, columns = padded.shape[0] // cell, padded.shape[1] // cell
    coarse = padded.reshape(rows, cell, columns, cell).any(axis=(1, 3)).astype(np.uint8)
    near = cv2.dilate(coarse, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(near, connectivity=8)
    depth = cv2.distanceTransform(coarse, cv2.DIST_L2, cv2.DIST_MASK_5)
    deepest = np.zeros(count, depth.dtype)
    np.maximum.at(deepest, labels[depth > 0], depth[depth > 0])
    found = []
    for (left, top, width, height, _), deep in zip(stats[1:].tolist(), deepest[1:], strict=True):
        box = (
            slice(top * cell, min((top + height) * cell, hidden.shape[0])),
            slice(left * cell, min((left + width) * cell, hidden.shape[1])),
        )
        found.append((_tight(hidden, box), int(np.ceil(2 * deep * cell))))
    return found


def _tiles(hidden: Hole, box: Box, tile: int) -> Iterator[tuple[Box, int]]:
    """A box cut into equal tiles that hold something hidden, with the round of each."""
    cuts = []
    for part in box:
        count = -(-(part.stop - part.start) // tile)
        cuts.append(np.linspace(part.start, part.stop, count + 1).round().astype(int).tolist())
    for row, (top, bottom) in enumerate(zip(cuts[0], cuts[0][1:], strict=False)):
        for column, (left, right) in enumerate(zip(cuts[1], cuts[1][1:], strict=False)):
            place = (slice(top, bottom), slice(left, right))
            if hidden[place].any():
                yield _tight(hidden, place), (row + column) % ROUNDS


def _joined(boxes: list[Box], largest: int) -> list[Box]:
    """Boxes that lie together in a square of `largest` px become one: specks need one crop."""
    open_boxes: dict[tuple[int, int], Box] = {}
    done: list[Box] = []
    for box in boxes:
        place = (box[0].start // largest, box[1].start // largest)
        before = open_boxes.get(place)
        if before is not None:
            rows, columns = (
                slice(min(one.start, other.start), max(one.stop, other.stop))
                for one, other in zip(before, box, strict=True)
            )
            if max(_extents((rows, columns))) <= largest:
                open_boxes[place] = (rows, columns)
                continue
            done.append(before)
        open_boxes[place] = box
    return done + list(open_boxes.values())


def _extents(box: Box) -> tuple[int, int]:
    return box[0].stop - box[0].start, box[1].stop - box[1].start


def _tight(hidden: Hole, box: Box) -> Box:
    """The box without the rows and columns at its edges in which nothing is hidden."""
    part = hidden[box]
    spans = []
    for axis, span in ((1, box[0]), (0, box[1])):
        held = np.flatnonzero(part.any(axis=axis))
        spans.append(slice(span.start + int(held[0]), span.start + int(held[-1]) + 1))
    return spans[0], spans[1]
