"""Any photograph is filled in its holes and nowhere else, and what is hidden has no influence."""

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import draw_image

from ce_model import training
from ce_model.networks import NetworkConfig, build_generator
from ce_model.training import Objective, default_objective
from pipelines.errors import UserError
from pipelines.models.crops import Reach, hole_boxes, plan_crops, reach_of
from pipelines.models.files import LoadedModel
from pipelines.models.fill import fill_photograph, fill_photographs, smooth, smooth_start


def untrained(output: str) -> LoadedModel:
    network = NetworkConfig(preset="inpaint", output=output, bottleneck=8)  # type: ignore[arg-type]
    objective = Objective(
        overlap=4 if output == "center" else 0, region="hole" if output == "center" else "image"
    )
    generator = build_generator(network, generator=torch.Generator().manual_seed(0)).eval()
    return LoadedModel(generator, network, objective, {})


CENTER, FULL = untrained("center"), untrained("full")
UNET_NETWORK = NetworkConfig(preset="unet", output="full")
UNET = LoadedModel(
    build_generator(UNET_NETWORK).eval(), UNET_NETWORK, default_objective(UNET_NETWORK), {}
)


def corners(hole: np.ndarray) -> None:
    hole[:20, :31] = True
    hole[-9:, -40:] = True


def scratch(hole: np.ndarray) -> None:
    for row in range(hole.shape[0]):
        hole[row, row * hole.shape[1] // hole.shape[0]] = True


def specks(hole: np.ndarray) -> None:
    hole[np.random.default_rng(1).random(hole.shape) < 0.05] = True


def solid(hole: np.ndarray) -> None:
    hole[hole.shape[0] // 8 :, : hole.shape[1] * 3 // 4] = True


@pytest.mark.parametrize("model", [CENTER, FULL, UNET], ids=["center", "full", "unet"])
@pytest.mark.parametrize(
    ("size", "draw"),
    [((96, 140), specks), ((140, 200), scratch), ((30, 50), corners)],
)  # fmt: skip
def test_only_the_hole_changes_and_nothing_of_it_was_seen(
    model: LoadedModel, size: tuple[int, int], draw: Callable[[np.ndarray], None]
) -> None:
    image, hole = draw_image(0, *size), np.zeros(size, bool)
    draw(hole)
    filled = fill_photograph(model, image, hole)
    assert (filled[~hole] == image[~hole]).all()
    altered = image.copy()
    altered[hole] = 255 - altered[hole]
    assert (fill_photograph(model, altered, hole) == filled).all()
    assert (filled[hole] != altered[hole]).any(axis=1).mean() > 0.9


def test_the_smooth_start_is_what_an_untrained_unet_gives() -> None:
    image, hole = draw_image(0, 120, 96), np.zeros((120, 96), bool)
    hole[30:70, 20:60] = True
    start = smooth_start(image, hole)
    assert (start[~hole] == image[~hole]).all()
    seen = training.fill(
        UNET.generator, torch.from_numpy(image)[None], torch.from_numpy(hole)[None],
        network=UNET.network, objective=UNET.objective, dtype=torch.float32,
    )  # fmt: skip
    assert np.abs(seen[0].numpy().astype(int) - start).max() <= 1


@pytest.mark.parametrize("model", [CENTER, FULL, UNET], ids=["center", "full", "unet"])
@pytest.mark.parametrize("draw", [corners, scratch, specks, solid])
def test_every_hidden_pixel_lies_in_a_box_that_the_network_can_fill(
    model: LoadedModel, draw: Callable[[np.ndarray], None]
) -> None:
    hole = np.zeros((700, 1500), bool)
    draw(hole)
    reach = reach_of(model)
    left = hole.copy()
    for crop in plan_crops(hole, reach):
        left[crop.box] = False
        scale = crop.canvas / crop.side
        for part, start in zip(crop.box, (crop.top, crop.left), strict=True):
            assert (part.stop - part.start) * scale <= reach.hole
            first, end = ((at - start) * scale for at in (part.start, part.stop))
            margin = (reach.canvas - reach.hole) / 2 if reach.central else 0
            assert margin - 1 <= first and end <= reach.canvas - margin + 1
    assert not left.any()


def test_a_thin_hole_is_filled_at_its_own_resolution_and_a_thick_one_shrunk() -> None:
    reach = Reach(128, 56, True)
    hole = np.zeros((1000, 1000), bool)
    scratch(hole)
    assert {crop.side for crop in plan_crops(hole, reach)} == {128}
    hole[:] = False
    hole[300:700, 300:700] = True
    (crop,) = plan_crops(hole, reach)
    assert crop.side > 128 * 400 / 56


def test_boxes_are_tight_and_tell_how_thick_a_hole_is() -> None:
    hole = np.zeros((100, 100), bool)
    hole[10:20, 30:70] = True
    assert hole_boxes(hole) == [((slice(10, 20), slice(30, 70)), 10)]
    assert hole_boxes(np.zeros((5, 7), bool)) == []


def test_many_photographs_at_once_are_those_one_by_one() -> None:
    images = [draw_image(number, 90 + number, 140) for number in range(3)]
    holes = [np.zeros(image.shape[:2], bool) for image in images]
    holes[0][:30, :30] = holes[2][40:60, 100:] = True
    together = fill_photographs(CENTER, images, holes)
    for image, hole, filled in zip(images, holes, together, strict=True):
        alone = fill_photograph(CENTER, image, hole)
        assert np.abs(alone.astype(int) - filled).max() <= 1  # sums of another batch size
    assert (together[1] == images[1]).all()


def test_a_constant_photograph_stays_without_a_seam() -> None:
    """Whatever the network says, its rim is brought to that of the photograph."""
    image, hole = np.full((200, 200, 3), 90, np.uint8), np.zeros((200, 200), bool)
    hole[80:120, 70:110] = True
    filled = fill_photograph(FULL, image, hole).astype(int)
    assert np.abs(filled[80, 70:110] - 90).max() < 25


def test_smooth_keeps_what_is_known_and_averages_the_rest() -> None:
    rng = np.random.default_rng(0)
    values, known = rng.random((37, 53, 3)).astype(np.float32), rng.random((37, 53)) < 0.1
    found = smooth(values, known)
    assert np.allclose(found[known], values[known])
    assert found.min() >= values[known].min() and found.max() <= values[known].max()
    assert np.allclose(smooth(np.full((9, 4, 1), 3, np.float32), known[:9, :4] | True), 3)


def test_a_mask_that_cannot_be_meant_is_refused() -> None:
    image = draw_image(0, 30, 40)
    with pytest.raises(UserError, match="hides the whole image"):
        fill_photograph(CENTER, image, np.ones((30, 40), bool))
    with pytest.raises(UserError, match=r"the mask must be bool \(H, W\)"):
        fill_photograph(CENTER, image, np.ones((40, 30), bool))
    with pytest.raises(UserError, match="it must be uint8"):
        fill_photograph(CENTER, image[..., 0], np.ones((30, 40), bool))


def test_a_large_photograph_takes_seconds_of_a_core() -> None:
    image, hole = draw_image(0, 3000, 4000), np.zeros((3000, 4000), bool)
    for top, left, side in ((10, 10, 40), (500, 600, 300), (1500, 2000, 900), (2500, 3500, 480)):
        hole[top : top + side, left : left + side] = True
    began = time.process_time()
    filled = fill_photograph(CENTER, image, hole)
    assert time.process_time() - began < 20
    assert (filled[~hole] == image[~hole]).all()
