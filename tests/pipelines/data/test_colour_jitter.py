"""Colours that change: pure functions of the draw, and each change what its name says."""

import numpy as np
import pytest

from pipelines.data.colour_jitter import LUMA, ColourJitter, change, draw
from pipelines.errors import UserError

PICTURE = np.random.default_rng(0).integers(60, 190, (16, 20, 3), dtype=np.uint8)
MIDDLE = (0.5, 0.5, 0.5, 0.5, 0.5)


def test_no_range_changes_nothing() -> None:
    for drawn in (MIDDLE, (0.0, 1.0, 0.0, 1.0, 0.0)):
        assert (change(PICTURE, ColourJitter(), drawn) == PICTURE).all()
    full = ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.2)
    assert (change(PICTURE, full, MIDDLE) == PICTURE).all()


def test_brightness_and_contrast_are_their_formulas() -> None:
    brighter = change(PICTURE, ColourJitter(brightness=0.3), (1.0, 0.5, 0.5, 0.5, 1.0))
    np.testing.assert_allclose(brighter, PICTURE * 1.3, atol=0.6)
    mean = (PICTURE @ LUMA).mean()
    flatter = change(PICTURE, ColourJitter(contrast=0.5), (0.5, 0.0, 0.5, 0.5, 1.0))
    np.testing.assert_allclose(flatter, mean + 0.5 * (PICTURE - mean), atol=0.6)
    both = change(PICTURE, ColourJitter(brightness=0.2, contrast=0.5), (1.0, 0.0, 0.5, 0.5, 1.0))
    np.testing.assert_allclose(both, 1.2 * mean + 0.5 * (1.2 * PICTURE - 1.2 * mean), atol=0.6)


def test_grey_and_no_saturation_leave_the_brightness_of_each_pixel() -> None:
    expected = np.repeat((PICTURE @ LUMA)[..., None], 3, axis=2)
    for jitter, drawn in (
        (ColourJitter(grey=1.0), (0.5, 0.5, 0.5, 0.5, 0.99)),
        (ColourJitter(saturation=1.0), (0.5, 0.5, 0.0, 0.5, 1.0)),
    ):
        np.testing.assert_allclose(change(PICTURE, jitter, drawn), expected, atol=0.6)


def test_hue_turns_colours_and_keeps_grey_and_brightness() -> None:
    red = np.full((2, 2, 3), (160, 90, 90), np.uint8)
    turned = change(red, ColourJitter(hue=1 / 3), (0.5, 0.5, 0.5, 1.0, 1.0))
    np.testing.assert_allclose(turned @ LUMA, red @ LUMA, atol=1)
    assert turned[0, 0].argmax() != 0
    grey = np.full((2, 2, 3), 120, np.uint8)
    assert (change(grey, ColourJitter(hue=0.5), (0.5, 0.5, 0.5, 0.9, 1.0)) == grey).all()


def test_draws_follow_from_seed_epoch_and_key_and_grey_has_its_share() -> None:
    assert draw(1, 2, "a.jpg") == draw(1, 2, "a.jpg")
    assert len({draw(1, 2, "a"), draw(0, 2, "a"), draw(1, 0, "a"), draw(1, 2, "b")}) == 4
    drawn = np.array([draw(0, epoch, "a.jpg") for epoch in range(2000)])
    assert (drawn < 1).all(axis=0)[4] and (drawn >= 0).all() and (drawn <= 1).all()
    np.testing.assert_allclose(drawn.mean(0), 0.5, atol=0.03)
    assert np.mean(drawn[:, 4] < 0.2) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("wrong", [{"brightness": 1.1}, {"hue": 0.6}, {"grey": -0.1}])
def test_what_is_no_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="it must be 0 to"):
        ColourJitter(**wrong)
