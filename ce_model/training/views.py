"""What each network sees of a batch: the image, its hole, and the target of the decoder."""

from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor

from ce_model.mask_tensors import shrink
from ce_model.networks import NetworkConfig, input_side, output_side
from ce_model.training.objective import Objective


class Views(NamedTuple):
    """What the network sees and what it has to predict; colours in [-1, 1].

    Shape:
        context: float (B, 3, S, S), channels_last, the hole filled with the mean colour.
        target: float (B, 3, T, T), contiguous as the loss needs it.
        hole: bool (B, 1, T, T), True where the network saw nothing, in the frame of the target.
        weight: float (B, 1, T, T), weight of each pixel in the reconstruction loss.
    """

    context: Tensor
    target: Tensor
    hole: Tensor
    weight: Tensor


def make_views(
    image: Tensor, hidden: Tensor, network: NetworkConfig, objective: Objective
) -> Views:
    """Hide pixels and cut out the target, on the device of the image.

    For a centre output, `hidden` has to be the central mask: nothing else is predicted.

    Shape:
        image: uint8 (B, S, S, 3), RGB; hidden: bool (B, S, S).
    """
    side, target_side = input_side(network), output_side(network)
    if image.shape[1:] != (side, side, 3) or hidden.shape != image.shape[:3]:
        raise ValueError(
            f"images have shape {tuple(image.shape)} and masks {tuple(hidden.shape)}; "
            f"network.preset {network.preset} needs (B, {side}, {side}, 3) and (B, {side}, {side})"
        )
    picture = image.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    hole = shrink(hidden, objective.overlap)
    context = picture.clone()
    for channel, value in enumerate(objective.fill):
        context[:, channel].masked_fill_(hole, value / 127.5 - 1)
    start = (side - target_side) // 2
    inner = slice(start, start + target_side)
    target, hole, hidden = (
        picture[..., inner, inner],
        hole[:, inner, inner],
        hidden[:, inner, inner],
    )
    weight = hidden.float() if objective.region == "hole" else torch.ones_like(target[:, 0])
    if objective.overlap:
        weight = weight.masked_fill(hidden & ~hole, objective.ring_weight)
    return Views(context, target.contiguous(), hole.unsqueeze(1), weight.unsqueeze(1))
