"""Sibling pretexts: their samples, against plain loops, and what a step learns from them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from rank_helpers import run_ranks
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ce_model.network_config import network_in_key
from ce_model.networks import NetworkConfig, build_generator, layer_features
from ce_model.pretexts import exemplar, relative_position, transformation
from ce_model.pretexts.draws import fixed_origin, origin_of, uniform
from ce_model.pretexts.questions import classification_loss, make_samples, questions_of
from ce_model.training import (
    Networks,
    Optimizers,
    ddp_settings,
    default_objective,
    default_optimization,
    load_state_tensors,
    make_optimizers,
    make_views,
    state_tensors,
    synchronise_norms,
    train_step,
)

COUNT = 8
SIDE = 128


def network(pretext: Any, **more: Any) -> NetworkConfig:
    usual = {"preset": "features", "output": "full", "layers": "dense"}
    classes = {"exemplar_classes": COUNT} if pretext == "exemplar" else {}
    return NetworkConfig(**{**usual, "pretext": pretext, **classes, **more})


PRETEXTS = [network(name) for name in ("relative_position", "exemplar", "transformation")]
each_pretext = pytest.mark.parametrize("asking", PRETEXTS, ids=lambda n: n.pretext)


def images(count: int = COUNT, seed: int = 0) -> Tensor:
    """Smooth in places, so that what is read between pixels means something."""
    chance = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 9, 9, generator=chance)
    smooth = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    return smooth.mul(255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def origins(count: int = COUNT, step: int = 3, seed: int = 7) -> Tensor:
    return origin_of(torch.arange(count), torch.full((count,), step), seed)


# Draws


def mixed(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def test_draws_are_those_of_plain_whole_numbers() -> None:
    golden = 0x9E3779B97F4A7C15
    for seed, step, row in ((0, 0, 0), (7, 3, 12), (2**64 - 1, 10**6, 2**40)):
        origin = origin_of(torch.tensor([row]), torch.tensor([step], dtype=torch.int32), seed)
        key = mixed((mixed((step + seed * golden) % 2**64) + row) % 2**64)
        assert origin[0].tolist() == [row, key - 2**64 if key >= 2**63 else key]
        expected = [(mixed((key + n * golden) % 2**64) >> 11) / 2**53 for n in (1, 2, 3)]
        assert uniform(origin, 3)[0].tolist() == expected


def test_draws_are_even_and_differ_with_seed_step_and_row() -> None:
    drawn = uniform(origins(2000), 8)
    assert 0 <= drawn.min() and drawn.max() < 1
    shares = torch.histc(drawn.float(), 16, 0, 1) / drawn.numel()
    assert (shares * 16 - 1).abs().max() < 0.1
    keys = [
        origin_of(torch.tensor([row]), torch.tensor([step]), seed)[0, 1].item()
        for seed in range(4) for step in range(4) for row in range(4)
    ]  # fmt: skip
    assert len({*keys, *fixed_origin(torch.arange(4))[:, 1].tolist()}) == 4**3 + 4


@each_pretext
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_an_image_gives_the_same_sample_on_any_number_of_ranks(
    asking: NetworkConfig, ranks: int
) -> None:
    image, origin = images(), origins()
    whole = make_samples(asking, image, origin)
    share = COUNT // ranks
    for rank in range(ranks):
        part = slice(rank * share, (rank + 1) * share)
        found = make_samples(asking, image[part], origin[part])
        assert torch.equal(found.classes, whole.classes[part])
        assert torch.equal(found.views, whole.views[part])
    again = make_samples(asking, image, origins(step=4))
    assert not torch.equal(again.views, whole.views)


@each_pretext
def test_samples_have_the_shape_that_the_questions_say(asking: NetworkConfig) -> None:
    asked = questions_of(asking)
    views, classes = make_samples(asking, images(), origins())
    assert views.shape == (COUNT, asked.views, 3, asked.side, asked.side)
    assert views.dtype == torch.float32 and views.abs().max() <= 4 / 3 + 1e-6
    assert classes.shape == (COUNT, len(asked.names)) and classes.dtype == torch.int64
    assert 0 <= classes.min() and classes.max() < asked.answers


# Relative position


def test_patches_and_their_place_are_those_of_a_loop() -> None:
    image, origin = images(), origins()
    views, classes = relative_position.make_samples(image, origin)
    drawn = uniform(origin, 7).tolist()
    cells = [
        (down, across) for down in (-1, 0, 1) for across in (-1, 0, 1) if (down, across) != (0, 0)
    ]
    for at in range(COUNT):
        position = math.floor(drawn[at][0] * 8)
        assert classes[at].item() == position
        firsts, seconds = [], []
        for axis, offset in enumerate(cells[position]):
            low = 3 + (72 if offset < 0 else 0)
            high = 128 - 48 - 3 - (72 if offset > 0 else 0)
            place = low + math.floor(drawn[at][1 + axis] * (high - low + 1))
            firsts.append(place + math.floor(drawn[at][3 + axis] * 7) - 3)
            seconds.append(place + 72 * offset + math.floor(drawn[at][5 + axis] * 7) - 3)
        for view, (top, left) in enumerate((firsts, seconds)):
            cut = image[at, top : top + 48, left : left + 48].numpy() / 127.5 - 1
            assert cut.shape == (48, 48, 3)
            line = np.array([-1.0, 2.0, -1.0])
            expected = cut @ (np.eye(3) - np.outer(line, line) / (line @ line))
            np.testing.assert_allclose(
                views[at, view].permute(1, 2, 0).numpy(), expected, atol=1e-5
            )


def test_all_places_come_about_equally_often_and_lie_inside_with_a_gap() -> None:
    corners, position = relative_position.draw_corners(origins(4000), SIDE)
    shares = torch.bincount(position, minlength=8) / 4000
    assert (shares - 1 / 8).abs().max() < 0.02
    assert corners.min() == 0 and (corners + 48).max() == SIDE
    apart = (corners[:, 0] - corners[:, 1]).abs().amax(1)
    assert apart.min() >= 48 + 24 - 2 * 3  # jitter may take of the gap


def test_what_a_lens_shifts_between_green_and_magenta_is_not_seen() -> None:
    grey = torch.full((1, 1, 2, 2, 3), 100, dtype=torch.uint8)
    shifted = grey + torch.tensor([-20, 40, -20]).to(torch.uint8)
    seen = [relative_position.without_green_magenta(x) for x in (grey, shifted)]
    torch.testing.assert_close(seen[0], seen[1])


# Windows, for the other two


def read_by_loops(
    image: NDArray[np.uint8], centre: tuple[float, float], degrees: float, extent: float, side: int
) -> NDArray[np.float64]:
    """A window pixel by pixel; mirrored at the outer edge of the outermost pixels."""
    size = len(image)
    scaled = image / 127.5 - 1
    found = np.zeros((3, side, side))
    angle = math.radians(degrees)
    for row in range(side):
        for column in range(side):
            u = ((column + 0.5) / side * 2 - 1) * extent / 2
            v = ((row + 0.5) / side * 2 - 1) * extent / 2
            x = size / 2 + centre[0] + math.cos(angle) * u - math.sin(angle) * v
            y = size / 2 + centre[1] + math.sin(angle) * u + math.cos(angle) * v
            x, y = (-z if z < 0 else 2 * size - z if z > size else z for z in (x, y))
            x, y = (min(max(z - 0.5, 0.0), size - 1.0) for z in (x, y))
            left, top = min(int(x), size - 2), min(int(y), size - 2)
            for down in (0, 1):
                for across in (0, 1):
                    weight = y - top if down else top + 1 - y
                    weight *= x - left if across else left + 1 - x
                    found[:, row, column] += weight * scaled[top + down, left + across]
    return found


def test_views_of_exemplar_are_those_of_a_loop_and_their_class_is_their_row() -> None:
    image, origin = images(2), origins(2)
    views, classes = exemplar.make_samples(image, origin)
    assert classes.flatten().tolist() == [0, 1]
    for at, (x, y, turn, scale, f0, f1, f2, hue, value, added) in enumerate(
        uniform(origin, 10).tolist()
    ):
        window = read_by_loops(
            image[at].numpy(),
            (96 * 0.2 * (2 * x - 1), 96 * 0.2 * (2 * y - 1)),
            20 * (2 * turn - 1),
            96 / (0.7 * 2**scale),
            96,
        )
        basis = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
        stretched = np.diag([0.5 * 4**f for f in (f0, f1, f2)])
        angle = 2 * np.pi * 0.1 * (2 * hue - 1)
        cos, sin = np.cos(angle), np.sin(angle)
        turned = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        matrix = basis.T @ turned @ stretched @ basis
        coloured = np.einsum("ij,jhw->ihw", matrix, window)
        bright = ((coloured + 1) / 2) * (0.7 * 2**value) + 0.1 * (2 * added - 1)
        expected = np.clip(bright * 2 - 1, -1, 1)
        np.testing.assert_allclose(views[at, 0].numpy(), expected, atol=1e-4)


def test_views_of_transformation_are_those_of_a_loop_with_their_bins() -> None:
    image, origin = images(2), origins(2)
    views, classes = transformation.make_samples(image, origin)
    for at, (turn, across, down, common, x, y) in enumerate(uniform(origin, 6).tolist()):
        assert classes[at].tolist() == [math.floor(20 * z) for z in (turn, across, down)]
        first = 15 * (2 * common - 1) - 30 * (2 * turn - 1) / 2
        angle = math.radians(first)
        rotation = np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        shift = rotation @ [16 * (2 * across - 1), 16 * (2 * down - 1)]
        middle = np.array([8 * (2 * x - 1), 8 * (2 * y - 1)])
        for view, sign in enumerate((-1, 1)):
            centre = tuple(middle + sign * shift / 2)
            degrees = first if sign < 0 else first + 30 * (2 * turn - 1)
            expected = read_by_loops(image[at].numpy(), centre, degrees, 64, 64)
            np.testing.assert_allclose(views[at, view].numpy(), expected, atol=1e-4)


def test_both_views_of_transformation_lie_inside_the_image() -> None:
    centres, degrees, _ = transformation.draw_views(origins(4000))
    angle = degrees.abs() * math.pi / 180
    reach = 32 * (angle.cos() + angle.sin())
    assert (centres.abs().amax(2) + reach).max() <= SIDE / 2


# Heads and steps


def make(asking: NetworkConfig, **changes: Any) -> tuple[Networks, Optimizers, dict[str, Any]]:
    generator = build_generator(asking, generator=torch.Generator().manual_seed(1)).train()
    networks = Networks(generator, None)
    optimizers = make_optimizers(networks, 1e-3, 0.0, default_optimization(asking, 100))
    settings = {
        "network": asking, "objective": default_objective(asking), "dtype": torch.float32
    }  # fmt: skip
    return networks, optimizers._replace(**changes), settings


def batch(step: int = 0, count: int = COUNT) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    return images(count), hidden, origins(count, step)


@each_pretext
def test_a_step_minimises_the_cross_entropy_written_out(asking: NetworkConfig) -> None:
    networks, optimizers, settings = make(asking)
    image, hidden, origin = batch()
    views = make_views(image, hidden, asking, settings["objective"], origin)
    with torch.no_grad():
        statistics = {n: b.clone() for n, b in networks.generator.named_buffers()}
        logits = networks.generator(views.context).double().numpy()
        for name, buffer in networks.generator.named_buffers():
            buffer.copy_(statistics[name])
    expected, right = 0.0, 0
    for of_image, classes in zip(logits, views.target.tolist(), strict=True):
        for values, true in zip(of_image, classes, strict=True):
            expected -= math.log(np.exp(values[true]) / np.exp(values).sum()) / COUNT
            right += int(values.argmax() == true)
    metrics = train_step(networks, optimizers, image, hidden, origin, **settings)
    assert float(metrics["loss/joint"]) == pytest.approx(expected, rel=1e-4)
    assert float(metrics["loss/classification"]) == pytest.approx(expected, rel=1e-4)
    assert float(metrics["pretext/accuracy"]) == pytest.approx(right / views.target.numel())


@each_pretext
def test_the_gradient_reaches_the_encoder_through_every_view(asking: NetworkConfig) -> None:
    generator = build_generator(asking).eval()
    views, classes = make_samples(asking, images(2), origins(2))
    views.requires_grad_()
    classification_loss(generator(views), classes, torch.tensor(2)).backward()  # type: ignore[no-untyped-call]
    assert views.grad is not None
    assert (views.grad.abs().amax(dim=(2, 3, 4)) > 0).all()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in generator.parameters())


@each_pretext
def test_the_encoder_is_that_of_preset_features_with_the_same_weights(
    asking: NetworkConfig,
) -> None:
    ours = build_generator(asking, generator=torch.Generator().manual_seed(5)).encoder
    usual = NetworkConfig(preset="features", output="full")
    theirs = build_generator(usual, generator=torch.Generator().manual_seed(5)).encoder
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, theirs.state_dict()[name]), name
    found = layer_features(ours.eval(), torch.zeros(1, 3, SIDE, SIDE))
    assert found["pool5"].shape == (1, 256, 4, 4)


@each_pretext
def test_a_loaded_state_continues_bit_for_bit(asking: NetworkConfig) -> None:
    networks, optimizers, settings = make(asking)
    train_step(networks, optimizers, *batch(0), **settings)
    saved = state_tensors(networks, optimizers)
    resumed, resumed_optimizers, _ = make(asking)
    load_state_tensors(resumed, resumed_optimizers, saved)
    for step in (1, 2):
        first = train_step(networks, optimizers, *batch(step), **settings)
        second = train_step(resumed, resumed_optimizers, *batch(step), **settings)
        assert first == second
    ours, theirs = state_tensors(networks, optimizers), state_tensors(resumed, resumed_optimizers)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_batch_in_parts_has_the_loss_and_the_accuracy_of_its_parts() -> None:
    asking = PRETEXTS[2]
    networks, optimizers, settings = make(asking, accumulate=2)
    image, hidden, origin = batch()
    found = train_step(networks, optimizers, image, hidden, origin, **settings)
    parts = []
    for start in (0, 1):  # image i of n parts is in part i modulo n
        alone, own, _ = make(asking)
        mine = (x[start::2] for x in (image, hidden, origin))
        parts.append(train_step(alone, own, *mine, **settings))
    for name in ("loss/joint", "pretext/accuracy"):
        assert float(found[name]) == pytest.approx(
            float(parts[0][name] + parts[1][name]) / 2, rel=1e-3
        )


def _rank(rank: int, ranks: int) -> None:
    asking = PRETEXTS[0]
    networks, optimizers, settings = make(asking)
    plain, _, _ = make(asking)
    synchronise_norms(plain.generator)
    wrapped = Networks(DistributedDataParallel(plain.generator, **ddp_settings()), None)
    own = make_optimizers(wrapped, 1e-3, 0.0, default_optimization(asking, 100))
    part = slice(rank * COUNT // ranks, (rank + 1) * COUNT // ranks)
    mine = (x[part] for x in batch())
    found = train_step(wrapped, own, *mine, **settings)
    whole = train_step(networks, optimizers, *batch(), **settings)
    for name in ("loss/joint", "pretext/accuracy"):
        dist.all_reduce(found[name])
        torch.testing.assert_close(found[name] / ranks, whole[name], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(
        plain.generator.parameters(), networks.generator.parameters(), strict=True
    ):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=1e-4)


def test_two_ranks_take_the_step_of_one(tmp_path: Path) -> None:
    run_ranks(_rank, 2, tmp_path, 2)


def test_relative_position_is_learned_where_the_place_can_be_seen() -> None:
    """Images with a ramp down and one across, in colours that are not projected away."""
    ramp = torch.linspace(0, 255, SIDE).to(torch.uint8)
    image = torch.stack(
        [ramp.view(-1, 1).expand(SIDE, SIDE), torch.full((SIDE, SIDE), 127).to(torch.uint8),
         ramp.view(1, -1).expand(SIDE, SIDE)], dim=2,
    ).expand(32, -1, -1, -1).contiguous()  # fmt: skip
    hidden = torch.zeros(32, SIDE, SIDE, dtype=torch.bool)
    networks, optimizers, settings = make(PRETEXTS[0])
    accuracies = [
        float(train_step(networks, optimizers, image, hidden, origins(32, step), **settings)
              ["pretext/accuracy"])
        for step in range(14)
    ]  # fmt: skip
    assert np.mean(accuracies[-3:]) > 0.5  # by chance 1 in 8


def test_exemplar_is_learned_where_images_differ() -> None:
    hidden = torch.zeros(16, SIDE, SIDE, dtype=torch.bool)
    image, row = images().repeat(2, 1, 1, 1), torch.arange(COUNT).repeat(2)
    number = torch.arange(2).repeat_interleave(COUNT)  # two transformations of each in a step
    networks, optimizers, settings = make(PRETEXTS[1])
    accuracies = [
        float(train_step(networks, optimizers, image, hidden, origin_of(row, 2 * step + number, 0),
                         **settings)["pretext/accuracy"])
        for step in range(14)
    ]  # fmt: skip
    assert np.mean(accuracies[-3:]) > 0.4  # by chance 1 in 8


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "unet", "layers": "masked"}, "network.pretext is relative_position"),
        ({"layers": "masked"}, "network.layers is masked"),
        ({"target": "pixels"}, "network.target pixels"),
        ({"exemplar_classes": 3}, "network.exemplar_classes is 3"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network("relative_position", **changes)


def test_exemplar_needs_its_classes() -> None:
    with pytest.raises(ValueError, match="1 or more with exemplar"):
        network("exemplar", exemplar_classes=0)


def test_a_key_knows_of_pretexts_only_where_there_is_one() -> None:
    usual = network_in_key(NetworkConfig(preset="features", output="full"))
    assert "pretext" not in usual and "exemplar_classes" not in usual
    assert network_in_key(network("exemplar"))["exemplar_classes"] == COUNT
    assert network_in_key(network("transformation"))["pretext"] == "transformation"
