"""What every network reads: colours in [-1, 1], channels first."""

from torch import Tensor


def network_input(image: Tensor) -> Tensor:
    """Pixels as a network reads them.

    Shape:
        image: uint8 (B, H, W, 3); result: float (B, 3, H, W) in [-1, 1], in the memory order of
        the image (channels_last where that is contiguous).
    """
    return image.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
