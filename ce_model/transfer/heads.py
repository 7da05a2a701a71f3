"""Heads on a pretrained encoder: classification and segmentation (detection is detection.py).

Every head takes a folded encoder (see rescaling.py), adds fresh layers, and `begin` gives the
whole the same start: data-dependent fresh layers, then equal learning rates of all layers.

Source: Pathak et al. 2016, arXiv:1604.07379, section 5.2; fully convolutional head of Long,
Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015 (FCN-32s).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ce_model import unet
from ce_model.hierarchy import Backbone
from ce_model.kmeans import Weighted
from ce_model.transfer.initialisation import chain_of, equalise, initialise

HEAD_WIDTH = 4096  # units of fc6 and fc7 in AlexNet
HEAD_DROPOUT = 0.5
QUIET = 0.1  # fresh output layers start with a tenth of unit variance
POOL5_STRIDE, POOL5_PADDING = 32, 17  # px of alexnet without padding, see `pad_to_grid`
CONV5_STRIDE, CONV5_PADDING = 16, 9
CHANNELS = 256  # of conv5 and pool5


class Classifier(nn.Module):
    """fc6, fc7 and class scores on the encoder's last features.

    Shape:
        x: float (B, 3, S, S) in [-1, 1]; result: logits (B, classes).
    """

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        classes: int,
        *,
        width: int = HEAD_WIDTH,
        dropout: float = HEAD_DROPOUT,
    ) -> None:
        """Fresh fc6, fc7 and score on the encoder; `width` units each."""
        super().__init__()
        self.encoder = encoder
        self.fc6, self.fc7 = nn.Linear(features, width), nn.Linear(width, width)
        self.score = nn.Linear(width, classes)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.encoder(x).flatten(1)
        for layer in (self.fc6, self.fc7):
            x = F.dropout(F.relu(layer(x)), self.dropout, self.training)
        scores: Tensor = self.score(x)
        return scores

    def fresh(self) -> list[list[Weighted]]:
        """Layers that the encoder did not bring, in order; the last group makes the output."""
        return [[self.fc6], [self.fc7], [self.score]]


class Segmenter(nn.Module):
    """FCN-32s: fc6 and fc7 as convolutions, class scores, bilinear enlargement by the stride, 32.

    The image is padded so that score cell j covers the pixels 32 j to 32 j + 31, instead of the
    100 px of the original, which only makes small images possible. An encoder of another stride
    (unet has 16) gets an FCN of that one.

    Shape:
        x: float (B, 3, H, W) in [-1, 1]; result: logits (B, classes, H, W).
    """

    def __init__(
        self,
        encoder: nn.Module,
        classes: int,
        *,
        width: int = HEAD_WIDTH,
        dropout: float = HEAD_DROPOUT,
    ) -> None:
        """Fresh fc6, fc7 and score on the encoder; `width` units each."""
        super().__init__()
        self.encoder, self.grid = encoder, last_grid(encoder)
        self.fc6, self.fc7 = nn.Conv2d(self.grid.channels, width, 6), nn.Conv2d(width, width, 1)
        self.score = nn.Conv2d(width, classes, 1)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of every pixel."""
        height, width = x.shape[2:]
        x = self.encoder(pad_to_grid(x, self.grid.stride, self.grid.padding))
        x = F.relu(self.fc6(F.pad(x, (2, 3, 2, 3))))
        x = F.relu(self.fc7(F.dropout2d(x, self.dropout, self.training)))
        x = self.score(F.dropout2d(x, self.dropout, self.training))
        x = F.interpolate(x, scale_factor=self.grid.stride, mode="bilinear", align_corners=False)
        return x[:, :, :height, :width]

    def fresh(self) -> list[list[Weighted]]:
        """Layers that the encoder did not bring, in order; the last group makes the output."""
        return [[self.fc6], [self.fc7], [self.score]]


class Grid(NamedTuple):
    """The positions of a map of features."""

    channels: int
    stride: int
    """Px of the image between two positions."""
    padding: int | None
    """As `pad_to_grid` takes it."""


