"""Filling holes: what the classical methods may see, and how fills are scored."""

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio

from ce_model.masks import STRATEGIES, central
from ce_model.networks import NetworkConfig, Output, build_generator
from ce_model.training import Objective
from pipelines.evaluation.data.images import ImageSet
from pipelines.evaluation.settings import InpaintingSettings
from pipelines.evaluation.tasks import classical, inpainting
from pipelines.evaluation.tasks.inpainting import HoleSet
from pipelines.models.files import LoadedModel


def photographs(count: int, side: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colour fields with noise."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, side)
    phase = rng.random((count, 3, 1, 1)) * 6
    waves = np.sin(phase + 4 * ramp[:, None] + 3 * ramp[None, :]).transpose(0, 2, 3, 1)
    return (120 + 90 * waves + rng.integers(-8, 8, waves.shape)).astype(np.uint8)


@pytest.mark.parametrize("name", classical.FILLS)
def test_a_fill_keeps_the_visible_and_never_looks_under_the_hole(name: str) -> None:
    image, hole = photographs(1)[0], central(64)
    other = image.copy()
    other[hole] = 255 - other[hole]
    filled = classical.FILLS[name](image, hole)
    np.testing.assert_array_equal(filled[~hole], image[~hole])
    np.testing.assert_array_equal(filled, classical.FILLS[name](other, hole))


@pytest.mark.parametrize("name", classical.FILLS)
def test_a_fill_restores_an_image_of_one_colour(name: str) -> None:
    image, hole = np.full((64, 64, 3), (200, 90, 30), np.uint8), central(64)
    filled = classical.FILLS[name](image, hole)
    assert np.abs(filled.astype(int) - image).max() <= 3


def test_a_neighbour_fill_copies_the_twin_found_by_visible_gradients() -> None:
    database = photographs(6, seed=1)
    hole = central(64)
    query = database[[4]].copy()
    query[:, hole] = 0
    filled = classical.neighbour_fill(
        query,
        hole,
        classical.hog_features(query, hole),
        database,
        classical.hog_features(database, hole),
    )
    np.testing.assert_array_equal(filled[0], database[4])


def test_hog_does_not_depend_on_what_is_hidden() -> None:
    images, hole = photographs(2), central(64)
    other = images.copy()
    other[:, hole] = 7
    np.testing.assert_array_equal(
        classical.hog_features(images, hole), classical.hog_features(other, hole)
    )


def test_psnr_of_the_whole_image_is_that_of_scikit_image() -> None:
    target, filled = photographs(3), photographs(3, seed=5)
    errors = inpainting.per_image(filled, target, np.repeat(central(64)[None], 3, axis=0))
    for at in range(3):
        expected = peak_signal_noise_ratio(target[at], filled[at])
        assert errors["whole"][at, 2] == pytest.approx(expected, abs=1e-3)


def test_the_rim_is_the_outer_ring_of_the_hole() -> None:
    target = np.zeros((1, 64, 64, 3), np.uint8)
    hole = central(64)[None]  # rows and columns 16 to 47
    filled = target.copy()
    filled[:, 20:44, 20:44] = 255  # wrong only deeper than 4 px
    errors = inpainting.per_image(filled, target, hole)
    assert errors["rim"][0, 0] == 0
    assert errors["hole"][0, 0] == pytest.approx(24**2 / 32**2)


def test_a_hole_that_nobody_covers_is_not_available_and_never_infinite() -> None:
    target = photographs(2)
    hole = np.zeros((2, 64, 64), bool)
    rows = inpainting.score_predictions("m", HoleSet(64, "random_block", 0), target, target, hole)
    by_region = {str(r["region"]): r for r in rows if r["hidden"] == "any"}
    assert by_region["hole"]["L1"] is None and by_region["hole"]["PSNR"] is None
    assert by_region["hole"]["pictures"] == 0


def test_scores_are_grouped_by_hidden_share() -> None:
    target = photographs(2)
    hole = np.zeros((2, 64, 64), bool)
    hole[0, :8, :8] = True  # 1.6 %
    hole[1, :32, :32] = True  # 25 %
    filled = target.copy()
    filled[1] = 255 - filled[1]
    rows = inpainting.score_predictions("m", HoleSet(64, "random_block", 0), filled, target, hole)
    share = {str(r["hidden"]): r for r in rows if r["region"] == "hole"}
    assert share["0% to 10%"]["L1"] == 0 and share["0% to 10%"]["pictures"] == 1
    assert share["10% to 20%"]["L1"] is None
    l1 = share["20% to 100%"]["L1"]
    assert isinstance(l1, float) and l1 > 0


def test_only_the_baselines_asked_for_are_measured() -> None:
    encoded = tuple(cv2.imencode(".png", p)[1].tobytes() for p in photographs(2))
    images = ImageSet(("a", "b"), np.zeros(2, np.int64), encoded, ("one",), 0)
    settings = InpaintingSettings(baselines=("Telea", "mean colour"), panel=1)
    kinds = [HoleSet(64, "central", 0)]
    measured = inpainting.measure_classical(kinds, images, None, settings)
    assert {row["method"] for row in measured.rows} == {"Telea", "mean colour"}


@pytest.mark.parametrize(("output", "overlap"), [("center", 4), ("center", 0), ("full", 0)])
def test_every_model_fills_the_same_central_hole(output: Output, overlap: int) -> None:
    network = NetworkConfig(output=output, bottleneck=2)
    assert inpainting.holes_of(network, overlap, STRATEGIES)[0] == HoleSet(128, "central", 4)
    generator = build_generator(network).eval()
    objective = Objective(overlap=overlap, region="hole" if output == "center" else "image")
    model = LoadedModel(generator, network, objective, {})
    encoded = tuple(cv2.imencode(".png", p)[1].tobytes() for p in photographs(2, side=128))
    images = ImageSet(("a", "b"), np.zeros(2, np.int64), encoded, ("one",), 0)
    settings = InpaintingSettings(strategies=("central",), panel=2)
    measured = inpainting.measure_model(model, images, None, settings, torch.float32)
    strip = cv2.imdecode(
        np.frombuffer(measured.figures["central 128 px | this model"], np.uint8), cv2.IMREAD_COLOR
    )
    changed = (strip != np.concatenate(photographs(2, side=128), axis=1)).any(2)
    rows, columns = np.nonzero(changed[:, :128])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (36, 91, 36, 91)


def test_a_hole_in_another_ring_is_another_row() -> None:
    (holes,) = inpainting.holes_of(NetworkConfig(), 16, ("central",))
    target = photographs(1, side=128)
    rows = inpainting.score_predictions("m", holes, target, target, central(128)[None])
    assert {row["holes"] for row in rows} == {"central in a ring of 16 px"}
