"""Hole metrics against NumPy and scikit-image."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from ce_model.hole_metrics import MAX_PSNR_DB, gradient_energies, hole_errors, ssim


def _example(batch: int = 3, side: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, target, hole: smooth images and noisy predictions of them."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, 5, 5, generator=generator, dtype=torch.float64)
    target = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    noise = torch.randn(target.shape, generator=generator, dtype=torch.float64)
    hole = torch.zeros(batch, 1, side, side, dtype=torch.bool)
    for index in range(batch):
        hole[index, :, : 8 + index, 4 : side - 4] = True  # reaches the border of the image
    return (target + 0.1 * noise).clamp(0, 1), target, hole


def test_errors_are_means_over_hidden_values_of_each_image() -> None:
    prediction, target, hole = _example()
    errors = hole_errors(prediction, target, hole)
    for index in range(len(hole)):
        mask = hole[index, 0].numpy()
        found, truth = (x[index].numpy()[:, mask] for x in (prediction, target))
        assert errors.l1[index].item() == pytest.approx(np.abs(found - truth).mean())
        assert errors.l2[index].item() == pytest.approx(((found - truth) ** 2).mean())
        psnr = peak_signal_noise_ratio(truth, found, data_range=1)
        assert errors.psnr[index].item() == pytest.approx(psnr)


def test_visible_pixels_do_not_count() -> None:
    prediction, target, hole = _example()
    elsewhere = torch.where(hole, prediction, torch.rand_like(prediction))
    torch.testing.assert_close(
        hole_errors(elsewhere, target, hole), hole_errors(prediction, target, hole)
    )
    torch.testing.assert_close(ssim(elsewhere, target, hole), ssim(prediction, target, hole))


def test_ssim_equals_that_of_scikit_image_over_the_hole() -> None:
    prediction, target, hole = _example()
    found = ssim(prediction, target, hole)
    for index in range(len(hole)):
        filled = torch.where(hole[index], prediction[index], target[index])
        _, similarity = structural_similarity(
            filled.numpy(),
            target[index].numpy(),
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            full=True,
        )
        expected = similarity[:, hole[index, 0].numpy()].mean()
        assert found[index].item() == pytest.approx(expected, abs=1e-9)


def test_ssim_in_float32_is_close_to_float64() -> None:
    prediction, target, hole = _example()
    single = ssim(prediction.float(), target.float(), hole)
    torch.testing.assert_close(single.double(), ssim(prediction, target, hole), atol=1e-4, rtol=0)


def test_a_perfect_fill_has_the_highest_marks() -> None:
    _, target, hole = _example()
    errors = hole_errors(target, target, hole)
    assert not errors.l1.any()
    assert errors.psnr.tolist() == pytest.approx([MAX_PSNR_DB] * 3)
    torch.testing.assert_close(ssim(target, target, hole), torch.ones(3, dtype=torch.float64))


def test_an_image_without_hidden_pixels_has_no_marks() -> None:
    prediction, target, hole = _example()
    hole[1] = False
    marks = [*hole_errors(prediction, target, hole), ssim(prediction, target, hole)]
    assert all(mark.isnan().tolist() == [False, True, False] for mark in marks)


def _plain_energies(
    filled: np.ndarray, truth: np.ndarray, hole: np.ndarray
) -> tuple[float, float, float, float]:
    inside, rim = [], []
    height, width = hole.shape
    for y in range(height):
        for x in range(width):
            for yy, xx in ((y + 1, x), (y, x + 1)):
                if yy < height and xx < width and (hole[y, x] or hole[yy, xx]):
                    pair = [((p[:, yy, xx] - p[:, y, x]) ** 2).mean() for p in (filled, truth)]
                    (inside if hole[y, x] and hole[yy, xx] else rim).append(pair)
    return (*np.mean(inside, axis=0), *np.mean(rim, axis=0))


def test_gradient_energies_equal_a_plain_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    prediction, target = (torch.rand(2, 3, 9, 12, generator=draw) for _ in range(2))
    hole = torch.rand(2, 1, 9, 12, generator=draw) < 0.4
    measured = gradient_energies(prediction, target, hole)
    filled = torch.where(hole, prediction, target)
    for number in range(2):
        expected = _plain_energies(
            filled[number].numpy(), target[number].numpy(), hole[number, 0].numpy()
        )
        found = [float(values[number]) for values in measured]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_blur_has_little_energy_and_a_patch_of_another_colour_a_seam() -> None:
    target = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) / 2
    hole = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    hole[..., 8:24, 8:24] = True
    flat = gradient_energies(torch.ones_like(target), target, hole)
    assert float(flat.filled) == 0
    assert float(flat.seam) > 3 * float(flat.seam_truth)
    same = gradient_energies(target, target, hole)
    assert float(same.filled) == float(same.truth) > 0
    assert float(same.seam) == float(same.seam_truth) > 0


def test_an_image_without_a_hole_has_no_energy() -> None:
    target, hole = torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    assert all(float(values) == 0 for values in gradient_energies(target, target, hole))
