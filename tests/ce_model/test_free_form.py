"""Strokes, boxes and shapes: hidden shares, and strokes against distances in floats."""

import numpy as np
import pytest

from ce_model import free_form
from ce_model.masks import mask_for


def test_it_hides_5_to_60_percent_for_1000_seeds() -> None:
    shares = np.array([mask_for(seed, "free_form", 64, "a", 0).mean() for seed in range(1000)])
    assert shares.min() >= 0.05
    assert shares.max() <= 0.60
    assert shares.max() > 0.5
    assert 0.1 < np.median(shares) < 0.3


@pytest.mark.parametrize("size", [32, 39, 227])
def test_it_holds_at_other_sizes(size: int) -> None:
    for seed in range(40):
        assert 0.05 <= mask_for(seed, "free_form", size, "a", 0).mean() <= 0.60


def test_a_segment_hides_the_pixel_centres_within_its_radius() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        start, line = rng.integers(0, 64 * 16, 2), rng.integers(-500, 500, 2)
        radius = int(rng.integers(16, 200))
        mask = np.zeros((64, 64), np.bool_)
        free_form._capsule(mask, tuple(start.tolist()), tuple(line.tolist()), radius)
        centre = np.stack(np.indices((64, 64)), -1) * 16.0 + 8 - start
        along = np.clip(centre @ line / max(line @ line, 1), 0, 1)
        distance = np.linalg.norm(centre - along[..., None] * line, axis=-1)
        sure = np.abs(distance - radius) > 1e-6
        np.testing.assert_array_equal(mask[sure], (distance < radius)[sure])


def test_a_segment_beside_the_image_hides_nothing() -> None:
    mask = np.zeros((64, 64), np.bool_)
    free_form._capsule(mask, (1024, 1024), (300, 300), 100)
    assert mask.mean() < 0.02
    free_form._capsule(mask := np.zeros((64, 64), np.bool_), (1500, 1500), (10, 10), 50)
    assert not mask.any()
