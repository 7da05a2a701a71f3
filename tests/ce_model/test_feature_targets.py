"""Targets of preset features: one vector per cell, and images back from them."""

from typing import get_args

import numpy as np
import pytest
import torch

from ce_model import feature_targets, hog
from ce_model.feature_targets import Target

TARGETS: tuple[Target, ...] = get_args(Target)


def _image() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("target", TARGETS)
def test_target_has_one_vector_per_cell(target: Target) -> None:
    values = feature_targets.make_target(target, _image())
    assert values.shape == (2, feature_targets.target_channels(target), 4, 4)


@pytest.mark.parametrize("target", ["pixels", "normalized"])
def test_target_turns_back_into_the_image(target: Target) -> None:
    image = _image()
    values = feature_targets.make_target(target, image)
    torch.testing.assert_close(feature_targets.as_image(target, values, image), image)


def test_normalized_cells_have_mean_0_and_deviation_1() -> None:
    values = feature_targets.make_target("normalized", _image())
    torch.testing.assert_close(values.mean(1), torch.zeros(2, 4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(1), torch.ones(2, 4, 4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("target", TARGETS)
def test_value_of_a_cell_depends_on_that_cell_and_its_border_alone(target: Target) -> None:
    image = _image()
    changed = image.clone()
    changed[:, :, 16:32, 32:48] = 0
    before, after = (feature_targets.make_target(target, x) for x in (image, changed))
    same = (before == after).all(1)
    near = torch.zeros(4, 4, dtype=torch.bool)
    near[1, 2] = True
    if target == "hog":  # a gradient reaches one pixel over the border
        near[0, 2] = near[2, 2] = near[1, 1] = near[1, 3] = True
    assert not same[:, 1, 2].any() and same[:, ~near].all()


def test_glyphs_are_drawn_of_the_cells_that_they_stand_for() -> None:
    image = _image()
    values = feature_targets.make_target("hog", image)
    expected = hog.glyphs(hog.histograms(image))
    torch.testing.assert_close(feature_targets.as_image("hog", values, image), expected)


def test_cell_is_hidden_with_any_of_its_pixels() -> None:
    hidden = torch.zeros(1, 64, 64, dtype=torch.bool)
    hidden[0, 31, 63] = hidden[0, 48, 0] = True
    cells = feature_targets.hidden_cells(hidden)
    np.testing.assert_array_equal(np.argwhere(cells[0].numpy()), [[1, 3], [3, 0]])
    whole = feature_targets.whole_cells(cells)
    assert whole.sum() == 2 * 256 and (whole | hidden).equal(whole)
