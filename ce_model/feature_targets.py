"""What the preset `features` predicts of each hidden cell, and pixels and glyphs back from it.

A target is one vector per cell of CELL_PX x CELL_PX pixels: float (B, D, G, G).
- pixels: the colours, in [-1, 1].
- normalized: the colours less their mean, divided by their standard deviation, over the cell and
  all channels (He et al., "Masked Autoencoders Are Scalable Vision Learners" (MAE), CVPR 2022,
  arXiv:2111.06377, section 3), so that the detail of a cell counts as much as its colour.
- hog: its 2 x 2 histograms of oriented gradients in three channels (see `hog`).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ce_model import hog
from ce_model.layers import ZeroConv2d
from ce_model.network_config import Target

CELL_PX = 16  # side of a cell of the holes, and stride of conv5
EPSILON = 1e-6  # of a cell's variance, as in MAE
HOGS = CELL_PX // hog.CELL_PX  # histograms along the side of a cell
MEAN_HOG = 0.25  # of the values of photographs


def target_channels(target: Target) -> int:
    """Values to predict of each cell."""
    return 3 * hog.NUM_DIRECTIONS * HOGS**2 if target == "hog" else 3 * CELL_PX**2


def predicting_layer(channels: int, target: Target, taps: int = 1) -> ZeroConv2d:
    """The last layer of a decoder, one vector from the taps x taps positions of each cell.

    It begins with the same prediction for every cell, about the mean of all. Random predictions,
    whose error is twenty times the spread of the targets, would first be silenced, also by the
    encoder, whose maps lose their rank by it and hardly find it again.
    """
    layer = ZeroConv2d(channels, target_channels(target), taps, taps)
    layer.value = MEAN_HOG if target == "hog" else 0.0
    return layer


def make_target(target: Target, image: Tensor) -> Tensor:
    """What is to be predicted of each cell.

    Shape:
        image: float (B, 3, S, S) in [-1, 1]; result: float (B, target_channels, G, G), G = S / 16.
    """
    if target == "hog":
        return F.pixel_unshuffle(hog.histograms(image).flatten(1, 2), HOGS)
    cells = F.pixel_unshuffle(image, CELL_PX)
    if target == "pixels":
        return cells
    spread = cell_statistics(image)
    return (cells - spread.mean) / spread.deviation


class CellStatistics(NamedTuple):
    """Of the colours of each cell, over all channels.

    Shape:
        mean, deviation: float (B, 1, G, G); deviation has `EPSILON` under its root.
    """

    mean: Tensor
    deviation: Tensor


def cell_statistics(image: Tensor) -> CellStatistics:
    """Mean and standard deviation of each cell: image float (B, 3, S, S)."""
    variance, mean = torch.var_mean(F.pixel_unshuffle(image, CELL_PX), dim=1, keepdim=True)
    return CellStatistics(mean, torch.sqrt(variance + EPSILON))


def hidden_cells(hidden: Tensor) -> Tensor:
    """The cells that have a hidden pixel; preset `features` hides them whole.

    Shape:
        hidden: bool (B, S, S); result: bool (B, G, G), G = S / 16.
    """
    return F.max_pool2d(hidden.float().unsqueeze(1), CELL_PX).squeeze(1).bool()


def whole_cells(cells: Tensor) -> Tensor:
    """The pixels of the hidden cells: bool (B, G, G) -> bool (B, S, S)."""
    return cells.repeat_interleave(CELL_PX, 1).repeat_interleave(CELL_PX, 2)


def as_image(target: Target, values: Tensor, truth: Tensor) -> Tensor:
    """Colours of a prediction, for a person to look at.

    Normalised cells get the mean and the spread of the true ones back, as MAE shows them; hog
    becomes glyphs: in each histogram's cell one line per direction along the edge, as bright as
    that direction is frequent.

    Shape:
        values: float (B, D, G, G); truth: float (B, 3, S, S) in [-1, 1]; result: float as truth.
    """
    if target == "hog":
        return hog.glyphs(_split(values))
    if target == "normalized":
        spread = cell_statistics(truth)
        values = values * spread.deviation + spread.mean
    return F.pixel_shuffle(values, CELL_PX)


def _split(values: Tensor) -> Tensor:
    """Hog vectors of cells (B, 108, G, G) -> histograms (B, 3, 9, 2G, 2G)."""
    counted = F.pixel_shuffle(values, HOGS)
    return counted.reshape(len(values), 3, hog.NUM_DIRECTIONS, *counted.shape[2:])
