"""Preset `features`: an AlexNet that predicts what hidden cells contain, and learns to see by it.

Masked layers compute on the visible cells of a 128 px image; a learned token stands in the hidden
cells of conv5; a small decoder, whose channel-wise fully-connected layer reaches over the whole
map, predicts each cell's target. The encoder is the paper's AlexNet with batch norm, padded so that
conv5 has one position per cell of 16 px, and is used without masks afterwards.

Source: Pathak et al. 2016, arXiv:1604.07379, section 3.1 for encoder and channel-wise layer;
`masked` and `feature_targets` name the sources of the rest.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ce_model.feature_targets import CELL_PX, predicting_layer
from ce_model.layers import ChannelwiseLinear
from ce_model.masked import hide, masked_layer
from ce_model.network_config import FEATURES_SIDE, Layers, Target

CELLS = FEATURES_SIDE // CELL_PX  # along a side
CONV5_CHANNELS = 256
TOKEN_STD = 0.02  # of the initial token


def encode_cells(encoder: nn.Sequential, context: Tensor, hidden: Tensor) -> Tensor:
    """Conv5 of the visible cells, computed on those alone; zero in the hidden ones.

    Shape:
        context: float (B, 3, 128, 128) in [-1, 1]; hidden: bool (B, 8, 8), True where hidden;
        result: float (B, 256, 8, 8).
    """
    x = hide(context, hidden)
    for layer in list(encoder)[:-1]:  # pool5 is for those who use the features
        x = masked_layer(layer, x, hidden)
    return x


class CellDecoder(nn.Module):
    """From conv5 to the target of every cell; a learned token stands for what is hidden.

    1x1 convolution, channel-wise layer over 8x8, 1x1 and 3x3 convolutions, one vector a cell.

    Attributes:
        token: float (256,), without dense layers, whose conv5 has no holes.

    Shape:
        features: float (B, 256, 8, 8); hidden: bool (B, 8, 8); result: float
        (B, target_channels, 8, 8).
    """

    def __init__(self, target: Target, layers: Layers) -> None:
        """Build the layers; their weights are drawn by `networks.init_weights`."""
        super().__init__()
        width = CONV5_CHANNELS
        self.token = nn.Parameter(torch.zeros(width)) if layers == "masked" else None
        self.enter = _block(nn.Conv2d(width, width, 1, bias=False))
        self.channelwise = ChannelwiseLinear(width, CELLS)
        self.mix = _block(nn.Conv2d(width, width, 1, bias=False))
        self.refine = _block(nn.Conv2d(width, width, 3, padding=1, bias=False))
        self.predict = predicting_layer(width, target)

    def forward(self, features: Tensor, hidden: Tensor) -> Tensor:
        """Predict every cell."""
        if self.token is not None:
            token = self.token.to(features.dtype).view(1, -1, 1, 1)
            features = torch.where(hidden.unsqueeze(1), token, features)
        x = torch.relu(self.channelwise(self.enter(features)))
        prediction: Tensor = self.predict(self.refine(self.mix(x)))
        return prediction


def padded_alexnet(groups: int = 1) -> nn.Sequential:
    """AlexNet with batch norm: (B, 3, 128, 128) -> conv5 (B, 256, 8, 8), pool5 (B, 256, 4, 4).

    Padded so that sides are 32, 16 and 8; conv1 to conv5 of the paper's encoder else.
    """
    # index: channels in, channels out, kernel, stride, padding, groups
    shapes = {
        1: (3, 96, 11, 4, 4, 1),
        2: (96, 256, 5, 1, 2, groups),
        3: (256, 384, 3, 1, 1, 1),
        4: (384, 384, 3, 1, 1, groups),
        5: (384, CONV5_CHANNELS, 3, 1, 1, groups),
    }
    layers = OrderedDict[str, nn.Module]()
    for index, (inputs, outputs, kernel, stride, padding, split) in shapes.items():
        layers[f"conv{index}"] = nn.Conv2d(
            inputs, outputs, kernel, stride, padding, groups=split, bias=False
        )
        layers[f"norm{index}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{index}"] = nn.ReLU(inplace=True)
        if index in (1, 2, 5):
            layers[f"pool{index}"] = nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(layers)


def _block(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(
        convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)
    )
