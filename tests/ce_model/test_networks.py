"""The networks against the layer tables of the paper and of train.lua."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ce_model.networks import (
    ContextEncoder,
    NetworkConfig,
    build_discriminator,
    build_generator,
    input_side,
    output_side,
)

CENTER = NetworkConfig()
SMALL = NetworkConfig(bottleneck=32)
FULL = NetworkConfig(output="full", bottleneck=32)
ALEXNET = NetworkConfig(preset="alexnet", output="full")


def _num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _shapes(network: nn.Sequential, x: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape of each direct child's output, without the batch."""
    shapes = {}
    for name, layer in network.named_children():
        x = layer(x)
        shapes[name] = tuple(x.shape[1:])
    return shapes


def _context(config: NetworkConfig, batch: int = 2) -> Tensor:
    side = input_side(config)
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_inpaint_has_the_parameters_of_train_lua() -> None:
    with torch.device("meta"):
        generator = ContextEncoder(CENTER)
    assert _num_parameters(generator) == 71_124_544
    assert _num_parameters(build_discriminator(CENTER)) == 2_765_568


@pytest.mark.parametrize(("groups", "parameters"), [(1, 3_747_200), (2, 2_334_080)])
def test_the_alexnet_encoder_has_the_parameters_of_caffenet(groups: Any, parameters: int) -> None:
    config = NetworkConfig(preset="alexnet", output="full", norm="lrn", groups=groups)
    assert _num_parameters(build_generator(config).encoder) == parameters


def test_inpaint_shapes_follow_the_table_of_train_lua() -> None:
    network = build_generator(SMALL)
    assert _shapes(network.encoder, _context(SMALL)) == {
        "e1": (64, 64, 64),
        "e2": (64, 32, 32),
        "e3": (128, 16, 16),
        "e4": (256, 8, 8),
        "e5": (512, 4, 4),
        "e6": (32,),
    }
    assert _shapes(network.decoder, torch.zeros(2, 32)) == {
        "d1": (512, 4, 4),
        "d2": (256, 8, 8),
        "d3": (128, 16, 16),
        "d4": (64, 32, 32),
        "d5": (3, 64, 64),
    }


def test_the_full_image_decoder_has_one_layer_more() -> None:
    shapes = _shapes(build_generator(FULL).decoder, torch.zeros(2, 32))
    assert shapes["d5"] == (64, 64, 64)
    assert shapes["d6"] == (3, 128, 128)


def test_alexnet_shapes_follow_section_5() -> None:
    network = build_generator(ALEXNET)
    shapes = _shapes(network.encoder, _context(ALEXNET))
    assert {name: shape for name, shape in shapes.items() if name.startswith(("conv", "pool"))} == {
        "conv1": (96, 55, 55),
        "pool1": (96, 27, 27),
        "conv2": (256, 27, 27),
        "pool2": (256, 13, 13),
        "conv3": (384, 13, 13),
        "conv4": (384, 13, 13),
        "conv5": (256, 13, 13),
        "pool5": (256, 6, 6),
    }
    assert _shapes(network.decoder, torch.zeros(2, 256, 6, 6)) == {
        "channelwise": (256, 6, 6),
        "mix": (256, 6, 6),
        "up1": (128, 11, 11),
        "up2": (64, 21, 21),
        "up3": (64, 41, 41),
        "up4": (32, 81, 81),
        "up5": (3, 161, 161),
        "resize": (3, 227, 227),
    }


def test_caffenet_pools_before_it_normalises() -> None:
    config = NetworkConfig(preset="alexnet", output="full", norm="lrn", groups=2)
    names = [name for name, _ in build_generator(config).encoder.named_children()]
    assert names[:8] == ["conv1", "relu1", "pool1", "norm1", "conv2", "relu2", "pool2", "norm2"]
    assert names[8:] == ["conv3", "relu3", "conv4", "relu4", "conv5", "relu5", "pool5"]


@pytest.mark.parametrize("config", [SMALL, FULL, ALEXNET])
def test_the_prediction_fits_the_target_and_the_discriminator(config: NetworkConfig) -> None:
    prediction = build_generator(config)(_context(config))
    assert prediction.shape == (2, 3, output_side(config), output_side(config))
    assert build_discriminator(config)(prediction).shape == (2,)


