"""What each network sees of a batch: the image, its hole, and the target of the decoder."""

from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn

from ce_model import feature_targets
from ce_model.mask_tensors import shrink
from ce_model.networks import INPAINTING, NetworkConfig, input_side, output_side, takes_any_size
from ce_model.pixels import network_input
from ce_model.pretexts.questions import make_samples
from ce_model.push_pull import smooth_fill
from ce_model.training.objective import Objective


class Views(NamedTuple):
    """What the network sees and what it has to predict; colours in [-1, 1].

    Shape:
        context: float (B, 3, S, S), channels_last, the hole filled with the mean colour or the
            smooth start; unet has the mask, 1 where hidden, as a fourth channel.
        target: float (B, 3, T, T), contiguous as the loss needs it.
        hole: bool (B, 1, T, T), True where the network saw nothing, in the frame of the target.
        weight: float (B, 1, T, T), weight of each pixel in the reconstruction loss.
        cells: bool (B, G, G), the hidden cells of preset features, whose target is a vector per
            cell (B, D, G, G) with hole and weight (B, 1, G, G); None for other presets.

    A sibling pretext has views (B, V, 3, s, s) as the context and int64 (B, Q), the right answers,
    as the target; hole and weight are (B, 1), True and 1.
    """

    context: Tensor
    target: Tensor
    hole: Tensor
    weight: Tensor
    cells: Tensor | None = None

    def chunk(self, count: int) -> list["Views"]:
        """So many equal parts of the batch, each with the memory layout of the whole."""
        columns = [[None] * count if each is None else each.chunk(count) for each in self]
        return [Views(*part) for part in zip(*columns, strict=True)]


def make_views(
    image: Tensor,
    hidden: Tensor,
    network: NetworkConfig,
    objective: Objective,
    origin: Tensor | None = None,
) -> Views:
    """Hide pixels and cut out the target, on the device of the image.

    For a centre output, `hidden` has to be the central mask: nothing else is predicted. A network
    that takes any size is given images of H x W px instead of S x S, and predicts all of them.

    Shape:
        image: uint8 (B, S, S, 3), RGB; hidden: bool (B, S, S); origin: int64 (B, 2), from which a
        sibling pretext draws its samples (`pretexts.draws`); without it the image is seen as it is.
    """
    any_size = takes_any_size(network)
    side, target_side = input_side(network), output_side(network)
    square = image.shape[1:3] == (side, side)
    if image.shape[3:] != (3,) or hidden.shape != image.shape[:3] or not (square or any_size):
        sides = "H, W" if any_size else f"{side}, {side}"
        raise ValueError(
            f"images have shape {tuple(image.shape)} and masks {tuple(hidden.shape)}; "
            f"network.preset {network.preset} needs (B, {sides}, 3) and (B, {sides})"
        )
    if network.pretext != INPAINTING and origin is not None:
        views, classes = make_samples(network, image, origin)
        every = torch.ones(len(image), 1, device=image.device)
        return Views(views, classes, every.bool(), every)
    scaled = network_input(image)
    if network.preset == "features":
        return _cell_views(scaled, hidden, network, objective)
    hole = shrink(hidden, objective.overlap)
    context = _with_start(scaled, hole, objective)
    if any_size:
        context = torch.cat([context, hole.unsqueeze(1).float()], 1)
        context = context.contiguous(memory_format=torch.channels_last)
        inner = slice(None)
    else:
        start = (side - target_side) // 2
        inner = slice(start, start + target_side)
    target, hole, hidden = (
        scaled[..., inner, inner],
        hole[:, inner, inner],
        hidden[:, inner, inner],
    )
    weight = hidden.float() if objective.region == "hole" else torch.ones_like(target[:, 0])
    if objective.overlap:
        weight = weight.masked_fill(hidden & ~hole, objective.ring_weight)
    return Views(context, target.contiguous(), hole.unsqueeze(1), weight.unsqueeze(1))


def predict_from(network: nn.Module, views: Views) -> Tensor:
    """What a network, plain or wrapped, predicts of the views."""
    given = (views.context,) if views.cells is None else (views.context, views.cells)
    prediction: Tensor = network(*given)
    return prediction


def _cell_views(
    scaled: Tensor, hidden: Tensor, network: NetworkConfig, objective: Objective
) -> Views:
    """Views of preset features: a cell with a hidden pixel is hidden whole."""
    cells = feature_targets.hidden_cells(hidden)
    context = _with_start(scaled, feature_targets.whole_cells(cells), objective)
    target = feature_targets.make_target(network.target, scaled).contiguous()
    hole = cells.unsqueeze(1)
    weight = hole.float() if objective.region == "hole" else torch.ones_like(hole.float())
    return Views(context, target, hole, weight, cells)


def _with_start(scaled: Tensor, hole: Tensor, objective: Objective) -> Tensor:
    """What stands in the hole before the network has seen it."""
    if objective.start == "smooth":
        # Filled on the device, since a CUDA graph cannot hold a copy from the host.
        empty = torch.stack([scaled.new_full((1, 1), v / 127.5 - 1) for v in objective.fill])
        return smooth_fill(scaled, hole.unsqueeze(1), empty)
    context = scaled.clone()
    for channel, value in enumerate(objective.fill):
        context[:, channel].masked_fill_(hole, value / 127.5 - 1)
    return context
