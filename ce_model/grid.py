"""Holes that are whole cells of a grid: a share of the cells of 16 px, drawn per image.

A network that computes on visible cells alone (see `masked`) needs holes whose borders are those of
its positions, and many more of them than the paper hides.

Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, arXiv:2111.06377,
section 3 (random cells without replacement); cells and shares of SparK, arXiv:2301.03580.
"""

import math

import numpy as np
from numpy.typing import NDArray

CELL_PX = 16


def grid(size: int, percent: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Hide round(percent / 100 * cells) cells, drawn without replacement.

    Args:
        size: side of the square image, px; where 16 does not divide it, the last row and column
            of cells are cut.
        percent: share of the cells, 30 to 90.
        generator: the only source of randomness.

    Returns:
        bool (size, size), True where hidden.
    """
    side = math.ceil(size / CELL_PX)
    count = round(percent * side**2 / 100)
    draws = np.asarray(generator.bit_generator.random_raw(side**2), dtype=np.uint64)
    cells = np.zeros(side**2, dtype=np.bool_)
    cells[np.argsort(draws, kind="stable")[:count]] = True
    whole = cells.reshape(side, side).repeat(CELL_PX, 0).repeat(CELL_PX, 1)
    return np.ascontiguousarray(whole[:size, :size])
