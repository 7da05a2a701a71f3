"""The smooth start: a hole filled from its surroundings without any weights, at a fixed cost.

Pull: each level of a pyramid holds the mean colour of the visible pixels below it. Push: from the
coarsest level down, what is hidden takes the colours of the level above, interpolated. Every pixel
is touched a fixed number of times, so the cost does not depend on the hole.

Source: Gortler et al., "The Lumigraph", SIGGRAPH 1996, section 3.4; here a cell with any visible
pixel is trusted in full, and hidden cells are averaged with their neighbours, the more often the
coarser the level and the cheaper it is, so that a hole which happens to cover whole cells is not
filled from far away.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 2  # of averaging with the neighbours, times the number of the level
TINY = 1e-6  # weights below the smallest that a pyramid holds: an empty cell is not divided by 0


def smooth_fill(image: Tensor, hole: Tensor, empty: Tensor) -> Tensor:
    """The image with its hole filled smoothly; visible pixels stay the same, bit for bit.

    Args:
        image: float (B, 3, H, W), any size; hidden pixels are not read.
        hole: bool (B, 1, H, W), True where hidden.
        empty: float, broadcastable to (B, 3, 1, 1): the colour of an image without visible pixels.

    Returns:
        float (B, 3, H, W), in the range of the visible colours.
    """
    weight = hole.logical_not().to(image.dtype)
    seen = image.masked_fill(hole, 0)  # colours times weight, which is 1 or 0 on every level
    levels: list[tuple[Tensor, Tensor]] = []
    while max(seen.shape[2:]) > 1:
        levels.append((seen, weight))
        share = F.avg_pool2d(weight, 2, ceil_mode=True)
        weight = share.gt(0).to(image.dtype)
        seen = F.avg_pool2d(seen, 2, ceil_mode=True) / share.clamp(min=TINY)
    filled = torch.where(weight.bool(), seen, empty.to(image.dtype))
    for number, (seen, weight) in reversed(list(enumerate(levels))):
        hidden = 1 - weight
        size = list(seen.shape[2:])
        finer = F.interpolate(filled, size, mode="bilinear", align_corners=False)
        filled = seen + hidden * finer
        for _ in range(ROUNDS * number):  # none on the pixels: more than all the rest would cost
            near = F.avg_pool2d(filled, 3, 1, 1, count_include_pad=False)
            filled = seen + hidden * near
    return torch.where(hole, filled, image)