class Stage(nn.Module):
    """One map of a backbone, of whole images: float (B, 3, H, W) -> (B, C, H / s, W / s)."""

    def __init__(self, backbone: Backbone, number: int) -> None:
        """`number` counts from the finest map, 0."""
        super().__init__()
        self.backbone, self.number = backbone, number

    def forward(self, x: Tensor) -> Tensor:
        """The map."""
        return self.backbone.maps(x)[self.number]


def last_grid(encoder: nn.Module) -> Grid:
    """Of the last features: pool5 of alexnet, e5 of unet, the coarsest map of a backbone."""
    if isinstance(encoder, Backbone):
        return Grid(encoder.channels[-1], encoder.strides[-1], None)
    if isinstance(next(encoder.children()), unet.Stem):
        return Grid(unet.WIDTHS[-1], unet.STRIDE, None)
    return Grid(CHANNELS, POOL5_STRIDE, None if _pads(encoder) else POOL5_PADDING)


def region_features(encoder: nn.Module) -> tuple[nn.Module, Grid]:
    """What regions are cut from: conv5 of alexnet, e5 of unet, the map of a backbone at stride 16.

    A backbone without such a map gives the next finer one.
    """
    if isinstance(encoder, Backbone):
        number = max(at for at, s in enumerate(encoder.strides) if s <= CONV5_STRIDE)
        found = Grid(encoder.channels[number], encoder.strides[number], None)
        return Stage(encoder, number), found
    assert isinstance(encoder, nn.Sequential)
    if isinstance(encoder[0], unet.Stem):
        return encoder, last_grid(encoder)
    grid = Grid(CHANNELS, CONV5_STRIDE, None if _pads(encoder) else CONV5_PADDING)
    return encoder[:-1], grid  # RoI pooling takes the place of pool5


def _pads(encoder: nn.Module) -> bool:
    """Whether the layers of an alexnet pad themselves."""
    first = next(layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d))
    return any(side > 0 for side in first.padding if isinstance(side, int))


def pad_to_grid(x: Tensor, stride: int, padding: int | None) -> Tensor:
    """Zeros around an image so that cell (i, j) of the features is centred on its own pixels.

    Without padding, cell 0 of conv5 is centred on pixel 17 and a cell of pool5 on pixel 33; cell i
    shall lie over the pixels stride * i to stride * (i + 1) - 1 and the cells shall cover all.

    Args:
        x: float (B, 3, H, W).
        stride: px between cells.
        padding: px before the first pixel; None where the layers pad themselves, and the image
            only has to be of whole cells.
    """
    if padding is None:
        height, width = (-side % stride for side in x.shape[2:])
        return F.pad(x, (0, width, 0, height))
    needed = [stride * -(-side // stride) + 2 * padding + 1 for side in x.shape[2:]]
    after = [n - side - padding for n, side in zip(needed, x.shape[2:], strict=True)]
    return F.pad(x, (padding, after[1], padding, after[0]))


def initialise_head(
    encoder: nn.Module,
    fresh: Sequence[Sequence[Weighted]],
    forward: Callable[[], Sequence[Tensor]],
    generator: torch.Generator,
) -> None:
    """Give a network with a fresh head its start: the same rule for every encoder.

    Args:
        encoder: the folded encoder inside the network.
        fresh: its new layers, the output layers as the last group.
        forward: the outputs of the network for some images of the task, in eval mode.
        generator: the only source of randomness.
    """
    layers = [layer for group in fresh for layer in group]
    initialise(layers, forward, filters="gaussian", generator=generator)
    with torch.no_grad():
        for layer in fresh[-1]:
            layer.weight.mul_(QUIET)
            assert layer.bias is not None
            layer.bias.zero_()
    equalise([*chain_of(encoder), *fresh], forward, generator)


def pool_features(features: Tensor, values: int) -> Tensor:
    """Flatten features after max pooling to at most about `values` values per image.

    The grid is the largest square one that fits, as in Zhang, Isola, Efros, "Colorful Image
    Colorization", ECCV 2016, so that layers of different size are compared at one budget.

    Shape:
        features: float (B, C, H, W) or (B, C); result: (B, C * g * g) or (B, C).
    """
    if features.ndim == 2:
        return features
    grid = max(1, min(features.shape[2], int((values / features.shape[1]) ** 0.5)))
    return F.adaptive_max_pool2d(features, grid).flatten(1)
