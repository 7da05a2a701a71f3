"""The same validation images with the same holes, whenever a run is looked at."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor, nn

from ce_model import mask_tensors, training
from ce_model.hole_metrics import hole_errors
from ce_model.networks import NetworkConfig
from ce_model.training import Objective, fill, predict

PANEL_PICTURES = 8
CHUNK = 64  # images evaluated at once
COLUMNS = 4 + 4 * 3  # errors of an image; mean colours of filling and truth, and their squares


@dataclass(frozen=True)
class FixedImages:
    """Validation images on the device of a rank."""

    image: Tensor
    """uint8 (N, S, S, 3)."""
    hidden: Tensor
    """bool (N, S, S)."""


class EvalSettings(NamedTuple):
    """How a network is looked at."""

    network: NetworkConfig
    objective: Objective
    dtype: torch.dtype


def to_device(
    image: NDArray[np.uint8], bits: NDArray[np.uint8], device: torch.device
) -> FixedImages:
    """Images and packed masks of the stream -> tensors."""
    hidden = mask_tensors.unpack(torch.from_numpy(bits).to(device), image.shape[1])
    return FixedImages(torch.from_numpy(image).to(device), hidden)


def measure(generator: nn.Module, pictures: FixedImages, look: EvalSettings) -> dict[str, float]:
    """Errors in the hole, averaged over the images of all ranks.

    Returns:
        l1_hole, l2_hole on [0, 1] pixels; psnr_hole and psnr_mean_fill in dB, per image and then
        averaged; variance_ratio: how far the hole's mean colour varies between images, in the
        fillings as a share of the images' own. Images without a hidden pixel in the frame are
        left out.
    """
    mean_colour = (
        torch.tensor(look.objective.fill, device=pictures.image.device).view(1, 3, 1, 1) / 255
    )
    rows = [torch.empty(0, COLUMNS, dtype=torch.float64, device=pictures.image.device)]
    for start in range(0, len(pictures.image), CHUNK):
        chunk = slice(start, start + CHUNK)
        seen = predict(
            generator, pictures.image[chunk], pictures.hidden[chunk],
            **look._asdict()
        )  # fmt: skip
        errors = hole_errors(seen.prediction.clamp(0, 1), seen.target, seen.hole)
        filled = hole_errors(mean_colour.expand_as(seen.target), seen.target, seen.hole)
        measured = torch.stack([errors.l1, errors.l2, errors.psnr, filled.psnr], dim=1)
        colours = [_hole_colour(x, seen.hole) for x in (seen.prediction.clamp(0, 1), seen.target)]
        squares = [colour.square() for colour in colours]
        row = torch.cat([measured.double(), *colours, *squares], dim=1)
        rows.append(row[seen.hole.any(dim=(1, 2, 3))])
    values = torch.cat(rows)
    total = torch.cat([values.sum(dim=0), values.new_tensor([len(values)])])
    if training.num_ranks() > 1:
        torch.distributed.all_reduce(total)
    means = total[:-1] / total[-1]
    names = ("l1_hole", "l2_hole", "psnr_hole", "psnr_mean_fill")
    colour, square = means[4:10].view(2, 3), means[10:].view(2, 3)
    filled_variance, own_variance = (square - colour.square()).sum(dim=1).clamp(min=0).tolist()
    result = dict(zip(names, means[:4].tolist(), strict=True))
    return result | {"variance_ratio": filled_variance / own_variance if own_variance else 1.0}


def _hole_colour(picture: Tensor, hole: Tensor) -> Tensor:
    """Mean over the hole: (N, 3, S, S) and (N, 1, S, S) -> (N, 3), float64."""
    weight = hole.double()
    return (picture.double() * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))


def panel(generator: nn.Module, pictures: FixedImages, look: EvalSettings) -> dict[str, Any]:
    """Input, hole, output and target of the first images: uint8 (N, S, S, 3), hole (N, S, S)."""
    image, hidden = pictures.image[:PANEL_PICTURES], pictures.hidden[:PANEL_PICTURES]
    hole = mask_tensors.shrink(hidden, look.objective.overlap)
    colour = torch.tensor(look.objective.fill, device=image.device).round().to(torch.uint8)
    output = fill(generator, image, hidden, **look._asdict())
    shown = {
        "input": torch.where(hole[..., None], colour, image),
        "hole": hole,
        "output": output,
        "target": image,
    }
    return {name: tensor.cpu().numpy() for name, tensor in shown.items()}
