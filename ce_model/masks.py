"""Masks: which pixels a context encoder has to fill in.

A mask is a bool array (size, size), True where the pixel is hidden. Masks are made with NumPy
while a dataset is prepared and packed to one bit per pixel; `mask_tensors` unpacks, turns and
shrinks them on the training device. Nothing here imports torch, which would cost every process
that prepares or decodes images two seconds and 180 MB.

Equal arguments and an equal generator state give equal bits on every machine: random numbers are
raw outputs of the bit generator, whose streams NumPy keeps fixed, and every value on the way is an
integer, in the noise family held exactly by float32.

Source: Pathak et al., "Context Encoders: Feature Learning by Inpainting", CVPR 2016,
arXiv:1604.07379, section 3.3. `random_region` is the noise family of the authors' code
(train_random.lua); `random_region_shapes` stands for the paper's deformed segmentation shapes.
`free_form` is not the paper's: what people paint over (see its own file).
`grid_60` is not the paper's: it hides 60 % of the cells of a grid (see `grid`).
"""

import hashlib
import math
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ce_model.free_form import free_form
from ce_model.grid import grid
from ce_model.mask_shapes import MAX_SHAPES as MAX_SHAPES
from ce_model.mask_shapes import MIN_SIZE as MIN_SIZE
from ce_model.mask_shapes import Mask as Mask
from ce_model.mask_shapes import draw_polygon, draw_shapes, raw_draws, visible

Strategy = Literal[
    "central", "random_block", "random_region", "random_region_shapes", "free_form",
    "grid_30", "grid_40", "grid_50", "grid_60", "grid_75", "grid_90",
]  # fmt: skip

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
MASK_VERSION = 2  # part of dataset keys: raise it whenever a bit of any mask changes
MAX_HIDDEN = 1 / 4  # share of the image that random blocks and shapes may hide, section 3.3

MAX_BLOCKS = 16  # draws, so that unlucky overlaps end
CELL_PX = (50, 3)  # a noise cell is 50 / 3 px: 600 cells on the 10,000 px canvas of the code
WEIGHT_ONE = 128  # fixed-point 1.0 of an interpolation weight
NOISE_HALF_RANGE = 512  # noise is -512 to 511, so that sums stay exact: see _noise_weights
NOISE_UNIT = 2**17  # of the sums: noise in it stays between -128 and 128
SAMPLE_STRIDE = 61  # px, row-major; shares no factor with usual sides, so all columns are met


