"""Free-form holes: strokes of a brush, boxes and closed shapes, as people paint over a photograph.

Every mask hides LEAST to MOST of the image. Shares lean to the small: the aim is LEAST plus half
the image times the square of a uniform draw. Pieces are added until the aim is met; one that
would hide too much is left out, and after MAX_PIECES the mask ends, so the work is bounded. All
values are integers, and the draws raw bits: equal arguments give equal bits on every machine.

Source: Yu et al., "Free-Form Image Inpainting with Gated Convolution", ICCV 2019,
arXiv:1806.03589, section 4.2, for the strokes; Suvorov et al., "LaMa", WACV 2022,
arXiv:2109.07161, for the mixture with boxes.
"""

import numpy as np
from numpy.typing import NDArray

from ce_model.mask_shapes import (
    DIRECTION_ONE,
    NUM_VERTICES,
    Mask,
    directions,
    draw_polygon,
    draw_shapes,
    raw_draws,
    visible,
)

LEAST, MOST = 5, 60  # percent of the image that a mask hides
MAX_PIECES = 12
MAX_SEGMENTS = 6  # of a stroke
TURN = 5  # steps of a 32nd of a circle that a stroke may turn between two segments
ONE = 16  # fixed-point 1 px


def free_form(size: int, generator: np.random.Generator) -> Mask:
    """Hide strokes, boxes and shapes: bool (size, size), 5 to 60 % of it True."""
    mask = visible(size)
    least, most = -(-LEAST * size**2 // 100), MOST * size**2 // 100
    raw = raw_draws(generator, 1 + MAX_PIECES * (4 + 2 * MAX_SEGMENTS))
    draws: NDArray[np.int64] = (raw & 0xFFFF).astype(np.int64)
    shapes = draw_shapes(size, generator)
    aim = least + size**2 * (int(draws[0]) % 1024) ** 2 // (2 * 1024**2)
    hidden = 0
    for number, piece in enumerate(draws[1:].reshape(MAX_PIECES, -1)):
        kind = int(piece[0]) % 4
        if kind < 2:
            drawn = _stroke(size, piece[1:])
        elif kind == 2:
            drawn = _box(size, piece[1:])
        else:
            drawn = _shape(size, piece[1:], shapes[number % len(shapes)])
        whole = mask | drawn
        count = int(np.count_nonzero(whole))
        if count <= most:
            mask, hidden = whole, count
        if hidden >= aim:
            break
    if hidden < least:  # only thin pieces: a box of a sixteenth of the image is enough
        top, left = (draws[1:3] % (size - size // 4 + 1)).tolist()
        mask[top : top + size // 4, left : left + size // 4] = True
    return mask


def _box(size: int, draws: NDArray[np.int64]) -> Mask:
    """A rectangle with sides of an eighth to a half of the image."""
    height, width = (size // 8 + draws[:2] % (size // 2 - size // 8 + 1)).tolist()
    top, left = int(draws[2]) % (size - height + 1), int(draws[3]) % (size - width + 1)
    mask = visible(size)
    mask[top : top + height, left : left + width] = True
    return mask


def _shape(size: int, draws: NDArray[np.int64], corners: NDArray[np.int64]) -> Mask:
    """A closed shape of `draw_shapes` around a place in the image."""
    row, column = (draws[:2] % size).tolist()
    reach = int(np.abs(corners).max()) // ONE + 2
    patch = draw_polygon(2 * reach, corners + ONE * reach)
    mask = visible(size + 2 * reach)  # with room for what reaches over the border
    mask[row : row + 2 * reach, column : column + 2 * reach] = patch
    return mask[reach : reach + size, reach : reach + size]


def _stroke(size: int, draws: NDArray[np.int64]) -> Mask:
    """A line of 2 to MAX_SEGMENTS round-ended segments, as thick as 1/16 to 1/5 of the image."""
    mask = visible(size)
    row, column = (ONE * (draws[:2] % size)).tolist()
    radius = ONE * size // 32 + int(draws[2]) % (ONE * size // 15)
    heading = int(draws[3]) % NUM_VERTICES
    segments = 2 + int(draws[4]) % (MAX_SEGMENTS - 1)
    for length, turn in draws[5 : 5 + 2 * segments].reshape(-1, 2).tolist():
        heading = (heading + turn % (2 * TURN + 1) - TURN) % NUM_VERTICES
        reach = ONE * size // 12 + length % (ONE * size // 6)
        down, across = (reach * directions()[heading] // DIRECTION_ONE).tolist()
        _capsule(mask, (row, column), (down, across), radius)
        row = min(max(row + down, 0), ONE * size)
        column = min(max(column + across, 0), ONE * size)
    return mask


def _capsule(mask: Mask, start: tuple[int, int], line: tuple[int, int], radius: int) -> None:
    """Hide the pixels whose centre lies within `radius` of a segment; all in 1/16 px.

    With sides up to 1024 px no product passes 2^60: the cross product of a point and the line is
    below 2^29, and its square is compared.
    """
    ends = np.array([start, np.add(start, line)])
    low = np.maximum((ends.min(0) - radius) // ONE, 0)
    high = np.minimum((ends.max(0) + radius) // ONE + 1, len(mask))
    rows = ONE * np.arange(low[0], high[0])[:, None] + ONE // 2 - start[0]
    columns = ONE * np.arange(low[1], high[1])[None, :] + ONE // 2 - start[1]
    down, across = line
    squared, length = radius**2, down**2 + across**2
    along = rows * down + columns * across
    aside = rows * across - columns * down
    near = (along >= 0) & (along <= length) & (aside**2 <= squared * length)
    near |= rows**2 + columns**2 <= squared
    near |= (rows - down) ** 2 + (columns - across) ** 2 <= squared
    mask[low[0] : high[0], low[1] : high[1]] |= near
