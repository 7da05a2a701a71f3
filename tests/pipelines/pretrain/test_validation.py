"""Validation: what counts in the means, however the images are shared out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ce_model.feature_targets import make_target
from ce_model.networks import NetworkConfig, build_generator
from ce_model.training import Objective, default_objective
from pipelines.pretrain import validation
from pipelines.pretrain.validation import EvalSettings, FixedImages

LOOK = EvalSettings(NetworkConfig(), Objective(adversarial=0.0), torch.float32)


def images(count: int) -> FixedImages:
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


def test_a_rank_without_images_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = validation.measure(Grey(), images(3), LOOK)
    totals: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: totals.append(total.clone()))
    validation.measure(Grey(), images(3), LOOK)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(totals[0]))
    assert validation.measure(Grey(), images(0), LOOK) == alone


def test_a_filling_that_is_not_finite_shows_in_the_means() -> None:
    measured = validation.measure(Grey(broken=1), images(3), LOOK)
    assert math.isnan(measured["psnr_hole"]) and math.isfinite(measured["psnr_mean_fill"])


def test_an_image_without_a_hidden_pixel_is_left_out() -> None:
    some = images(3)
    hidden = some.hidden.clone()
    hidden[2] = False
    expected = validation.measure(Grey(), FixedImages(some.image[:2], some.hidden[:2]), LOOK)
    assert validation.measure(Grey(), FixedImages(some.image, hidden), LOOK) == expected


FEATURES = NetworkConfig(preset="features", output="full", target="normalized")
CELLS = EvalSettings(FEATURES, default_objective(FEATURES), torch.float32)


class Half(torch.nn.Module):
    """Predicts half of every target; knows the images."""

    def __init__(self, some: FixedImages) -> None:
        super().__init__()
        self.some = some

    def forward(self, context: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        image = self.some.image.permute(0, 3, 1, 2).float() / 127.5 - 1
        return make_target("normalized", image) / 2


def test_cells_are_measured_as_by_numpy() -> None:
    some = images(3)
    measured = validation.measure(Half(some), some, CELLS)
    image = some.image.numpy().astype(np.float64) / 127.5 - 1
    cells = image.reshape(3, 8, 16, 8, 16, 3).transpose(0, 1, 3, 5, 2, 4).reshape(3, 8, 8, -1)
    mean, variance = cells.mean(-1, keepdims=True), cells.var(-1, ddof=1, keepdims=True)
    target = ((cells - mean) / np.sqrt(variance + 1e-6))[:, 2:6, 2:6].reshape(-1, 768)
    assert measured["target_error"] == pytest.approx((target**2).mean() / 4, rel=1e-4)
    assert measured["target_error_mean"] == pytest.approx(target.var(0).mean(), rel=1e-4)
    assert measured["variance_ratio"] == pytest.approx(0.25, rel=1e-4)
    assert "psnr_hole" in measured


def test_hog_has_no_errors_of_colours_and_a_panel_of_glyphs() -> None:
    network = replace(FEATURES, target="hog")
    look = EvalSettings(network, default_objective(network), torch.float32)
    some, generator = images(2), build_generator(network)
    assert not validation.measure(generator, some, look).keys() & {"psnr_hole", "l1_hole"}
    shown = validation.panel(generator, some, look)
    visible = ~shown["hole"]
    assert (shown["input"][visible] == some.image.numpy()[visible]).all()
    assert (shown["output"][visible] == shown["target"][visible]).all()
    assert (shown["target"] != some.image.numpy()).any()


class Copy(torch.nn.Module):
    """Gives back what it sees."""

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        return context


def test_only_the_hole_varies_in_the_variance_ratio() -> None:
    some = images(3)
    look = EvalSettings(
        NetworkConfig(output="full"), Objective(adversarial=0.0, overlap=0), torch.float32
    )
    measured = validation.measure(Copy(), some, look)
    assert measured["variance_ratio"] == pytest.approx(0, abs=1e-9)  # one colour in every hole


def test_a_panel_shows_what_the_network_saw_and_fills_that_hole_alone() -> None:
    some = images(2)
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
    some = images(2)
    image = some.image.clone()
    image[0] = 90  # one colour: everything but the grey filling is right
    measured = validation.measure(Grey(), FixedImages(image[:1], some.hidden[:1]), LOOK)
    assert measured["psnr_visible_mean"] > 60 > measured["psnr_mean_fill"]
    assert measured["sharpness"] == 1.0  # no gradient in either
    assert measured["seam"] == 1.0  # none in the truth: no ratio
    telea = validation.measure_classical(FixedImages(image[:1], some.hidden[:1]), LOOK)
    assert telea["psnr_telea"] > 40  # OpenCV's method rounds


def test_telea_counts_images_with_a_hole_and_its_error_is_that_of_the_hole() -> None:
    some = images(3)
    hidden = some.hidden.clone()
    hidden[2] = False
    all_of_them = validation.measure_classical(FixedImages(some.image, hidden), LOOK)
    with_hole = validation.measure_classical(FixedImages(some.image[:2], hidden[:2]), LOOK)
    assert all_of_them == with_hole
    assert 5 < with_hole["psnr_telea"] < 15  # noise cannot be guessed
    alexnet = LOOK._replace(network=NetworkConfig(preset="alexnet", output="full"))
    assert validation.measure_classical(some, alexnet) == {}
