"""Converted networks compute on visible cells alone, and are plain while nothing is hidden."""

import copy

import numpy as np
import pytest
import torch
from model_helpers import small_body
from torch import Tensor, nn

from ce_model import masked_conversion, visible_convolution
from ce_model.hierarchy import Backbone, HierarchicalDecoder
from ce_model.masked_conversion import PLAIN, UnsuitedLayerError, convert, unconvert
from ce_model.network_config import Layers
from ce_model.networks import NetworkConfig, build_generator

GENERATOR = torch.Generator().manual_seed(0)


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 128, 128, generator=GENERATOR)


def cells(count: int = 3) -> Tensor:
    hidden = torch.rand(count, 8, 8, generator=GENERATOR) < 0.6
    hidden[0, :2, :2] = True  # a position of the coarsest map without a visible cell
    return hidden


@pytest.mark.parametrize("training", [True, False])
def test_with_nothing_hidden_a_converted_network_is_the_plain_one(training: bool) -> None:
    plain, converted = small_body().train(training), small_body().train(training)
    visibility = convert(converted)
    x = images()
    visibility.show(torch.zeros(3, 8, 8, dtype=torch.bool))
    for found, expected in zip(converted(x), plain(x), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for name, value in converted.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", ["masked", "dense"])
def test_a_new_encoder_is_in_training_mode_whole(layers: Layers) -> None:
    assert all(module.training for module in Backbone(small_body(), layers).modules())


def test_no_map_depends_on_a_hidden_pixel_and_each_is_zero_there() -> None:
    encoder = Backbone(small_body(), "masked").train()
    x, hidden = images().requires_grad_(), cells()
    maps = encoder.visible_maps(x, hidden)
    torch.stack([found.square().sum() for found in maps]).sum().backward()
    assert x.grad is not None
    pixels = hidden.repeat_interleave(16, 1).repeat_interleave(16, 2).unsqueeze(1)
    assert x.grad[pixels.expand_as(x)].abs().max() == 0 < x.grad[~pixels.expand_as(x)].abs().max()
    for found, stride in zip(maps, encoder.strides, strict=True):
        where = -torch.max_pool2d(-pixels.float(), stride)  # hidden: all pixels of the position
        assert found[where.bool().expand_as(found)].abs().max() == 0


def test_batch_norm_counts_visible_positions_alone() -> None:
    encoder = Backbone(small_body(), "masked").train()
    x, hidden = images(), cells()
    first = encoder.body.get_submodule("stem.0")
    encoder.visible_maps(x, hidden)
    shown = (~hidden).repeat_interleave(16, 1).repeat_interleave(16, 2).unsqueeze(1)
    y = first(x * shown).detach().numpy().transpose(0, 2, 3, 1)
    seen = y[shown[:, 0, ::2, ::2].numpy()].astype(np.float64)
    norm = encoder.body.get_submodule("stem.1")
    np.testing.assert_allclose(norm.running_mean, 0.1 * seen.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        norm.running_var, 0.9 + 0.1 * seen.var(0, ddof=1), rtol=1e-4, atol=1e-5
    )


def test_convolutions_that_gather_give_the_maps_and_gradients_of_dense_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, hidden, found, asked = images(), cells(), [], []
    convolve = masked_conversion.convolve_visible
    monkeypatch.setattr(
        masked_conversion, "convolve_visible", lambda *given: asked.append(1) or convolve(*given)
    )
    for worth_it in (0.0, 1.1):  # always, never
        monkeypatch.setattr(visible_convolution, "WORTH_IT", worth_it)
        encoder = Backbone(small_body(), "masked").train()
        maps = encoder.visible_maps(x, hidden)
        torch.stack([each.square().sum() for each in maps]).sum().backward()
        found.append([*maps, *(weight.grad for weight in encoder.parameters())])
    assert asked, "no layer of the body gathers"
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_a_copy_has_a_visibility_of_its_own() -> None:
    encoder = Backbone(small_body(), "masked").eval()
    other = copy.deepcopy(encoder)
    x = images()
    whole = encoder(x)
    assert other.visibility is not None and other.visibility is not encoder.visibility
    other.visibility.show(cells())
    torch.testing.assert_close(encoder(x), whole)
    assert not torch.equal(other(x), whole)


def test_a_plain_copy_has_plain_layers_and_gives_the_same() -> None:
    encoder = Backbone(small_body(), "masked").eval()
    plain = encoder.plain()
    x = images()
    torch.testing.assert_close(plain(x), encoder(x))
    assert not any(type(m) in PLAIN or m._forward_hooks for m in plain.modules())
    assert {type(m) for m in encoder.modules()} >= PLAIN.keys()
    assert (
        plain.state_dict().keys()
        == encoder.state_dict().keys()
        == {f"body.{name}" for name in small_body().state_dict()}
    )


def test_what_mixes_all_positions_is_refused() -> None:
    with pytest.raises(UnsuitedLayerError, match="a GroupNorm mixes all positions"):
        convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)))
    sequence = nn.Sequential(nn.Flatten(2), nn.Linear(16, 4))
    visibility = convert(sequence)
    visibility.show(torch.zeros(1, 2, 2, dtype=torch.bool))
    with pytest.raises(UnsuitedLayerError, match="a sequence of positions"):
        sequence(torch.zeros(1, 3, 4, 4))
    unconvert(sequence)
    assert sequence(torch.zeros(1, 3, 4, 4)).shape == (1, 3, 4)


def test_maps_that_do_not_halve_are_refused() -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x[:, :, ::4, ::4], x[:, :, ::32, ::32]]

    with pytest.raises(ValueError, match="half the side of the one before"):
        Backbone(One(), "masked")


@pytest.mark.parametrize("layers", ["masked", "dense"])
@pytest.mark.parametrize("target", ["hog", "pixels"])
def test_the_decoder_predicts_a_vector_per_cell(layers: str, target: str) -> None:
    config = NetworkConfig(
        preset="features", output="full", encoder="small", layers=layers, target=target
    )
    network = build_generator(config, backbone=Backbone(small_body(), layers))
    x, hidden = images(), cells()
    predicted = network(x, hidden)
    assert predicted.shape == (3, 108 if target == "hog" else 768, 8, 8)
    assert isinstance(network.decoder, HierarchicalDecoder)
    assert len(network.decoder.tokens) == (4 if layers == "masked" else 0)
    predicted.sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())
    assert list(network.encoder_features(x)) == ["stage1", "stage2", "stage3", "stage4"]


def test_a_backbone_is_asked_for_where_the_config_names_one() -> None:
    config = NetworkConfig(preset="features", output="full", encoder="small")
    with pytest.raises(ValueError, match="has to be given as a backbone"):
        build_generator(config)


@pytest.mark.parametrize(("target", "value"), [("hog", 0.25), ("pixels", 0.0)])
@pytest.mark.parametrize("encoder", ["alexnet", "small"])
def test_a_fresh_network_predicts_one_value_so_that_the_encoder_has_no_noise_to_silence(
    encoder: str, target: str, value: float
) -> None:
    config = NetworkConfig(preset="features", output="full", encoder=encoder, target=target)
    backbone = None if encoder == "alexnet" else Backbone(small_body(), "masked")
    network = build_generator(config, backbone=backbone)
    predicted = network(images(), cells())
    assert (predicted == value).all()
    (predicted - 1).square().mean().backward()
    assert all(not weight.grad.any() for weight in network.encoder.parameters())
    assert network.decoder.predict.weight.grad.any()
