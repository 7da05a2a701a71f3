"""The same validation images with the same holes, whenever a run is looked at."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor, nn

from ce_model import mask_tensors, training
from ce_model.hole_metrics import gradient_energies, hole_errors, ssim
from ce_model.networks import INPAINTING, NetworkConfig
from ce_model.training import Objective, fill, predict
from pipelines.data import classical_fill
from pipelines.pretrain.cell_validation import cell_panel, measure_cells
from pipelines.pretrain.pretext_validation import measure_pretext, pretext_panel

PANEL_IMAGES = 8
CHUNK = 64  # images evaluated at once
MEASURED = ("l1_hole", "l2_hole", "psnr_hole", "psnr_mean_fill", "psnr_visible_mean", "ssim_hole",
            "energy", "energy_truth", "seam", "seam_truth")  # fmt: skip


@dataclass(frozen=True)
class FixedImages:
    """Validation images on the device of a rank."""

    image: Tensor
    """uint8 (N, S, S, 3)."""
    hidden: Tensor
    """bool (N, S, S)."""
    row: Tensor | None = None
    """int64 (N,), number of each in its split; only sibling pretexts need it."""


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


def measure(generator: nn.Module, images: FixedImages, look: EvalSettings) -> dict[str, float]:
    """Errors in the hole; of preset features those of its target, and of colours if it has them.

    Of a sibling pretext its loss and accuracy.
    """
    if look.network.pretext != INPAINTING:
        assert images.row is not None
        return measure_pretext(generator, images.image, images.hidden, images.row, **look._asdict())
    if look.network.preset != "features":
        return measure_colours(generator, images, look)
    found = measure_cells(generator, images.image, images.hidden, **look._asdict())
    if look.network.target == "hog":
        return found
    return measure_colours(generator, images, look) | found


def measure_colours(
    generator: nn.Module, images: FixedImages, look: EvalSettings
) -> dict[str, float]:
    """Errors in the hole, averaged over the images of all ranks.

    Returns:
        l1_hole, l2_hole on [0, 1] pixels; psnr_hole in dB, per image and then averaged, beside
        psnr_mean_fill, that of the dataset's mean colour, and psnr_visible_mean, that of the mean
        of the image's own visible pixels; ssim_hole; sharpness and seam: energy of the gradients in
        the hole and across its rim, as a share of the truth's; variance_ratio: how far the hole's
        mean colour varies between images, in the fillings as a share of the images' own. Images
        without a hidden pixel in the frame are left out.
    """
    columns = len(MEASURED) + 4 * 3
    rows = [torch.empty(0, columns, dtype=torch.float64, device=images.image.device)]
    for start in range(0, len(images.image), CHUNK):
        chunk = slice(start, start + CHUNK)
        image, hidden = images.image[chunk], images.hidden[chunk]
        seen = predict(generator, image, hidden, **look._asdict())
        filled = seen.prediction.clamp(0, 1)
        errors = hole_errors(filled, seen.target, seen.hole)
        colours = _dataset_colour(look, image.device), _visible_colour(image, hidden, look)
        psnr = [
            hole_errors(colour.expand_as(filled), seen.target, seen.hole).psnr for colour in colours
        ]
        energies = gradient_energies(filled, seen.target, seen.hole)
        similarity = ssim(filled, seen.target, seen.hole)
        measured = torch.stack([*errors, *psnr, similarity, *energies], dim=1)
        means = [_hole_colour(x, seen.hole) for x in (filled, seen.target)]
        squares = [colour.square() for colour in means]
        row = torch.cat([measured.double(), *means, *squares], dim=1)
        rows.append(row[seen.hole.any(dim=(1, 2, 3))])
    found = _mean_over_ranks(torch.cat(rows))
    named, colour, square = found[:-12], found[-12:-6].view(2, 3), found[-6:].view(2, 3)
    result = dict(zip(MEASURED, named.tolist(), strict=True))
    result["sharpness"] = _ratio(result.pop("energy"), result.pop("energy_truth"))
    result["seam"] = _ratio(result.pop("seam"), result.pop("seam_truth"))
    variances = (square - colour.square()).sum(dim=1).clamp(min=0).tolist()
    return result | {"variance_ratio": _ratio(*variances)}


def measure_classical(images: FixedImages, look: EvalSettings) -> dict[str, float]:
    """psnr_telea: what Telea's method, which needs no training, reaches on the same pixels, dB.

    Nothing for presets alexnet and features, which are not after good fillings.
    """
    if look.network.preset in ("alexnet", "features"):
        return {}
    hole = mask_tensors.shrink(images.hidden, look.objective.overlap).cpu()
    rows = [torch.empty(0, 1, dtype=torch.float64)]
    for image, where in zip(images.image.cpu().numpy(), hole, strict=True):
        if where.any():
            filled = classical_fill.telea(image, where.numpy())
            prediction, target = (
                torch.from_numpy(x).permute(2, 0, 1)[None] / 255 for x in (filled, image)
            )
            rows.append(hole_errors(prediction, target, where[None, None]).psnr.double()[None])
    values = torch.cat(rows).to(images.image.device)
    return {"psnr_telea": float(_mean_over_ranks(values))}


def _mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of the rows (N, C) of all ranks: (C,), float64."""
    total = torch.cat([values.sum(dim=0), values.new_tensor([len(values)])])
    if training.num_ranks() > 1:
        torch.distributed.all_reduce(total)
    return total[:-1] / total[-1]


def _ratio(mine: float, truth: float) -> float:
    return mine / truth if truth else 1.0


def _dataset_colour(look: EvalSettings, device: torch.device) -> Tensor:
    return torch.tensor(look.objective.fill, device=device).view(1, 3, 1, 1) / 255


def _visible_colour(image: Tensor, hidden: Tensor, look: EvalSettings) -> Tensor:
    """Mean of what the network sees of each image: (N, 3, 1, 1); the dataset's if it is nothing."""
    visible = mask_tensors.shrink(hidden, look.objective.overlap).logical_not().unsqueeze(-1)
    count = visible.sum(dim=(1, 2))
    mean = (image * visible).sum(dim=(1, 2)) / count.clamp(min=1) / 255
    empty = _dataset_colour(look, image.device).view(1, 3)
    return torch.where(count > 0, mean, empty).view(-1, 3, 1, 1)


def _hole_colour(image: Tensor, hole: Tensor) -> Tensor:
    """Mean over the hole: (N, 3, S, S) and (N, 1, S, S) -> (N, 3), float64."""
    weight = hole.double()
    return (image.double() * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))


def panel(generator: nn.Module, images: FixedImages, look: EvalSettings) -> dict[str, Any]:
    """Input, hole, output and target of the first images: uint8 (N, S, S, 3), hole (N, S, S).

    Of a sibling pretext image, views and answers.
    """
    image, hidden = images.image[:PANEL_IMAGES], images.hidden[:PANEL_IMAGES]
    if look.network.pretext != INPAINTING:
        assert images.row is not None
        row = images.row[:PANEL_IMAGES]
        return pretext_panel(generator, image, hidden, row, **look._asdict())
    if look.network.preset == "features":
        return cell_panel(generator, image, hidden, **look._asdict())
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
