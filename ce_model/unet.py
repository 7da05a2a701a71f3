"""Preset `unet`: fills any hole in an image of any size.

The network reads the image with a smooth start in its hole (`push_pull`) and the mask as a fourth
channel, and predicts what has to be added to that start. Its last layer begins at zero, so an
untrained network gives the smooth start. All of it is convolution: the side is free. The work is
done at a half of the resolution and below; most weights stand at a sixteenth, where dilated
convolutions carry the surroundings across the hole. Only the channels of one place are normalised
together, so an image is filled in the same way in training, in evaluation and beside whatever
other images, and its far corners do not matter.

Source: Ronneberger et al., "U-Net", MICCAI 2015, arXiv:1505.04597, for the skips; Shi et al., CVPR
2016, arXiv:1609.05158, for the sub-pixel stem and head; Sugawara et al., "Super-Resolution using
Convolutional Neural Networks without Any Checkerboard Artifacts", ICIP 2018, arXiv:1806.02658, for
smoothing behind it; Iizuka et al., "Globally and Locally Consistent Image Completion", SIGGRAPH
2017, for the dilated middle.
"""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ce_model.layers import ZeroConv2d

STRIDE = 16  # px of a cell of the deepest layer
STEM = 2  # px of a cell of the first layer
CHANNELS = 4  # red, green, blue, mask
WIDTHS = (32, 64, 128, 256)  # of e1 to e4, at 1/2 to 1/16 of the resolution
DILATIONS = (1, 2, 4, 1)  # of the blocks of e5, in cells of 16 px
SLOPE = 0.2


class Stem(nn.Module):
    """Blocks of 2 x 2 px become channels: (B, 3 or 4, H, W) -> (B, 16, H / 2, W / 2).

    An image without a mask channel is one without a hole. A side that is no multiple of STRIDE is
    continued at the right and below with the pixels of the border.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Complete the channels and the sides, then reorder."""
        if x.shape[1] == CHANNELS - 1:
            x = torch.cat([x, torch.zeros_like(x[:, :1])], 1)
        height, width = x.shape[2:]
        if height % STRIDE or width % STRIDE:
            x = F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        return F.pixel_unshuffle(x, STEM)


class ChannelNorm(nn.LayerNorm):
    """Mean 0 and variance 1 over the channels of each place: float (B, C, H, W) -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        """A view with the channels last is how such images lie in memory."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Residual(nn.Module):
    """x + 1x1(act(3x3(norm(x)))); the 3x3 convolution may be dilated.

    Shape:
        x: float (B, C, H, W); result: the same.
    """

    def __init__(self, channels: int, dilation: int = 1) -> None:
        """The inner convolutions keep the number of channels."""
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.spread = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.mix = ZeroConv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Begins as the identity."""
        added: Tensor = self.mix(F.leaky_relu(self.spread(self.norm(x)), SLOPE))
        return x + added


class Decoder(nn.Module):
    """From the layers of the encoder to what is added to the start.

    Shape:
        context: float (B, 4, H, W) in [-1, 1], the mask 1 where hidden; features: e1 to e5 of the
        same images; result: float (B, 3, H, W), which may leave [-1, 1].
    """

    def __init__(self, antialias: bool) -> None:
        """Three steps up, each with a skip, then the colours of 2 x 2 px at once."""
        super().__init__()
        self.antialias = antialias
        self.narrow, self.join = nn.ModuleList(), nn.ModuleList()
        for coarse, fine in pairwise(reversed(WIDTHS)):
            self.narrow.append(nn.Conv2d(coarse, fine, 1))
            self.join.append(nn.Conv2d(fine, fine, 3, padding=1))
        self.head = ZeroConv2d(WIDTHS[0], 3 * STEM**2, 3, padding=1)

    def forward(self, context: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        """The start plus the residual."""
        x = features["e5"]
        for narrow, join, layer in zip(self.narrow, self.join, ("e3", "e2", "e1"), strict=True):
            x = F.interpolate(narrow(x), scale_factor=2, mode="bilinear", align_corners=False)
            x = F.leaky_relu(join(x + features[layer]), SLOPE)
        added = F.pixel_shuffle(self.head(x), STEM)
        if self.antialias:
            added = smooth(added)
        height, width = context.shape[2:]
        filled: Tensor = context[:, :3] + added[:, :, :height, :width]
        return filled


def smooth(x: Tensor) -> Tensor:
    """Weights 1 2 1 over rows and columns, in sum 1: nothing is left of every other pixel.

    A discriminator that is trained for minutes is content with such a pattern, which is cheap for a
    sub-pixel head: of the fillings of 400 steps it was all there was above the smooth start.

    Shape:
        x: float (B, C, H, W); result: the same.
    """
    return F.avg_pool2d(F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 2, 1), 2, 1)


def encoder() -> nn.Sequential:
    """Layers e1 to e5: float (B, 3 or 4, H, W) -> (B, 256, H / 16, W / 16), sides rounded up."""
    layers = OrderedDict[str, nn.Module]()
    layers["stem"] = Stem()
    inputs = CHANNELS * STEM**2
    for number, width in enumerate(WIDTHS, start=1):
        convolution = nn.Conv2d(inputs, width, 3, stride=1 if number == 1 else 2, padding=1)
        refined = [Residual(width)] if number in (2, 3) else []
        layers[f"e{number}"] = nn.Sequential(convolution, nn.LeakyReLU(SLOPE), *refined)
        inputs = width
    layers["e5"] = nn.Sequential(*(Residual(WIDTHS[-1], dilation) for dilation in DILATIONS))
    return nn.Sequential(layers)
