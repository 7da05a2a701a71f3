"""The network that fills any hole in an image of any size."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ce_model.networks import NetworkConfig, build_generator
from ce_model.training import (
    Networks,
    default_objective,
    fill,
    make_optimizers,
    make_views,
    train_step,
)
from ce_model.unet import smooth

UNET = NetworkConfig(preset="unet", output="full", antialias=True)
OBJECTIVE = default_objective(UNET)
FP32 = torch.float32


def _images(height: int, width: int, count: int = 2) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, height, width, 3), generator=draw, dtype=torch.uint8)
    hidden = torch.zeros(count, height, width, dtype=torch.bool)
    hidden[:, height // 4 : height // 2, width // 3 : -3] = True
    return image, hidden


@pytest.mark.parametrize(("height", "width"), [(128, 128), (75, 101), (16, 200), (5, 7)])
def test_untrained_it_gives_the_smooth_start_at_any_size(height: int, width: int) -> None:
    image, hidden = _images(height, width)
    views = make_views(image, hidden, UNET, OBJECTIVE)
    generator = build_generator(UNET)
    assert torch.equal(generator(views.context), views.context[:, :3])


def test_what_is_added_cannot_alternate_from_pixel_to_pixel() -> None:
    image, hidden = _images(64, 64)
    context = make_views(image, hidden, UNET, OBJECTIVE).context
    found = {}
    for antialias in (True, False):
        generator = build_generator(replace(UNET, antialias=antialias))
        draw = torch.Generator().manual_seed(1)
        torch.nn.init.normal_(generator.decoder.head.weight, 0, 0.1, draw)
        with torch.no_grad():
            generator.decoder.head.bias[:3] = 1.0  # one of the four pixels of a block
            added = (generator(context) - context[:, :3])[..., 1:-1, 1:-1]
        signs = torch.tensor([1.0, -1.0]).repeat(31)
        found[antialias] = [
            float(wave.mul(added).mean().abs())
            for wave in (signs, signs[:, None], signs * signs[:, None])
        ]
    assert max(found[True]) < min(found[False]) / 10


def test_smoothing_leaves_what_is_even_and_spreads_a_pixel() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[..., 2, 2] = 16
    expected = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])
    assert torch.equal(smooth(x)[0, 0, 1:4, 1:4], expected)
    assert torch.equal(smooth(torch.full((1, 2, 4, 6), 3.0)), torch.full((1, 2, 4, 6), 3.0))


def test_only_hidden_pixels_change() -> None:
    image, hidden = _images(50, 70)
    filled = fill(
        build_generator(UNET), image, hidden, network=UNET, objective=OBJECTIVE, dtype=FP32
    )
    assert torch.equal(filled[~hidden], image[~hidden])
    assert not torch.equal(filled[hidden], image[hidden])


def test_what_is_hidden_is_not_seen() -> None:
    image, hidden = _images(64, 48)
    other = torch.where(hidden[..., None], 255 - image, image)
    views, same = (make_views(x, hidden, UNET, OBJECTIVE) for x in (image, other))
    assert torch.equal(views.context, same.context)
    assert torch.equal(views.context[:, 3:].bool(), hidden.unsqueeze(1))


def test_an_image_is_filled_alike_alone_and_in_a_batch() -> None:
    generator = build_generator(UNET)
    torch.nn.init.normal_(generator.decoder.head.weight, 0, 0.1)
    context = make_views(*_images(64, 64, count=3), UNET, OBJECTIVE).context
    with torch.no_grad():
        torch.testing.assert_close(generator(context)[1:2], generator(context[1:2]))


def test_it_learns_a_batch_by_heart() -> None:
    image, hidden = _images(32, 32)
    image = image // 8 + 100
    image[0] += 60  # one image brighter in the hole than its surroundings tell
    image[:, 9:14, 12:27] //= 2
    networks = Networks(build_generator(UNET), None)
    optimizers = make_optimizers(networks, 5e-4, 1e-4)
    losses = [
        float(
            train_step(
                networks, optimizers, image, hidden, network=UNET, objective=OBJECTIVE, dtype=FP32
            )["loss/reconstruction"]
        )
        for _ in range(60)
    ]
    assert losses[-1] < 0.5 * losses[0]


def test_the_encoder_takes_images_without_a_mask() -> None:
    generator = build_generator(UNET)
    features = generator.encoder_features(torch.zeros(1, 3, 40, 64))
    assert list(features) == ["e1", "e2", "e3", "e4", "e5"]
    assert features["e5"].shape == (1, 256, 3, 4)
    whole = generator.encoder_features(torch.zeros(1, 4, 40, 64))
    assert torch.equal(features["e5"], whole["e5"])


def test_it_has_three_to_six_million_weights() -> None:
    assert 3e6 < sum(p.numel() for p in build_generator(UNET).parameters()) < 6e6
