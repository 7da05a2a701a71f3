"""Validation: what counts in the means, however the images are shared out."""

import math

import numpy as np
import pytest
import torch

from ce_model.networks import NetworkConfig
from ce_model.training import Objective
from pipelines.pretrain import validation
from pipelines.pretrain.validation import EvalSettings, FixedImages

LOOK = EvalSettings(NetworkConfig(), Objective(adversarial=0.0), torch.float32)


def pictures(count: int) -> FixedImages:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, 128, 128, 3), generator=generator, dtype=torch.uint8)
    hidden = torch.zeros(count, 128, 128, dtype=torch.bool)
    hidden[:, 32:96, 32:96] = True
    return FixedImages(image, hidden)


class Grey(torch.nn.Module):
    """Fills every hole with grey, those of the first `broken` images with NaN."""

    def __init__(self, broken: int = 0) -> None:
        super().__init__()
        self.broken = broken

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        filled = torch.zeros(len(context), 3, 64, 64)
        filled[: self.broken] = float("nan")
        return filled


def test_a_rank_without_pictures_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = validation.measure(Grey(), pictures(3), LOOK)
    totals: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: totals.append(total.clone()))
    validation.measure(Grey(), pictures(3), LOOK)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(totals[0]))
    assert validation.measure(Grey(), pictures(0), LOOK) == alone


def test_a_filling_that_is_not_finite_shows_in_the_means() -> None:
    measured = validation.measure(Grey(broken=1), pictures(3), LOOK)
    assert math.isnan(measured["psnr_hole"]) and math.isfinite(measured["psnr_mean_fill"])


def test_a_picture_without_a_hidden_pixel_is_left_out() -> None:
    some = pictures(3)
    hidden = some.hidden.clone()
    hidden[2] = False
    expected = validation.measure(Grey(), FixedImages(some.image[:2], some.hidden[:2]), LOOK)
    assert validation.measure(Grey(), FixedImages(some.image, hidden), LOOK) == expected


class Copy(torch.nn.Module):
    """Gives back what it sees."""

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        return context


def test_only_the_hole_varies_in_the_variance_ratio() -> None:
    some = pictures(3)
    look = EvalSettings(
        NetworkConfig(output="full"), Objective(adversarial=0.0, overlap=0), torch.float32
    )
    measured = validation.measure(Copy(), some, look)
    assert measured["variance_ratio"] == pytest.approx(0, abs=1e-9)  # one colour in every hole


def test_a_panel_shows_what_the_network_saw_and_fills_that_hole_alone() -> None:
    some = pictures(2)
    shown = validation.panel(Grey(), some, LOOK)
    hole = np.zeros((2, 128, 128), np.bool_)
    hole[:, 36:92, 36:92] = True  # without the ring of known context
    np.testing.assert_array_equal(shown["hole"], hole)
    np.testing.assert_array_equal(shown["target"], some.image)
    assert set(map(tuple, shown["input"][hole])) == {(123, 117, 104)}
    for name in ("input", "output"):
        np.testing.assert_array_equal(shown[name][~hole], some.image.numpy()[~hole])
    assert (shown["output"][hole] == 128).all()


def test_the_image_is_held_against_its_own_mean_and_telea() -> None:
    some = pictures(2)
    image = some.image.clone()
    image[0] = 90  # one colour: everything but the grey filling is right
    measured = validation.measure(Grey(), FixedImages(image[:1], some.hidden[:1]), LOOK)
    assert measured["psnr_visible_mean"] > 60 > measured["psnr_mean_fill"]
    assert measured["sharpness"] == 1.0  # no gradient in either
    assert measured["seam"] == 1.0  # none in the truth: no ratio
    telea = validation.measure_classical(FixedImages(image[:1], some.hidden[:1]), LOOK)
    assert telea["psnr_telea"] > 40  # OpenCV's method rounds


def test_telea_counts_images_with_a_hole_and_its_error_is_that_of_the_hole() -> None:
    some = pictures(3)
    hidden = some.hidden.clone()
    hidden[2] = False
    all_of_them = validation.measure_classical(FixedImages(some.image, hidden), LOOK)
    with_hole = validation.measure_classical(FixedImages(some.image[:2], hidden[:2]), LOOK)
    assert all_of_them == with_hole
    assert 5 < with_hole["psnr_telea"] < 15  # noise cannot be guessed
    alexnet = LOOK._replace(network=NetworkConfig(preset="alexnet", output="full"))
    assert validation.measure_classical(some, alexnet) == {}
