"""Random resized crops: pure functions of the draw, within the image and the ranges asked for."""

import numpy as np
import pytest

from pipelines.data.images import resized_crop
from pipelines.data.stream_plan import ResizedCrop
from pipelines.errors import UserError


@pytest.mark.parametrize("shape", [(160, 160), (256, 320)])
def test_crops_have_the_area_and_ratio_that_was_drawn(shape: tuple[int, int]) -> None:
    crop = ResizedCrop(area=(0.35, 0.5))
    for area in np.linspace(0, 1, 7):
        for ratio in np.linspace(0, 1, 7):
            height, width = crop.size(*shape, (area, ratio))
            share = height * width / (shape[0] * shape[1])
            assert share == pytest.approx(0.35 + 0.15 * area, rel=0.02)
            assert width / height == pytest.approx(0.75 * (16 / 9) ** ratio, rel=0.03)


def test_crop_larger_than_the_image_is_cut_to_its_side() -> None:
    assert ResizedCrop(area=(1, 1)).size(100, 100, (1.0, 1.0)) == (87, 100)


def test_whole_image_is_only_resized() -> None:
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert (resized_crop(image, (128, 128), 128, 0.3, 0.9) == image).all()


def test_window_lies_where_it_was_drawn() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[50:, 150:] = 200
    assert (resized_crop(image, (50, 50), 32, 1.0, 1.0) == 200).all()
    assert (resized_crop(image, (50, 50), 32, 0.0, 1.0) == 0).all()


@pytest.mark.parametrize(
    ("area", "ratio"), [((0, 1), (1, 1)), ((0.5, 0.4), (1, 1)), ((1, 1), (2, 1))]
)
def test_what_is_no_range_is_refused(area: tuple[float, float], ratio: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="two rising"):
        ResizedCrop(area=area, ratio=ratio)
