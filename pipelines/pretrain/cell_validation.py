"""Validation of preset features: errors of the targets of hidden cells, and what they look like."""

from typing import Any, Unpack

import torch
import torch.distributed
from torch import Tensor, nn

from ce_model import training
from ce_model.feature_targets import target_channels
from ce_model.training import Computation, predict, predict_cells

CHUNK = 64  # images evaluated at once


def measure_cells(
    generator: nn.Module,
    image: Tensor,
    hidden: Tensor,
    **how: Unpack[Computation],
) -> dict[str, float]:
    """How well the targets of hidden cells are predicted, over the images of all ranks.

    Shape:
        image: uint8 (N, S, S, 3); hidden: bool (N, S, S).

    Returns:
        target_error: mean squared error of a value; target_error_mean: that of predicting the
        mean of all cells; variance_ratio: how far the predictions vary between cells, as a share
        of how far the targets do. Nothing where no cell is hidden.
    """
    # Of all values: squared error, number; of each: prediction, its square, target, its square.
    width = target_channels(how["network"].target)
    total = torch.zeros(2 + 4 * width, dtype=torch.float64, device=image.device)
    for start in range(0, len(image), CHUNK):
        chunk = slice(start, start + CHUNK)
        seen = predict_cells(generator, image[chunk], hidden[chunk], **how)
        guess, truth = seen.prediction.double(), seen.target.double()
        error, count = (guess - truth).square().sum(), guess.new_tensor(len(guess))
        each = [x.sum(0) for x in (guess, guess.square(), truth, truth.square())]
        total += torch.cat([error.view(1), count.view(1), *each])
    if training.num_ranks() > 1:
        torch.distributed.all_reduce(total)
    error_sum, cells = total[:2].tolist()
    if not cells:
        return {}
    guess, guess_square, truth, truth_square = total[2:].view(4, width) / cells
    varied = float((guess_square - guess.square()).sum().clamp(min=0))
    own = float((truth_square - truth.square()).sum().clamp(min=0))
    return {
        "target_error": error_sum / cells / width,
        "target_error_mean": own / width,
        "variance_ratio": varied / own if own else 1.0,
    }


def cell_panel(
    generator: nn.Module,
    image: Tensor,
    hidden: Tensor,
    **how: Unpack[Computation],
) -> dict[str, Any]:
    """Input, hole, output and target: uint8 (N, S, S, 3), hole bool (N, S, S).

    Where the target is hog, output and target are glyphs, those of visible cells the true ones.
    """
    seen = predict(generator, image, hidden, **how)
    target, predicted = (
        x.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
        for x in (seen.target, seen.prediction)
    )
    hole = seen.hole.permute(0, 2, 3, 1)
    colour = torch.tensor(how["objective"].fill, device=image.device).round().to(torch.uint8)
    shown = {
        "input": torch.where(hole, colour, image),
        "hole": seen.hole[:, 0],
        "output": torch.where(hole, predicted, target),
        "target": target,
    }
    return {name: tensor.cpu().numpy() for name, tensor in shown.items()}
