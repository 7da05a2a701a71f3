"""The collapse alarm: saturated discriminators and vanished variance, not short spells."""

import numpy as np
import pytest
import torch

from ce_model.networks import NetworkConfig
from ce_model.training import Objective
from pipelines.pretrain import validation
from pipelines.pretrain.collapse import collapse


def curve(*accuracies: float, every: int = 50) -> list[dict[str, object]]:
    return [
        {"step": (at + 1) * every, "values": {"discriminator/accuracy": value}}
        for at, value in enumerate(accuracies)
    ]


def test_a_long_spell_of_a_perfect_discriminator_is_named() -> None:
    assert collapse(curve(0.7, 1.0, 1.0, 1.0, 1.0, 0.8)) == (
        "discriminator accuracy above 0.99 for 200 steps in a row"
    )


@pytest.mark.parametrize("accuracies", [(), (1.0, 1.0, 1.0), (1.0, 1.0, 0.9, 1.0, 1.0)])
def test_short_spells_are_usual(accuracies: tuple[float, ...]) -> None:
    assert collapse(curve(*accuracies)) is None


def test_the_last_variance_counts() -> None:
    early = {"step": 10, "values": {"validation/variance_ratio": 0.001}}
    late = {"step": 20, "values": {"validation/variance_ratio": 0.4}}
    assert collapse([early, late]) is None
    assert collapse([late, early]) == "variance of the fillings is 0.10% of that of the images"


class Constant(torch.nn.Module):
    """Fills every hole with one colour, or with the colour around it."""

    def __init__(self, follows: bool) -> None:
        super().__init__()
        self.follows = follows

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        colour = context[:, :, :8, :8].mean(dim=(2, 3), keepdim=True)
        return (colour if self.follows else colour * 0).expand(-1, -1, 64, 64)


@pytest.mark.parametrize(("follows", "expected"), [(True, 1.0), (False, 0.0)])
def test_variance_ratio_of_known_fillings(follows: bool, expected: float) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (12, 1, 1, 3), dtype=np.uint8)
    image = torch.from_numpy(np.broadcast_to(colours, (12, 128, 128, 3)).copy())
    hidden = torch.zeros(12, 128, 128, dtype=torch.bool)
    hidden[:, 32:96, 32:96] = True
    look = validation.EvalSettings(NetworkConfig(), Objective(adversarial=0.0), torch.float32)
    measured = validation.measure(Constant(follows), validation.FixedImages(image, hidden), look)
    assert measured["variance_ratio"] == pytest.approx(expected, abs=0.01)
