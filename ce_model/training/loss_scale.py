"""The factor of a loss whose gradients are computed in float16.

Gradients below 6e-8 are 0 in float16, and those above 65504 infinite. So the loss is multiplied by
a power of two, as large as the gradients bear, and the gradients are divided by it before they are
used, which changes no bit of those in between. Everything stays on the device, so that it can be
recorded in a CUDA graph.

Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018, arXiv:1710.03740.
"""

import torch
from torch import Tensor

FIRST = 2.0**16
LEAST = 1.0  # what is not finite at this scale is no fault of the scale
RISES_AFTER = 2000
"""Updates in a row that were applied before the scale is doubled."""
HALVINGS = 16
"""Updates that the search for the scale may leave out in a row: from FIRST to LEAST."""


class LossScale:
    """Halved at every update that is left out, doubled after many that were not.

    Attributes:
        value: 0-d, the factor.
        applied: 0-d, updates in a row that were applied.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin high: the first updates may be left out."""
        self.value = torch.full((), FIRST, device=device)
        self.applied = torch.zeros((), device=device)

    def update(self, skip: Tensor) -> None:
        """Follow a step whose update was left out where `skip`, 0-d, is 1."""
        self.applied.add_(1).mul_(1 - skip)
        full = self.applied == RISES_AFTER
        self.value.mul_(torch.where(skip.bool(), 0.5, torch.where(full, 2.0, 1.0)))
        self.value.clamp_(min=LEAST)
        self.applied.mul_(full.logical_not())

    def tensors(self) -> dict[str, Tensor]:
        """The live state by name."""
        return {"value": self.value, "applied": self.applied}
