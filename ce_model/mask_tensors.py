"""Masks on the training device: unpacked, turned and shrunk with torch; True where hidden."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def unpack(bits: Tensor, size: int) -> Tensor:
    """Masks from packed bits, on the device of the bits.

    Shape:
        bits: uint8 (B, ceil(size^2 / 8)); result: bool (B, size, size).
    """
    num_bytes = math.ceil(size**2 / 8)
    if bits.shape[1:] != (num_bytes,):
        raise ValueError(
            f"packed masks have shape {tuple(bits.shape)}; masks of {size} x {size} px take "
            f"{num_bytes} bytes each"
        )
    places = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=bits.device)
    pixels = bits.unsqueeze(-1).bitwise_and(places).ne(0)
    return pixels.flatten(1)[:, : size**2].reshape(-1, size, size)


def apply_symmetry(masks: Tensor, index: Tensor) -> Tensor:
    """Turn or mirror each mask by one of the 8 symmetries of the square.

    Bit 0 of the index mirrors the columns, bit 1 the rows, and bit 2 then swaps both; 0 changes
    nothing.

    Shape:
        masks: bool (B, S, S); index: integer (B,), 0 to 7; result: bool (B, S, S).
    """
    chosen = index.view(-1, 1, 1)
    masks = torch.where((chosen & 1).bool(), masks.flip(2), masks)
    masks = torch.where((chosen & 2).bool(), masks.flip(1), masks)
    return torch.where((chosen & 4).bool(), masks.transpose(1, 2), masks)


def shrink(masks: Tensor, margin: int) -> Tensor:
    """Show the hidden pixels that lie within `margin` px of a visible one, diagonals included.

    A square hole loses `margin` px on each side: 64 x 64 becomes 56 x 56 with margin 4. Outside
    the image there is nothing to show, so a hole does not shrink away from the image border.

    Shape:
        masks: bool (B, S, S); result: the same.
    """
    if margin == 0:
        return masks
    visible = masks.logical_not().float().unsqueeze(1)
    window = 2 * margin + 1
    near = F.max_pool2d(visible, (window, 1), stride=1, padding=(margin, 0))
    near = F.max_pool2d(near, (1, window), stride=1, padding=(0, margin))
    return near.squeeze(1).eq(0)
