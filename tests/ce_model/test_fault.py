"""The first place of a step where something is not finite."""

from typing import Any

import pytest
import torch
from torch import nn

from ce_model.networks import NetworkConfig
from ce_model.training import Networks, Objective, make_optimizers, state_tensors, train_step
from ce_model.training.fault import Fault, find_fault

ALEXNET = NetworkConfig(preset="alexnet", output="full")
PIXELS = Objective(adversarial=0.0, overlap=0)


def look(spoil: Any, *, compiled: bool = False) -> tuple[Fault | None, bool]:
    """What is found after something was spoilt, and whether any weight has moved."""
    first, second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
    networks = Networks(nn.Sequential(first, second), None)
    optimizers = make_optimizers(networks, 1e-2, 0.0)
    image = torch.randint(0, 256, (3, 227, 227, 3), dtype=torch.uint8)
    hidden = torch.zeros(3, 227, 227, dtype=torch.bool)
    hidden[:, 50:90, 50:90] = True
    spoil(first, second)
    if compiled:
        networks.generator.compile(backend="eager")
        train_step(
            networks, optimizers, image, hidden,
            network=ALEXNET, objective=PIXELS, dtype=torch.float32,
        )  # fmt: skip
    before = state_tensors(networks, optimizers)

    def take(image: torch.Tensor, hidden: torch.Tensor) -> Any:
        return train_step(
            networks, optimizers, image, hidden,
            network=ALEXNET, objective=PIXELS, dtype=torch.float32,
        )  # fmt: skip

    found = find_fault(networks, take, image, hidden)
    after = state_tensors(networks, optimizers)
    same = all(torch.equal(before[name], after[name]) or before[name].isnan().any()
               for name in before)  # fmt: skip
    return found, not same


def nan_weight(first: nn.Module, second: nn.Module) -> None:
    with torch.no_grad():
        second.weight[0, 0] = torch.nan  # type: ignore[index,operator]


def nan_output(first: nn.Module, second: nn.Module) -> None:
    spoil = torch.tensor([1.0, torch.inf, 1.0]).view(3, 1, 1, 1)
    first.register_forward_hook(lambda module, inputs, output: output * spoil)


def infinite_output(first: nn.Module, second: nn.Module) -> None:
    with torch.no_grad():
        first.weight.fill_(1e38)  # type: ignore[operator,union-attr]


def nan_gradient(first: nn.Module, second: nn.Module) -> None:
    first.weight.register_hook(lambda gradient: gradient * torch.nan)  # type: ignore[operator,union-attr]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (nan_weight, Fault("the weight generator.1.weight", ())),
        (nan_output, Fault("the output of layer generator.0", (1,))),
        (nan_gradient, Fault("the gradient of generator.0.weight", ())),
    ],
)
def test_the_first_place_is_named_and_nothing_moves(spoil: Any, expected: Fault) -> None:
    assert look(spoil) == (expected, False)


def test_a_compiled_network_names_its_layer_too() -> None:
    found = look(infinite_output, compiled=True)
    assert found == (Fault("the output of layer generator.0", (0, 1, 2)), False)


def test_where_all_is_finite_nothing_is_found() -> None:
    assert look(lambda first, second: None) == (None, True)
