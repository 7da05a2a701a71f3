"""How was the second view moved against the first? A rotation and a shift across and down.

Both views are windows of 64 px of one image of 128 px: the still-image form of learning from one's
own motion, as the paper does on digits. As there, the rotation of up to 30 degrees has 20 bins of
3 degrees, and three classifications are added up; the shifts, of up to a quarter of the view's
side, have 20 bins each, as the paper's camera motions (on digits there are 7). The shift is in the
frame of the first view. Both views move, about a place and a turn that are drawn, too, so that
neither alone tells the answer, and both lie inside the image.

Source: Agrawal, Carreira, Malik, "Learning to See by Moving", ICCV 2015, arXiv:1505.01596,
sections 3 and 4.
"""

import math

import torch
from torch import Tensor

from ce_model.pretexts.draws import between, uniform
from ce_model.pretexts.samples import Samples
from ce_model.pretexts.windows import read_windows

VIEW_PX = 64
BINS = 20
TURN_DEGREES = 30.0  # of one view against the other, at most
SHIFT_PX = 16.0  # across and down, at most
COMMON_DEGREES = 15.0  # both views together, at most
COMMON_PX = 8.0
QUESTIONS = ("rotation", "shift across", "shift down")


def make_samples(image: Tensor, origin: Tensor) -> Samples:
    """Two views of each image, and the bins of what is asked.

    Shape:
        image: uint8 (B, S, S, 3), S at least 128 px; origin: see `draws`; views: (B, 2, 3, 64, 64);
        classes: (B, 3).
    """
    centres, degrees, classes = draw_views(origin)
    extent = torch.full_like(degrees[:, 0], VIEW_PX)
    views = [
        read_windows(image, centres[:, at], degrees[:, at], extent, VIEW_PX) for at in range(2)
    ]
    return Samples(torch.stack(views, dim=1), classes)


def draw_views(origin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centres of both views across and down from the image's, px; their turns; the bins.

    Shape:
        centres: float (B, 2, 2); degrees: float (B, 2); classes: int64 (B, 3).
    """
    drawn = uniform(origin, 6)
    classes = (drawn[:, :3] * BINS).long()
    turn = between(drawn[:, 0], -TURN_DEGREES, TURN_DEGREES)
    across, down = between(drawn[:, 1:3], -SHIFT_PX, SHIFT_PX).unbind(1)
    common = between(drawn[:, 3], -COMMON_DEGREES, COMMON_DEGREES)
    middle = between(drawn[:, 4:], -COMMON_PX, COMMON_PX)
    degrees = torch.stack([common - turn / 2, common + turn / 2], dim=1)
    angle = degrees[:, 0] * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    shift = torch.stack([cos * across - sin * down, sin * across + cos * down], dim=1)
    return torch.stack([middle - shift / 2, middle + shift / 2], dim=1), degrees, classes
