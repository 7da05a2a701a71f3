"""Convolutions at visible positions alone, against the dense ones."""

import pytest
import torch
from torch import nn

from ce_model.masked import masked_layer, visible_positions
from ce_model.networks import NetworkConfig, build_generator
from ce_model.visible_convolution import WORTH_IT, convolve_visible, gathers


def cells(batch: int = 3, share: float = 0.6) -> torch.Tensor:
    """Hidden cells of a grid of 4 x 4, another number of them in each image."""
    draws = torch.rand(batch, 4, 4, generator=torch.Generator().manual_seed(1))
    return draws < torch.linspace(share - 0.1, share + 0.1, batch).view(-1, 1, 1)


def maps(channels: int, side: int, hidden: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(len(hidden), channels, side, side, generator=generator)
    return x * visible_positions(hidden, side)


@pytest.mark.parametrize(("kernel", "side"), [(1, 4), (3, 4), (3, 8), (5, 16)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_the_dense_layer_where_visible(
    kernel: int, side: int, layout: torch.memory_format
) -> None:
    hidden = cells()
    visible = visible_positions(hidden, side)
    convolution = nn.Conv2d(5, 7, kernel, padding=kernel // 2, bias=False)
    x = maps(5, side, hidden).contiguous(memory_format=layout)
    gradient = torch.randn(3, 7, side, side, generator=torch.Generator().manual_seed(3))

    dense_x, sparse_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    dense = convolution(dense_x) * visible
    dense.backward(gradient)
    of_weight = convolution.weight.grad
    convolution.weight.grad = None
    sparse = convolve_visible(sparse_x, convolution.weight, visible)
    sparse.backward(gradient)  # also at hidden positions, where it has to be left out
    torch.testing.assert_close(sparse, dense)
    torch.testing.assert_close(sparse_x.grad, dense_x.grad * visible)
    torch.testing.assert_close(convolution.weight.grad, of_weight)


def test_gradients_against_finite_differences() -> None:
    hidden = cells(2)
    visible = visible_positions(hidden, 4)
    x = maps(2, 4, hidden).double().requires_grad_()
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda w: convolve_visible(x.detach(), w, visible), (weight,))
    torch.autograd.gradcheck(
        lambda v: convolve_visible(v * visible, weight.detach(), visible), (x,)
    )


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, stride=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.Conv2d(4, 4, (1, 3), padding=(0, 1), bias=False),
        nn.Conv2d(4, 4, 2, padding=1, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False),
    ],
)
def test_other_layers_stay_dense(layer: nn.Conv2d) -> None:
    hidden = cells()
    x = maps(4, 8, hidden)
    assert not gathers(layer, x, hidden)
    assert torch.equal(masked_layer(layer, x, hidden), layer(x))


def test_what_is_mostly_visible_or_in_low_precision_stays_dense() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    hidden = cells()
    x = maps(4, 8, hidden)
    assert hidden.float().mean() > WORTH_IT and gathers(layer, x, hidden)
    assert not gathers(layer, x, torch.zeros_like(hidden))
    assert not gathers(layer, x.bfloat16(), hidden)
    assert not gathers(layer, maps(4, 2, hidden), hidden)  # coarser than the cells
    with torch.autocast("cpu", torch.bfloat16):
        assert not gathers(layer, x, hidden)


def test_preset_features_takes_it_and_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_generator(NetworkConfig(preset="features", output="full"))
    torch.nn.init.normal_(network.decoder.predict.weight, std=0.1)
    generator = torch.Generator().manual_seed(4)
    hidden = torch.rand(2, 8, 8, generator=generator) < 0.6
    x = torch.rand(2, 3, 128, 128, generator=generator)
    taken = []

    def count(*given: object) -> bool:
        taken.append(gathers(*given))  # type: ignore[arg-type]
        return taken[-1]

    monkeypatch.setattr("ce_model.masked.gathers", count)
    network(x, hidden).square().mean().backward()
    assert taken == [False, True, True, True, True]  # conv1 has a stride
    found = {name: weight.grad for name, weight in network.named_parameters()}
    network.zero_grad()
    monkeypatch.setattr("ce_model.masked.gathers", lambda *given: False)
    network(x, hidden).square().mean().backward()
    for name, weight in network.named_parameters():
        scale = weight.grad.abs().max()
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=float(scale) * 1e-4)
