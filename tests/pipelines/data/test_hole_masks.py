"""Masks as people have them: whatever shows the hole finds the same hole, or is asked about."""

import io

import numpy as np
import pytest
from PIL import Image

from ce_model.masks import STRATEGIES
from pipelines.data.hole_masks import (
    BadMask,
    Polarity,
    read_mask,
    resize_hole,
    strategy_hole,
    touched_pixels,
)

SHAPE = (90, 160)
HOLE = np.zeros(SHAPE, bool)
HOLE[20:50, 30:90] = True
WHITE = HOLE.astype(np.uint8) * 255
NOISE = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)


def encode(array: np.ndarray, form: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form, **options)
    return buffer.getvalue()


def layer(colour: object, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([np.broadcast_to(colour, (*SHAPE, 3)).astype(np.uint8), alpha])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "polarity"),
    [
        (encode(WHITE), "auto"),
        (encode(WHITE), "white"),
        (encode(255 - WHITE), "black"),
        (encode(WHITE, "jpeg", quality=75), "auto"),
        (encode(255 - WHITE, "jpeg", quality=30), "black"),
        (encode(WHITE, "webp", quality=60), "auto"),
        (encode(layer(255, WHITE)), "auto"),  # strokes on a transparent layer
        (encode(layer(0, WHITE)), "auto"),
        (encode(layer((255, 0, 128), WHITE)), "opaque"),
        (encode(np.dstack([WHITE * 0 + 200, WHITE])), "auto"),  # grey with alpha
        (encode(layer(NOISE, 255 - WHITE)), "auto"),  # a photograph with an erased part
        (encode(layer(255, 255 - WHITE)), "transparent"),
        (encode(layer(np.repeat(WHITE[..., None], 3, 2), WHITE * 0 + 255)), "auto"),
    ],
)
def test_the_hole_is_found_in_every_kind_of_mask(data: bytes, polarity: Polarity) -> None:
    assert (read_mask(data, SHAPE, polarity=polarity).hole == HOLE).all()


def test_what_was_assumed_is_said() -> None:
    assert read_mask(encode(WHITE), SHAPE).note == ""
    assert "opaque pixels" in read_mask(encode(layer(255, WHITE)), SHAPE).note
    assert "transparent pixels" in read_mask(encode(layer(NOISE, 255 - WHITE)), SHAPE).note
    small = read_mask(encode(WHITE[::2, ::2]), SHAPE)
    assert "resized from 80 x 45 px" in small.note
    assert (small.hole == HOLE).all()


@pytest.mark.parametrize(
    ("data", "polarity", "message"),
    [
        (encode(WHITE * 0), "auto", "hides nothing"),
        (encode(WHITE * 0 + 255), "auto", "hides everything"),
        (encode(255 - WHITE), "auto", "may be meant the other way round"),
        (encode(WHITE), "opaque", "no alpha channel"),
        (encode(layer(255, WHITE * 0)), "opaque", "hides nothing"),
        (encode(WHITE // 4, "jpeg"), "auto", "dark JPEG"),
        (encode(WHITE[:, :90]), "auto", "90 x 90 px and the image 160 x 90 px"),
        (b"no image", "auto", "its mask: not an image"),
    ],
)
def test_what_is_not_clear_is_asked(data: bytes, polarity: Polarity, message: str) -> None:
    with pytest.raises(BadMask, match=message):
        read_mask(data, SHAPE, polarity=polarity)


def test_black_white_and_transparent_at_once_is_asked() -> None:
    colours = np.repeat(WHITE[..., None], 3, axis=2)
    alpha = np.full(SHAPE, 255, np.uint8)
    alpha[:5] = 0
    with pytest.raises(BadMask, match="black, white and transparent"):
        read_mask(encode(np.dstack([colours, alpha])), SHAPE)


@pytest.mark.parametrize("size", [(512, 300), (40, 128), (20, 20), (131, 127)])
def test_a_mask_at_another_size_covers_all_that_it_touches(size: tuple[int, int]) -> None:
    """Against the definition, pixel by pixel."""
    hole = np.random.default_rng(0).random(size) < 0.01
    expected = np.zeros((128, 128), bool)
    for row, column in np.argwhere(hole):
        for new_row in range(row * 128 // size[0], -(-(row + 1) * 128 // size[0])):
            for new_column in range(column * 128 // size[1], -(-(column + 1) * 128 // size[1])):
                expected[new_row, new_column] = True
    assert (touched_pixels(hole, 128, 128) == expected).all()


@pytest.mark.parametrize("shape", [(45, 80), (180, 320), (91, 161), (900, 1600)])
def test_a_mask_for_another_size_hides_no_less(shape: tuple[int, int]) -> None:
    resized = resize_hole(HOLE, shape)
    assert resized.shape == shape
    assert resized.mean() == pytest.approx(HOLE.mean(), rel=0.15)
    assert (resize_hole(resized, SHAPE) | ~HOLE).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_holes_of_strategies_fit_any_image(strategy: str) -> None:
    hole = strategy_hole(strategy, 3, "name", (300, 200))  # type: ignore[arg-type]
    assert hole.shape == (300, 200) and 0.02 < hole.mean() < 0.95
    again = strategy_hole(strategy, 3, "name", (300, 200))  # type: ignore[arg-type]
    assert (again == hole).all()
    with pytest.raises(BadMask, match="1 x 1 px; too small"):
        strategy_hole("central", 0, "x", (1, 1))
