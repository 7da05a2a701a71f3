"""Histograms of oriented gradients, as a target to predict: edges without colour and contrast.

Per colour channel and square cell: the directions of the gradient, without sign, in equal bins, a
pixel counting by the length of its gradient; each histogram is divided by its L2 norm. Gradients
are central differences, 0 across the border of the image. The numbers are those of
`skimage.feature.hog` with one cell per block and block_norm "L2", channel by channel.

Source: Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection", CVPR 2005; as a
target Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training" (MaskFeat),
CVPR 2022, arXiv:2112.09133, section 3.1: 9 directions, cells of 8 px, three channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_DIRECTIONS = 9
CELL_PX = 8
EPSILON = 1e-5  # of the norm, as in scikit-image


def histograms(image: Tensor) -> Tensor:
    """Normalised histograms of each cell.

    Args:
        image: any scale; what a histogram is divided by grows with it.

    Shape:
        image: float (B, C, S, S), S a multiple of 8; result: float (B, C, 9, S / 8, S / 8), bin k
        holding the gradients that point k * 20 to (k + 1) * 20 degrees from the row axis.
    """
    if image.shape[-1] % CELL_PX or image.shape[-2] % CELL_PX:
        raise ValueError(
            f"images have shape {tuple(image.shape)}; their sides must be multiples of "
            f"{CELL_PX} px, the side of a cell of the histograms"
        )
    image = image.float()
    down, across = torch.zeros_like(image), torch.zeros_like(image)
    down[..., 1:-1, :] = image[..., 2:, :] - image[..., :-2, :]
    across[..., 1:-1] = image[..., 2:] - image[..., :-2]
    length = torch.hypot(down, across)
    # atan2 is in (-pi, pi]; a direction and its opposite fall into one bin.
    turn = torch.atan2(down, across).mul_(NUM_DIRECTIONS / math.pi).floor_()
    bins = turn.remainder_(NUM_DIRECTIONS)
    counted = _pooled(bins, length) if image.is_cuda else _scattered(bins, length)
    return counted / torch.sqrt(counted.square().sum(2, keepdim=True) + EPSILON**2)


def _pooled(bins: Tensor, length: Tensor) -> Tensor:
    """Mean length over each cell, by bin.

    One bin at a time: 9 maps at once would take nine times the memory of the batch.

    Shape:
        bins, length: float (B, C, H, W); result: float (B, C, 9, H / 8, W / 8).
    """
    maps = (torch.where(bins == number, length, 0.0) for number in range(NUM_DIRECTIONS))
    return torch.stack([F.avg_pool2d(each, CELL_PX) for each in maps], dim=2)


def _scattered(bins: Tensor, length: Tensor) -> Tensor:
    """As `_pooled`; a quarter of its time on a CPU, in no fixed order on a GPU."""
    rows, columns = (side // CELL_PX for side in length.shape[2:])
    row, column = (torch.arange(n, device=bins.device) // CELL_PX for n in length.shape[2:])
    place = bins.long() * (rows * columns) + row.view(-1, 1) * columns + column
    counted = length.new_zeros(*length.shape[:2], NUM_DIRECTIONS, rows, columns)
    counted.flatten(2).scatter_add_(2, place.flatten(2), length.flatten(2))
    return counted / CELL_PX**2


def glyphs(counted: Tensor) -> Tensor:
    """An image of histograms: per cell one line for each direction, along the edge it stands for.

    Shape:
        counted: float (B, C, 9, H, H), as `histograms` gives them; result: float (B, C, 8H, 8H) in
        [-1, 1], black without any gradient.
    """
    middle = (CELL_PX - 1) / 2
    places = torch.arange(CELL_PX, device=counted.device, dtype=torch.float32) - middle
    angles = (torch.arange(NUM_DIRECTIONS, device=counted.device) + 0.5) * math.pi / NUM_DIRECTIONS
    # The gradient (sin, cos) in (row, column) stands at right angles to the edge; a pixel is on
    # the line through the middle when its distance along the gradient is less than a pixel.
    distance = places.view(-1, 1) * angles.sin().view(-1, 1, 1) + places * angles.cos().view(
        -1, 1, 1
    )
    lines_DSS = (1 - distance.abs()).clamp(min=0)
    drawn = torch.einsum("bcdhw,dij->bchiwj", counted.float().clamp(min=0), lines_DSS)
    return drawn.flatten(4, 5).flatten(2, 3).clamp(max=1).mul(2).sub(1)
