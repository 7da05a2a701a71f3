"""Holes of a grid: whole cells, exactly the share, any cell alike."""

import numpy as np
import pytest

from ce_model.grid import CELL_PX
from ce_model.masks import STRATEGIES, Strategy, mask_for

GRIDS = [strategy for strategy in STRATEGIES if strategy.startswith("grid_")]


@pytest.mark.parametrize("strategy", GRIDS)
@pytest.mark.parametrize("size", [32, 128])
def test_exactly_the_share_of_whole_cells_is_hidden(strategy: Strategy, size: int) -> None:
    side = size // CELL_PX
    for seed in range(20):
        mask = mask_for(seed, strategy, size, "a", 0)
        cells = mask.reshape(side, CELL_PX, side, CELL_PX).mean((1, 3))
        assert set(np.unique(cells)) <= {0.0, 1.0}
        assert cells.sum() == round(int(strategy[5:]) * side**2 / 100)


def test_side_that_is_no_multiple_cuts_the_last_cells() -> None:
    mask = mask_for(0, "grid_60", 227, "a", 0)
    assert mask.shape == (227, 227)
    whole = mask[::CELL_PX, ::CELL_PX]
    assert whole.sum() == round(0.6 * 15**2)
    assert (mask == whole.repeat(CELL_PX, 0).repeat(CELL_PX, 1)[:227, :227]).all()


def test_every_cell_is_hidden_as_often() -> None:
    drawn = np.mean([mask_for(seed, "grid_60", 128, "a", 0) for seed in range(1000)], axis=0)
    assert abs(drawn - 38 / 64).max() < 4.5 * (0.24 / 1000) ** 0.5