def test_discriminator_shapes_follow_the_table_of_train_lua() -> None:
    patch = torch.zeros(2, 3, 64, 64)
    sides = [shape[1] for shape in list(_shapes(build_discriminator(SMALL), patch).values())[:4]]
    assert sides == [32, 16, 8, 4]
    image = torch.zeros(2, 3, 128, 128)
    channels = [s[0] for s in list(_shapes(build_discriminator(FULL), image).values())[:5]]
    assert channels == [64, 64, 128, 256, 512]


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (ALEXNET, ["conv1", "conv2", "conv3", "conv4", "conv5", "pool5"]),
        (SMALL, ["e1", "e2", "e3", "e4", "e5", "e6"]),
    ],
)
def test_encoder_features_are_activations_on_the_way_to_the_code(
    config: NetworkConfig, names: list[str]
) -> None:
    network = build_generator(config).eval()
    context = _context(config)
    features = network.encoder_features(context)
    assert list(features) == names
    torch.testing.assert_close(features[names[-1]], network.encoder(context))
    if config.preset == "alexnet":
        assert all(bool((value >= 0).all()) for value in features.values())


def test_the_dense_bottleneck_equals_the_convolutions_of_the_table() -> None:
    network = build_generator(SMALL)
    e6, d1 = network.encoder.e6, network.decoder.d1
    x = torch.randn(3, 512, 4, 4, generator=torch.Generator().manual_seed(0))
    weight = e6[1].weight.view(32, 512, 4, 4)
    torch.testing.assert_close(e6[1](x.flatten(1)), F.conv2d(x, weight).flatten(1))
    code = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    weight = d1[0].weight.T.reshape(32, 512, 4, 4)
    expected = F.conv_transpose2d(code.view(3, 32, 1, 1), weight)
    torch.testing.assert_close(d1[1](d1[0](code)), expected)


def test_the_leak_is_that_of_train_lua() -> None:
    for network in (build_generator(SMALL), build_discriminator(SMALL)):
        slopes = [m.negative_slope for m in network.modules() if isinstance(m, nn.LeakyReLU)]
        assert slopes and set(slopes) == {0.2}


@pytest.mark.parametrize("config", [SMALL, FULL])
def test_colours_of_inpaint_stay_between_black_and_white(config: NetworkConfig) -> None:
    network = build_generator(config)
    last = [m for m in network.modules() if isinstance(m, nn.ConvTranspose2d)][-1]
    with torch.no_grad():
        last.weight.mul_(1e4)
        assert network(_context(config)).abs().max() == 1


def test_inpaint_weights_are_drawn_as_in_train_lua() -> None:
    for network in (build_generator(SMALL), build_discriminator(SMALL)):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                assert module.bias is None
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.weight.mean().item() == pytest.approx(1, abs=0.02)
                assert not module.bias.any()
                assert not module.running_mean.any()
                assert (module.running_var == 1).all()


@pytest.mark.parametrize("norm", ["batch", "lrn", "none"])
def test_the_signal_of_a_fresh_alexnet_neither_dies_nor_explodes(norm: Any) -> None:
    config = NetworkConfig(preset="alexnet", output="full", norm=norm)
    network = build_generator(config)
    features = network.encoder_features(_context(config))
    assert all(0.1 < feature.std() < 10 for feature in features.values())
    assert 0.1 < network(_context(config)).std() < 10


def test_equal_generators_give_equal_weights_and_the_global_state_is_not_used() -> None:
    before = torch.get_rng_state()
    first, second, other = (
        build_generator(SMALL, generator=torch.Generator().manual_seed(seed)).state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["encoder.e1.0.weight"], other["encoder.e1.0.weight"])
    assert torch.equal(torch.get_rng_state(), before)


def test_convolution_weights_are_channels_last() -> None:
    for parameter in build_generator(SMALL).parameters():
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "alexnet"}, "network.output is center; it must be full"),
        ({"dropout": 1.0}, "network.dropout is 1.0; it must be 0 or more, below 1"),
        ({"bottleneck": 0}, "network.bottleneck is 0; it must be 1 or more"),
        ({"norm": "lrn"}, "network.norm is lrn; it must stay batch with network.preset inpaint"),
        ({"groups": 2}, "network.groups is 2; it must stay 1 with network.preset inpaint"),
        ({"dropout": 0.1}, "network.dropout is 0.1; it must stay 0.5 with network.preset inpaint"),
        (
            {"preset": "alexnet", "output": "full", "bottleneck": 100},
            "network.bottleneck is 100; it must stay 4000 with network.preset alexnet",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**settings)
