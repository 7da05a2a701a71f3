"""Where does the second patch lie, seen from the first? One of 8 neighbours in a grid of 3 x 3.

Patches of 48 px with a gap of 24 px and a jitter of 3 px: half of the paper's 96, 48 and 7 px,
since a pair of the paper's does not fit an image of 128 px. A lens bends colours apart towards the
edge, which would give the place away: as in the paper's projection, green and magenta become grey.
The paper's random downsampling of patches is left out.

Source: Doersch, Gupta, Efros, "Unsupervised Visual Representation Learning by Context Prediction",
ICCV 2015, arXiv:1505.05192, section 3.
"""

import torch
from torch import Tensor

from ce_model.pretexts.draws import uniform, whole
from ce_model.pretexts.samples import Samples

PATCH_PX = 48
GAP_PX = 24
JITTER_PX = 3
POSITIONS = (
    "above left", "above", "above right", "left", "right", "below left", "below", "below right"
)  # fmt: skip


def make_samples(image: Tensor, origin: Tensor) -> Samples:
    """Two patches of each image, and which of `POSITIONS` the second has.

    Shape:
        image: uint8 (B, S, S, 3), S at least 126 px; origin: see `draws`; views: (B, 2, 3, 48, 48).
    """
    corners, position = draw_corners(origin, image.shape[1])
    return Samples(without_green_magenta(_cut(image, corners)), position.unsqueeze(1))


def draw_corners(origin: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Upper left corners (down, across) of both patches, px, and the position of the second.

    Shape:
        corners: int64 (B, 2, 2); position: int64 (B,).
    """
    drawn = uniform(origin, 7)
    position = whole(drawn[:, 0], len(POSITIONS))
    cell = position + (position >= 4)  # of 3 x 3, the first patch in the middle
    offset = torch.stack([cell // 3, cell % 3], dim=1) - 1
    apart = PATCH_PX + GAP_PX
    lowest = JITTER_PX + apart * (offset < 0)
    highest = side - PATCH_PX - JITTER_PX - apart * (offset > 0)
    first = lowest + whole(drawn[:, 1:3], highest - lowest + 1)
    corners = torch.stack([first, first + apart * offset], dim=1)
    jitter = whole(drawn[:, 3:], 2 * JITTER_PX + 1) - JITTER_PX
    return corners + jitter.view(-1, 2, 2), position


def without_green_magenta(pixels: Tensor) -> Tensor:
    """Colours without what they have along (-1, 2, -1), the line from magenta to green.

    Shape:
        pixels: uint8 (B, V, s, s, 3); result: float (B, V, 3, s, s) in about [-1, 1].
    """
    red, green, blue = pixels.float().div(127.5).sub(1).unbind(-1)
    along = (2 * green - red - blue) / 6
    return torch.stack([red + along, green - 2 * along, blue + along], dim=2)


def _cut(image: Tensor, corners: Tensor) -> Tensor:
    """Patches uint8 (B, V, s, s, 3) at corners (B, V, 2)."""
    along = torch.arange(PATCH_PX, device=image.device)
    rows = corners[..., 0, None, None] + along.view(-1, 1)
    columns = corners[..., 1, None, None] + along
    number = torch.arange(len(image), device=image.device).view(-1, 1, 1, 1)
    return image[number, rows, columns]
