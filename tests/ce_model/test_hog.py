"""Histograms of oriented gradients against scikit-image, and their images."""

import numpy as np
import pytest
import torch
from skimage.feature import hog as reference

from ce_model import hog


def test_histograms_are_those_of_scikit_image() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 32, 32, generator=generator)
    result = hog.histograms(image)
    for at, channel in np.ndindex(2, 3):
        expected = reference(
            image[at, channel].double().numpy(),
            orientations=9,
            pixels_per_cell=(8, 8),
            cells_per_block=(1, 1),
            block_norm="L2",
        )
        expected = expected.reshape(4, 4, 9).transpose(2, 0, 1)
        np.testing.assert_allclose(result[at, channel].numpy(), expected, atol=1e-4)


def test_a_gpu_counts_as_a_cpu_does() -> None:
    generator = torch.Generator().manual_seed(0)
    bins = torch.randint(0, 9, (2, 3, 32, 16), generator=generator).float()
    length = torch.rand(2, 3, 32, 16, generator=generator)
    torch.testing.assert_close(hog._pooled(bins, length), hog._scattered(bins, length))


def test_histograms_of_an_image_without_edges_are_zero() -> None:
    assert (hog.histograms(torch.full((1, 3, 16, 16), 0.3)) == 0).all()


def test_turning_an_image_over_keeps_its_directions() -> None:
    ramp = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 1, 16, 16)
    up, down = hog.histograms(ramp), hog.histograms(ramp.flip(3))
    assert torch.equal(up, down)
    assert up[0, 0, 0].eq(1).all()  # a gradient along the columns is in the first bin


def test_glyph_of_a_vertical_edge_is_a_vertical_line() -> None:
    counted = torch.zeros(1, 1, 9, 1, 1)
    counted[:, :, 0] = 1  # gradients along the columns
    glyph = hog.glyphs(counted)[0, 0]
    assert glyph.shape == (8, 8)
    assert set(glyph.argmax(1).tolist()) == {3, 4}  # 10 degrees aslant at most
    assert (glyph[:, :2] == -1).all()


def test_side_that_is_no_multiple_of_the_cell_is_an_error() -> None:
    with pytest.raises(ValueError, match="multiples of 8 px"):
        hog.histograms(torch.zeros(1, 3, 20, 16))
