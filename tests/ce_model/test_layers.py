"""The channel-wise fully-connected layer and the resize."""

import pytest
import torch

from ce_model.layers import BilinearResize, ChannelwiseLinear


def _layer(channels: int, side: int) -> ChannelwiseLinear:
    layer = ChannelwiseLinear(channels, side)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    return layer


def test_each_output_is_a_weighted_sum_over_its_own_map() -> None:
    layer = _layer(3, 2).double()
    x = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.zeros_like(x)
    for image in range(2):
        for channel in range(3):
            for row, column in [(0, 0), (0, 1), (1, 0), (1, 1)]:
                for row_in, column_in in [(0, 0), (0, 1), (1, 0), (1, 1)]:
                    weight = layer.weight[channel, 2 * row_in + column_in, 2 * row + column]
                    expected[image, channel, row, column] += (
                        weight * x[image, channel, row_in, column_in]
                    )
    torch.testing.assert_close(layer(x), expected)


def test_no_map_reaches_another_and_every_pixel_reaches_its_own() -> None:
    layer = _layer(4, 3)
    x = torch.ones(1, 4, 3, 3, requires_grad=True)
    for channel in range(4):
        (gradient,) = torch.autograd.grad(layer(x)[0, channel, 1, 2], x)
        reached = gradient[0].ne(0).flatten(1)
        assert reached[channel].all()
        assert reached.sum() == 9


def test_alexnet_needs_331776_weights_and_no_bias() -> None:
    weights = [parameter.numel() for parameter in ChannelwiseLinear(256, 6).parameters()]
    assert weights == [331_776]


def test_the_memory_format_of_the_input_does_not_matter() -> None:
    layer = _layer(4, 3)
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), layer(x))


@pytest.mark.parametrize(("side", "result"), [(161, 227), (5, 9)])
def test_the_resize_equals_upsample_forward_and_backward(side: int, result: int) -> None:
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.rand(2, 3, result, result, generator=torch.Generator().manual_seed(1))
    ours = BilinearResize(result)(x)
    reference = torch.nn.Upsample((result, result), mode="bilinear")(x)
    torch.testing.assert_close(ours, reference)
    (gradient,) = torch.autograd.grad((weight * ours).sum(), x)
    (expected,) = torch.autograd.grad((weight * reference).sum(), x)
    torch.testing.assert_close(gradient, expected)
