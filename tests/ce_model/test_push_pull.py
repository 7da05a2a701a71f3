"""The smooth start against a plain NumPy version, and what holds for every hole."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ce_model.push_pull import smooth_fill

EMPTY = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)


def _image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def _hole(height: int, width: int, share: float, seed: int = 1) -> Tensor:
    draw = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(seed))
    return draw < share


def _halve(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of blocks of 2 x 2 pixels; a block at the border may be smaller."""
    height, width = math.ceil(values.shape[0] / 2), math.ceil(values.shape[1] / 2)
    means = [
        [values[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() for x in range(width)]
        for y in range(height)
    ]
    return np.array(means)


def _enlarge(values: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Bilinear, pixel centres at (i + 1/2), clamped at the border."""

    def weights(old: int, new: int) -> NDArray[np.float64]:
        matrix = np.zeros((new, old))
        for i in range(new):
            at = max((i + 0.5) * old / new - 0.5, 0.0)
            low = min(int(at), old - 1)
            high = min(low + 1, old - 1)
            matrix[i, low] += 1 - (at - low)
            matrix[i, high] += at - low
        return matrix

    return weights(values.shape[0], height) @ values @ weights(values.shape[1], width).T


def _neighbours(values: NDArray[np.float64]) -> NDArray[np.float64]:
    height, width = values.shape
    means = [
        [values[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].mean() for x in range(width)]
        for y in range(height)
    ]
    return np.array(means)


def _reference(
    colour: NDArray[np.float64], hole: NDArray[np.bool_], empty: float, level: int = 0
) -> NDArray[np.float64]:
    """One channel of one image, recursively."""
    if hole.all() and max(hole.shape) == 1:
        return np.full(hole.shape, empty)
    if max(hole.shape) == 1:
        return colour
    share = _halve((~hole).astype(float))
    mean = _halve(np.where(hole, 0.0, colour)) / np.maximum(share, 1e-6)
    coarse = _reference(mean, share == 0, empty, level + 1)
    filled = np.where(hole, _enlarge(coarse, *hole.shape), colour)
    for _ in range(2 * level):
        filled = np.where(hole, _neighbours(filled), colour)
    return filled


@pytest.mark.parametrize(("height", "width"), [(8, 8), (13, 7), (1, 9), (32, 20)])
@pytest.mark.parametrize("share", [0.3, 0.97])
def test_it_equals_a_plain_numpy_version(height: int, width: int, share: float) -> None:
    image, hole = _image(height, width), _hole(height, width, share)
    filled = smooth_fill(image, hole, EMPTY)
    for number in range(2):
        for channel in range(3):
            expected = _reference(
                image[number, channel].double().numpy(),
                hole[number, 0].numpy(),
                float(EMPTY[0, channel]),
            )
            np.testing.assert_allclose(filled[number, channel].numpy(), expected, atol=1e-5)


def test_visible_pixels_stay_bit_for_bit_and_hidden_ones_are_not_read() -> None:
    image, hole = _image(37, 50), _hole(37, 50, 0.5)
    filled = smooth_fill(image, hole, EMPTY)
    assert torch.equal(filled[(~hole).expand_as(image)], image[(~hole).expand_as(image)])
    other = torch.where(hole, torch.full_like(image, 7.0), image)
    assert torch.equal(smooth_fill(other, hole, EMPTY), filled)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_colours_stay_between_those_that_are_visible(share: float) -> None:
    image, hole = _image(64, 64), _hole(64, 64, share)
    hole[:, :, 16:48, 16:48] = True
    filled = smooth_fill(image, hole, EMPTY)
    for number in range(2):
        seen = image[number][:, ~hole[number, 0]]
        low, high = seen.min(1).values, seen.max(1).values
        assert (filled[number] >= low.view(3, 1, 1) - 1e-5).all()
        assert (filled[number] <= high.view(3, 1, 1) + 1e-5).all()


def test_one_colour_fills_every_hole_with_itself() -> None:
    image = torch.full((1, 3, 40, 24), 0.25)
    hole = _hole(40, 24, 0.8)[:1]
    torch.testing.assert_close(smooth_fill(image, hole, EMPTY), image)


def test_an_image_without_a_visible_pixel_gets_the_given_colour() -> None:
    image, hole = _image(16, 24), torch.ones(2, 1, 16, 24, dtype=torch.bool)
    hole[1, 0, 3, 4] = False
    filled = smooth_fill(image, hole, EMPTY)
    torch.testing.assert_close(filled[0], EMPTY[0].expand(3, 16, 24))
    torch.testing.assert_close(filled[1], image[1, :, 3, 4].view(3, 1, 1).expand(3, 16, 24))
