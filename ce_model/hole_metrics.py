"""How well a hole was filled: L1, L2, PSNR and SSIM over the hidden pixels.

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
