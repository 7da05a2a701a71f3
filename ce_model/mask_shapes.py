"""What masks are drawn with: raw random bits, closed shapes and polygons, all in integers."""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

MIN_SIZE = 32  # pixels; in less, a shape of an eighth may hide no pixel centre
MAX_SHAPES = 8
NUM_VERTICES = 32  # of a random shape
DIRECTION_ONE = 1024  # fixed-point 1.0 of a direction


def visible(size: int) -> Mask:
    """A mask that hides nothing: bool (size, size)."""
    if size < MIN_SIZE:
        raise ValueError(f"mask size is {size} px; it must be {MIN_SIZE} or more")
    return np.zeros((size, size), dtype=np.bool_)


def raw_draws(generator: np.random.Generator, count: int) -> NDArray[np.uint64]:
    """64 random bits each. NumPy may change what Generator methods draw, but not these."""
    return np.asarray(generator.bit_generator.random_raw(count), dtype=np.uint64)


@cache
def directions() -> NDArray[np.int64]:
    """Unit vectors (NUM_VERTICES, 2) around the circle, in fixed point."""
    angles = [2 * math.pi * vertex / NUM_VERTICES for vertex in range(NUM_VERTICES)]
    # No entry lies near a rounding tie, so any libm gives these integers.
    return np.array([[round(DIRECTION_ONE * f(a)) for f in (math.sin, math.cos)] for a in angles])


def draw_shapes(size: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Corners (MAX_SHAPES, NUM_VERTICES, 2) of random closed shapes around (0, 0), in 1/16 px.

    A circle whose radius follows smooth noise, then a random stretch and shear, all in integers.
    No corner is further than size / 4 from the centre in either direction, so one shape alone
    never hides more than a quarter.
    """
    raw = raw_draws(generator, MAX_SHAPES * (NUM_VERTICES + 4)).reshape(MAX_SHAPES, -1)
    draws = (raw & 0xFFFF).astype(np.int64)
    noise, draws = draws[:, 4:], draws[:, :4]
    for _ in range(2):  # a closed moving average rounds the outline
        noise = np.roll(noise, 1, 1) + 2 * noise + np.roll(noise, -1, 1)
    lowest, highest = noise.min(1, keepdims=True), noise.max(1, keepdims=True)
    radius = 1024 + 3072 * (noise - lowest) // (highest - lowest + 1)  # longest : shortest = 4
    # Rows (64, shear) and (shear', 64 - stretch), in 1/64.
    stretch, shear, shear_back = (draws[:, :3] % 33).T
    ones = np.full(MAX_SHAPES, 64)
    deform = np.stack([ones, shear - 16, shear_back - 16, ones - stretch], 1).reshape(-1, 2, 2)
    corners = directions() * radius[..., None] @ deform
    reach = 4 * size * (4 + draws[:, 3] % 5) // 8  # size / 8 to size / 4, in 1/16 px
    longest = np.abs(corners).max((1, 2))
    scaled: NDArray[np.int64] = corners * reach[:, None, None] // longest[:, None, None]
    return scaled


def draw_polygon(side: int, corners: NDArray[np.int64]) -> Mask:
    """Pixels (side, side) whose centre lies inside, by counting the edges to their left.

    Corners are rows and columns in 1/16 px, none within a pixel of the border of the square.
    """
    following = np.roll(corners, -1, axis=0)
    (top, at_top), (bottom, at_bottom) = corners.T[..., None], following.T[..., None]
    line = 16 * np.arange(side) + 8
    edge, row = np.nonzero((top <= line) != (bottom <= line))
    start, height = top[edge, 0], (bottom - top)[edge, 0]
    at = at_top[edge, 0] + (line[row] - start) * (at_bottom - at_top)[edge, 0] // height
    crossings = np.bincount(row * side + (at + 7) // 16, minlength=side**2).astype(np.uint8)
    # Every row has an even count, so the sum may run on through the rows.
    return (np.cumsum(crossings, dtype=np.uint8) & 1).astype(np.bool_).reshape(side, side)