def make_mask(
    strategy: Strategy, size: int, generator: np.random.Generator, *, share: float = MAX_HIDDEN
) -> Mask:
    """One mask.

    Args:
        strategy: family of masks.
        size: side of the square image, pixels.
        generator: the only source of randomness.
        share: hidden share that `random_region` meets exactly, 0.20 to 0.30.

    Returns:
        bool (size, size), True where hidden.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"mask strategy is {strategy}; it must be one of {', '.join(STRATEGIES)}")
    if strategy != "random_region" and share != MAX_HIDDEN:
        raise ValueError(
            f"mask share is {share}; it must stay {MAX_HIDDEN} with strategy {strategy}, "
            "which does not use it"
        )
    if strategy == "central":
        return central(size)
    if strategy == "random_block":
        return random_block(size, generator)
    if strategy == "random_region":
        return random_region(size, generator, share=share)
    if strategy == "random_region_shapes":
        return random_region_shapes(size, generator)
    if strategy == "free_form":
        return free_form(size, generator)
    return grid(size, int(strategy.removeprefix("grid_")), generator)


def mask_seed(seed: int, strategy: Strategy, size: int, key: str, variant: int) -> int:
    """Seed of one image's mask, the same in any order on any machine."""
    name = "\0".join([str(seed), strategy, str(size), str(variant), key])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def mask_for(
    seed: int,
    strategy: Strategy,
    size: int,
    key: str,
    variant: int,
    *,
    share: float = MAX_HIDDEN,
) -> Mask:
    """Mask number `variant` of the image called `key`: bool (size, size).

    Variants 2n and 2n + 1 of `random_region` hide the darkest and the brightest pixels of the same
    noise, so they never overlap and are drawn together at little more than the price of one.
    """
    if strategy != "random_region":
        generator = _generator(seed, strategy, size, key, variant)
        return make_mask(strategy, size, generator, share=share)
    pair = _region_pair(size, _generator(seed, strategy, size, key, variant // 2 * 2), share)
    return next(islice(pair, variant % 2, None))


def masks_for(seed: int, strategy: Strategy, size: int, key: str, variants: int) -> Iterator[Mask]:
    """Masks 0 .. variants - 1 of one image, as `mask_for` gives them, each bool (size, size)."""
    if strategy != "random_region":
        yield from (mask_for(seed, strategy, size, key, variant) for variant in range(variants))
        return
    for first in range(0, variants, 2):
        pair = _region_pair(size, _generator(seed, strategy, size, key, first))
        yield from islice(pair, variants - first)


def _generator(
    seed: int, strategy: Strategy, size: int, key: str, variant: int
) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(mask_seed(seed, strategy, size, key, variant)))


def central(size: int) -> Mask:
    """Hide the centred square of half the side: rows and columns 32 to 95 of 128."""
    mask = visible(size)
    start, side = (size - size // 2) // 2, size // 2
    mask[start : start + side, start : start + side] = True
    return mask


def random_block(size: int, generator: np.random.Generator) -> Mask:
    """Hide random squares, which may overlap, until the next would pass a quarter of the image.

    The paper gives neither number nor size; sides are 1/8 to 1/4 of the image here.
    """
    mask = visible(size)
    room = int(MAX_HIDDEN * size**2)
    draws = raw_draws(generator, 3 * MAX_BLOCKS).tolist()
    for draw_side, draw_top, draw_left in zip(*[iter(draws)] * 3, strict=True):
        side = size // 8 + draw_side % (size // 4 - size // 8 + 1)
        top, left = draw_top % (size - side + 1), draw_left % (size - side + 1)
        block = mask[top : top + side, left : left + side]
        room -= side**2 - int(np.count_nonzero(block))
        if room < 0:
            break
        block[:] = True
    return mask


def random_region(size: int, generator: np.random.Generator, *, share: float = MAX_HIDDEN) -> Mask:
    """Hide the darkest pixels of smooth noise: exactly round(share * size^2) of them.

    Low-resolution noise is enlarged by cubic interpolation with a random phase, like a random crop
    of the large canvas in train_random.lua, and cut at its exact quantile instead of drawing crops
    until one fits. Pixels equal to the quantile are hidden in row-major order.
    """
    return next(_region_pair(size, generator, share))


def _region_pair(
    size: int, generator: np.random.Generator, share: float = MAX_HIDDEN
) -> Iterator[Mask]:
    """The darkest and the brightest pixels of one noise."""
    if not 0.20 <= share <= 0.30:
        raise ValueError(f"mask share is {share}; it must be 0.20 to 0.30, as in the authors' code")
    num_hidden = round(share * size**2)
    values = _noise(size, generator)
    yield _smallest(values, num_hidden).reshape(size, size)
    yield _smallest(np.negative(values, out=values), num_hidden).reshape(size, size)


def _noise(size: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise, one value per pixel, row-major: exact, and between -128 and 128."""
    period, num_cells = CELL_PX[0], _noise_weights(size).shape[1]
    draws = raw_draws(generator, 2 + math.ceil(num_cells**2 / 4))
    rows, down = _crop_weights(size, int(draws[0]) % period)
    columns, across = _crop_weights(size, int(draws[1]) % period)
    low = draws[2:].astype("<u8").view("<u2")[: num_cells**2] % (2 * NOISE_HALF_RANGE)
    whole = low.astype(np.float32).reshape(num_cells, num_cells) - NOISE_HALF_RANGE
    noise = whole / np.float32(NOISE_UNIT)  # a power of two: all sums stay exact
    field: NDArray[np.float32] = down.T @ noise[rows, columns] @ across
    return field.ravel()


def _smallest(values: NDArray[np.float32], count: int) -> Mask:
    """Exactly `count` of the values, the smallest; of equal ones the first.

    Values are between -128 and 128. The quantile is sought among those of its level (whole part)
    alone. `np.partition` of all takes as long where it is fast, but five times as long on AMD's
    Zen 4, which is slow at the AVX-512 instruction that NumPy uses for it.
    """
    levels = values.astype(np.int8)
    sample = np.sort(levels[::SAMPLE_STRIDE], kind="stable")  # a radix sort
    level = int(sample[(count - 1) * len(sample) // len(levels)])  # a guess, mostly right
    chosen: Mask = levels < level
    while (missing := count - int(np.count_nonzero(chosen))) <= 0:
        level -= 1
        chosen = levels < level
    while (found := len(places := np.flatnonzero(levels == level))) < missing:
        chosen[places] = True
        missing -= found
        level += 1
    near = values[places]
    quantile = np.partition(near, missing - 1)[missing - 1]
    smaller = places[near < quantile]
    chosen[smaller] = True
    chosen[places[near == quantile][: missing - len(smaller)]] = True
    return chosen


def random_region_shapes(size: int, generator: np.random.Generator) -> Mask:
    """Hide random closed shapes, stretched and sheared, pasted anywhere, up to a quarter in all."""
    mask = visible(size)
    room = int(MAX_HIDDEN * size**2)
    centers = (raw_draws(generator, 2 * MAX_SHAPES) % size).astype(np.int64).reshape(-1, 2).tolist()
    for (row, column), corners in zip(centers, draw_shapes(size, generator), strict=True):
        reach = int(np.abs(corners).max()) // 16 + 2  # whole pixels, and one of margin
        patch = draw_polygon(2 * reach, corners + 16 * reach)
        top, left = row - reach, column - reach
        under = mask[max(top, 0) : top + 2 * reach, max(left, 0) : left + 2 * reach]
        patch = patch[max(-top, 0) :, max(-left, 0) :][: under.shape[0], : under.shape[1]]
        added = int(np.count_nonzero(patch > under))
        if added <= room:
            under |= patch
            room -= added
    return mask


def pack(mask: Mask) -> bytes:
    """One bit per pixel, row-major, first pixel in the highest bit (np.packbits)."""
    return np.packbits(mask).tobytes()


@cache
def _crop_weights(size: int, phase: int) -> tuple[slice, NDArray[np.float32]]:
    """The cells that a crop with this phase meets, and their weights, one column per pixel."""
    weights = _noise_weights(size)[phase : phase + size].T
    used = np.flatnonzero(weights.any(axis=1))
    cells = slice(int(used[0]), int(used[-1]) + 1)
    return cells, np.ascontiguousarray(weights[cells])


@cache
def _noise_weights(size: int) -> NDArray[np.float32]:
    """Cubic interpolation (Catmull-Rom) from noise cells to pixels, in fixed point.

    One row per pixel and phase: pixel p of a crop with phase f is row p + f, and phases repeat
    after 50 px, which is 3 cells. Entries are whole multiples of 1 / WEIGHT_ONE. The absolute sum
    of a row is at most 1.25 * 128 = 160 (up to rounding), so a pixel's sum over rows and columns
    stays below 160^2 * 512 = 13.2 million < 2^24: float32 holds every partial sum exactly, in
    whatever order a matrix library adds them.
    """
    period, cells_per_period = CELL_PX
    num_rows = size + period - 1
    # Position of a pixel centre in cells, kept as a fraction: numerator / (2 * period).
    numerators = [(2 * pixel + 1) * cells_per_period - period for pixel in range(num_rows)]
    denominator = 2 * period
    num_cells = numerators[-1] // denominator + 5
    weights = np.zeros((num_rows, num_cells), dtype=np.float32)
    for row, numerator in enumerate(numerators):
        cell, remainder = divmod(numerator, denominator)
        for tap in range(-1, 3):
            distance = abs(tap * denominator - remainder)
            weights[row, cell + tap + 2] = _cubic(distance, denominator)  # column 0 is cell -2
    assert np.abs(weights).sum(1).max() ** 2 * NOISE_HALF_RANGE < 2**24
    return weights


def _cubic(distance: int, one: int) -> int:
    """Catmull-Rom kernel at distance / one, as the nearest multiple of 1 / WEIGHT_ONE."""
    d = distance
    if d < one:  # (3 d^3 - 5 d^2 + 2) / 2
        value = 3 * d**3 - 5 * d**2 * one + 2 * one**3
    elif d < 2 * one:  # (-d^3 + 5 d^2 - 8 d + 4) / 2
        value = -(d**3) + 5 * d**2 * one - 8 * d * one**2 + 4 * one**3
    else:
        return 0
    return (value * WEIGHT_ONE + one**3) // (2 * one**3)
