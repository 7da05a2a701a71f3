"""Layers that torch does not have: channel-wise, fast resize, zero start, spectral norm.

The channel-wise layer lets information travel across a whole feature map at a small part of the
weights of a dense layer; a 1x1 convolution after it mixes the channels.

Source: Pathak et al., "Context Encoders: Feature Learning by Inpainting", CVPR 2016,
arXiv:1604.07379, section 3.1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelwiseLinear(nn.Module):
    """Connect every pixel of a feature map to every pixel of the same map.

    One dense layer per channel, none across channels: C * N^2 weights, N = H * W. There is no
    bias, as in the paper's count of weights.

    Shape:
        x: float (B, C, H, W) with C = channels and H = W = side; result: the same.
    """

    def __init__(self, channels: int, side: int) -> None:
        """Zero weights; `networks.init_weights` draws them."""
        super().__init__()
        self.side = side
        self.weight = nn.Parameter(torch.zeros(channels, side**2, side**2))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply each flattened map by its own matrix."""
        x_CBN = x.flatten(2).transpose(0, 1)
        y_CBN = torch.bmm(x_CBN, self.weight)
        return y_CBN.transpose(0, 1).reshape(x.shape)

    def extra_repr(self) -> str:
        """Sizes, for print(network)."""
        return f"channels={self.weight.shape[0]}, side={self.side}"


class BilinearResize(nn.Module):
    """Enlarge a square image as nn.Upsample(mode="bilinear") does, by two matrix products.

    In bfloat16 on a CPU with AMX this is more than twice as fast as nn.Upsample.

    Shape:
        x: float (B, C, N, N); result: float (B, C, side, side).
    """

    def __init__(self, side: int) -> None:
        """The side of the result, pixels."""
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Interpolate columns and rows with the same weights."""
        impulses = torch.eye(x.shape[-1], device=x.device).unsqueeze(0)
        weights_NS = F.interpolate(impulses, self.side, mode="linear")[0]
        return weights_NS.T @ x @ weights_NS

    def extra_repr(self) -> str:
        """Size, for print(network)."""
        return f"side={self.side}"


class ZeroConv2d(nn.Conv2d):
    """A convolution with weights of zero at the beginning (`networks.init_weights`).

    What it adds begins at nothing; what it predicts begins at `value`, so that the layers before it
    do not first learn to silence random predictions.

    Source: Zhang, Dauphin, Ma, "Fixup Initialization", ICLR 2019, arXiv:1901.09321.
    """

    value = 0.0
    """Of the bias at the beginning."""


class SpectralConv2d(nn.Conv2d):
    """A convolution with its weights divided by their largest singular value.

    The value is followed by one power iteration per forward pass in training; in evaluation the
    direction stays. Reads nothing back to the host.

    Source: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018,
    arXiv:1802.05957.
    """

    direction: Tensor

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        """Weights and direction are drawn by `networks.init_weights`."""
        super().__init__(inputs, outputs, kernel, stride, padding)
        self.register_buffer("direction", torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the scaled weights."""
        result: Tensor = self._conv_forward(x, self.weight / self._largest(), self.bias)
        return result

    def _largest(self) -> Tensor:
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix = self.weight.flatten(1).float()
            with torch.no_grad():
                right = F.normalize(self.direction @ matrix, dim=0)
                left = F.normalize(matrix @ right, dim=0)
                if self.training:
                    self.direction.copy_(left)
            largest: Tensor = left @ matrix @ right
            return largest


class ChannelAffine(nn.Module):
    """x * weight + bias by channel: what batch norm is once its statistics are fixed.

    Shape:
        x: float (B, C, H, W); result: the same.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Begin with these values, float (C,) each."""
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "ChannelAffine":
        """Equal to an affine batch norm in evaluation mode."""
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
        return cls(scale, norm.bias.detach() - norm.running_mean * scale)

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift."""
        return x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
