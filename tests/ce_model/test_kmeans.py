"""Filters by k-means with which an encoder begins its training."""

import pytest
import torch
from torch import Tensor, nn

from ce_model import kmeans
from ce_model.feature_networks import padded_alexnet


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photographs(count: int) -> Tensor:
    return torch.rand(count, 3, 128, 128, generator=seeded(1)) * 2 - 1


@pytest.fixture(autouse=True)
def few_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "PATCHES", 400)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_first_layers_get_filters_of_what_they_read(groups: int) -> None:
    encoder, images = padded_alexnet(groups), photographs(3)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    found = kmeans.first_filters(encoder, images, 2, seeded())
    assert list(found) == ["conv1.weight", "conv2.weight"]
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())

    draw, x = seeded(), images
    for index in (1, 2):
        layer = encoder.get_submodule(f"conv{index}")
        assert isinstance(layer, nn.Conv2d)
        filters = kmeans.filters_for(layer, x, draw)
        weight = found[f"conv{index}.weight"]
        assert weight.shape == layer.weight.shape
        torch.testing.assert_close(weight / weight.norm(), filters / filters.norm())
        torch.testing.assert_close(weight.norm(), layer.weight.norm())
        layer.weight.data = weight
        x = layer(x)
        std, mean = torch.std_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)
        x = nn.functional.max_pool2d(torch.relu((x - mean) / (std**2 + 1e-5).sqrt()), 3, 2, 1)


def test_the_number_of_layers_and_the_generator_decide() -> None:
    encoder, images = padded_alexnet(), photographs(2)
    one = kmeans.first_filters(encoder, images, 1, seeded())
    again = kmeans.first_filters(encoder, images, 1, seeded())
    other = kmeans.first_filters(encoder, images, 1, seeded(2))
    assert list(one) == ["conv1.weight"]
    assert torch.equal(one["conv1.weight"], again["conv1.weight"])
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_a_white_background_makes_no_filter() -> None:
    layer = nn.Conv2d(3, 16, 5)
    images = torch.ones(4, 3, 40, 40)
    images[:, :, :8, :8] = torch.rand(4, 3, 8, 8, generator=seeded(1))
    lengths = kmeans.filters_for(layer, images, seeded()).flatten(1).norm(dim=1)
    assert (lengths > 0.1).all() and lengths.isfinite().all()


@pytest.mark.parametrize("colour", [-1.0, 0.0, 1.0])
def test_images_of_one_colour_leave_random_filters(colour: float) -> None:
    found = kmeans.first_filters(
        padded_alexnet(), torch.full((2, 3, 128, 128), colour), 2, seeded()
    )
    for weight in found.values():
        assert weight.isfinite().all() and (weight.flatten(1).norm(dim=1) > 0).all()
