"""How well a hole was filled: L1, L2, PSNR, SSIM, sharpness and the seam at its rim.

Colours are in [0, 1]. Every figure is per image, so that the caller averages over images: PSNR is
the mean of per-image PSNR, as in table 1 of the paper. An image without hidden pixels gives nan.

Source: Pathak et al., "Context Encoders: Feature Learning by Inpainting", CVPR 2016,
arXiv:1604.07379, table 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MAX_PSNR_DB = 100.0  # reported for a perfect hole, so that means stay finite
SSIM_RADIUS, SSIM_SIGMA = 5, 1.5  # 11 x 11 Gaussian window, Wang et al. 2004
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


class HoleErrors(NamedTuple):
    """Of each image: mean absolute error, mean squared error, PSNR in dB. Shape: float (B,)."""

    l1: Tensor
    l2: Tensor
    psnr: Tensor


def hole_errors(prediction: Tensor, target: Tensor, hole: Tensor) -> HoleErrors:
    """Errors over the values of hidden pixels only.

    Shape:
        prediction, target: float (B, 3, T, T) in [0, 1]; hole: bool (B, 1, T, T).
    """
    difference = prediction - target
    l1 = _hole_mean(difference.abs(), hole)
    l2 = _hole_mean(difference.square(), hole)
    return HoleErrors(l1, l2, -10 * l2.clamp(min=10 ** (-MAX_PSNR_DB / 10)).log10())


def ssim(prediction: Tensor, target: Tensor, hole: Tensor) -> Tensor:
    """Structural similarity of the filled image, averaged over hidden pixels: float (B,).

    The prediction is pasted into the hole first, so windows that reach over the border of the hole
    see what a viewer sees. Equal to scikit-image's `structural_similarity` with gaussian_weights,
    use_sample_covariance=False and data_range=1.

    Shape:
        prediction, target: float (B, 3, T, T) in [0, 1]; hole: bool (B, 1, T, T).
    """
    filled = torch.where(hole, prediction, target)
    mean_x, mean_y = _blur(filled), _blur(target)
    variance_x = _blur(filled.square()) - mean_x.square()
    variance_y = _blur(target.square()) - mean_y.square()
    covariance = _blur(filled * target) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x.square() + mean_y.square() + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    return _hole_mean(luminance * structure, hole)


class GradientEnergies(NamedTuple):
    """Mean squares of the differences between neighbours. Shape: float (B,) each.

    `filled` and `truth` are between hidden pixels: their ratio is 1 where the filling is as sharp
    as the truth and near 0 where it is a blur. `seam` and `seam_truth` are across the rim, between
    a hidden and a visible pixel: a ratio above 1 is an edge that the truth does not have. Where an
    image has no such pair, the mean is 0.
    """

    filled: Tensor
    truth: Tensor
    seam: Tensor
    seam_truth: Tensor


def gradient_energies(prediction: Tensor, target: Tensor, hole: Tensor) -> GradientEnergies:
    """Differences to the right and to the bottom neighbour, with the prediction in the hole.

    Shape:
        prediction, target: float (B, 3, H, W); hole: bool (B, 1, H, W).
    """
    filled = torch.where(hole, prediction, target)
    sums = [prediction.new_zeros(len(hole)) for _ in GradientEnergies._fields]
    pairs = [torch.zeros_like(sums[0]) for _ in range(2)]
    for dim in (2, 3):
        size = hole.shape[dim] - 1
        first, second = hole.narrow(dim, 0, size), hole.narrow(dim, 1, size)
        for kind, where in enumerate((first & second, first ^ second)):
            pairs[kind] += where.sum((1, 2, 3)) * target.shape[1]
            for at, image in ((2 * kind, filled), (2 * kind + 1, target)):
                energy = image.diff(dim=dim).square()
                sums[at] += torch.where(where, energy, 0).sum((1, 2, 3))
    means = [total / pairs[at // 2].clamp(min=1) for at, total in enumerate(sums)]
    return GradientEnergies(*means)


def _hole_mean(values: Tensor, hole: Tensor) -> Tensor:
    num_values = values.shape[1] * hole.sum((1, 2, 3))
    return torch.where(hole, values, 0).sum((1, 2, 3)) / num_values


def _blur(values: Tensor) -> Tensor:
    """Gaussian window around every pixel, as two small matrix products.

    The image is mirrored at its border, edge pixels included.
    """
    side = values.shape[2]
    offsets = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, device=values.device)
    kernel = torch.exp(-(offsets.to(values.dtype) ** 2) / (2 * SSIM_SIGMA**2))
    index = torch.arange(side, device=values.device).unsqueeze(1) + offsets
    index = torch.where(index < 0, -1 - index, index)
    index = torch.where(index >= side, 2 * side - 1 - index, index)
    weights = values.new_zeros(side, side)
    weights.scatter_add_(1, index, (kernel / kernel.sum()).expand(side, -1))
    return weights @ values @ weights.T
