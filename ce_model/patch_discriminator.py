"""The judge of preset `unet`: real or filled, patch by patch, around the hole alone.

It reads the filled image with the mask as a fourth channel and answers for each cell of 8 x 8 px;
what it sees of a cell is about 50 px wide. Cells that no hidden pixel touches do not count. Every
convolution is divided by its largest singular value, which keeps the game from running away.

Source: Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR
2017, arXiv:1611.07004, for the patches; Miyato et al., "Spectral Normalization for Generative
Adversarial Networks", ICLR 2018, arXiv:1802.05957; Suvorov et al., "LaMa", WACV 2022,
arXiv:2109.07161, section 2.3, for scoring the filled part alone.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ce_model.layers import SpectralConv2d

CELL = 8  # px of the image per verdict
STEM = 2
SLOPE = 0.2


class PatchDiscriminator(nn.Module):
    """Verdicts of an image: above 0 for real, below 0 for filled.

    Shape:
        x: float (B, 4, H, W) in [-1, 1], the mask 1 where hidden, sides multiples of 8;
        result: float (B, 1, H / 8, W / 8).
    """

    def __init__(self) -> None:
        """Four convolutions on blocks of 2 x 2 px."""
        super().__init__()
        self.c1 = SpectralConv2d(4 * STEM**2, 32, 3, 2, 1)
        self.c2 = SpectralConv2d(32, 64, 4, 2, 1)
        self.c3 = SpectralConv2d(64, 128, 3, 1, 1)
        self.logit = SpectralConv2d(128, 1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The verdicts."""
        verdicts: Tensor = self.logit(self.features(x)[-1])
        return verdicts

    def features(self, x: Tensor) -> list[Tensor]:
        """What the three hidden layers see, for feature matching."""
        x = F.pixel_unshuffle(x, STEM)
        found = []
        for layer in (self.c1, self.c2, self.c3):
            x = F.leaky_relu(layer(x), SLOPE)
            found.append(x)
        return found


def cell_shares(hole: Tensor) -> Tensor:
    """How much each verdict counts: equally in the cells with a hidden pixel, and 1 in sum.

    Every image has the same part in the batch, so the loss of a batch is the mean of the losses of
    its parts. An image without a hidden pixel has no part.

    Shape:
        hole: bool (B, 1, H, W); result: float (B, 1, H / 8, W / 8).
    """
    cells = F.max_pool2d(hole.float(), CELL)
    return cells / cells.sum((1, 2, 3), keepdim=True).clamp(min=1) / len(hole)
