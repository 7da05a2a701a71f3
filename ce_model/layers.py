"""The channel-wise fully-connected layer.

It lets information travel across a whole feature map at a small part of the weights of a dense
layer; a 1x1 convolution after it mixes the channels.

Source: Pathak et al., "Context Encoders: Feature Learning by Inpainting", CVPR 2016,
arXiv:1604.07379, section 3.1.
"""

import torch
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
