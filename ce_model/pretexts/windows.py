"""Turned, shifted and scaled windows of images, read between the pixels."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ce_model.pixels import network_input


def read_windows(
    image: Tensor, centre: Tensor, degrees: Tensor, extent: Tensor, side: int
) -> Tensor:
    """One square window of each image, bilinear; the image is mirrored beyond its edge.

    Args:
        image: uint8, RGB.
        centre: of each window across and down from the centre of the image, px.
        degrees: by which the window is turned clockwise, as the image is seen.
        extent: side of each window in the image, px.
        side: of the result, px.

    Shape:
        image: uint8 (B, S, S, 3); centre: float (B, 2); degrees, extent: float (B,); result: float
        (B, 3, side, side) in [-1, 1].
    """
    half = image.shape[1] / 2
    along = (torch.arange(side, device=image.device, dtype=torch.float64) + 0.5) / side * 2 - 1
    across, down = along.view(1, 1, -1), along.view(1, -1, 1)
    angle = (degrees * (math.pi / 180)).view(-1, 1, 1)
    reach = (extent / 2).view(-1, 1, 1)
    x = centre[:, 0].view(-1, 1, 1) + reach * (angle.cos() * across - angle.sin() * down)
    y = centre[:, 1].view(-1, 1, 1) + reach * (angle.sin() * across + angle.cos() * down)
    grid = (torch.stack([x, y], dim=3) / half).float()
    return F.grid_sample(network_input(image), grid, padding_mode="reflection", align_corners=False)
