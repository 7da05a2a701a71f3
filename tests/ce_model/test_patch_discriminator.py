"""The judge by patches: spectral norm, which cells count, and the game it plays."""

import pytest
import torch
from torch import Tensor, nn

from ce_model.layers import SpectralConv2d
from ce_model.losses import (
    feature_matching_loss,
    hinge_adversarial_loss,
    hinge_discriminator_loss,
)
from ce_model.networks import NetworkConfig, build_discriminator, build_generator, init_weights
from ce_model.patch_discriminator import PatchDiscriminator, cell_shares
from ce_model.training import (
    Networks,
    Objective,
    Optimizers,
    load_state_tensors,
    make_optimizers,
    make_views,
    state_tensors,
    train_step,
)
from ce_model.training.adversary import discriminator_verdict, generator_losses, show

UNET = NetworkConfig(preset="unet", output="full")
JOINT = Objective(
    reconstruction="l1", adversarial=0.05, overlap=0, start="smooth", feature_matching=0.1
)
FP32 = torch.float32


def _batch(count: int = 4, side: int = 32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, side, side, 3), generator=draw, dtype=torch.uint8)
    hidden = torch.zeros(count, side, side, dtype=torch.bool)
    for number in range(count):
        hidden[number, 4 : 12 + 4 * number, 8:20] = True
    return image, hidden


def test_spectral_convolutions_reach_a_largest_singular_value_of_one() -> None:
    layer = SpectralConv2d(6, 10, 3)
    init_weights(layer, None, torch.Generator().manual_seed(0))
    for _ in range(50):
        layer(torch.zeros(1, 6, 5, 5))
    scaled = layer.weight / layer._largest()
    assert torch.linalg.matrix_norm(scaled.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


def test_in_evaluation_the_direction_stays() -> None:
    layer = SpectralConv2d(3, 4, 3).eval()
    init_weights(layer, None, torch.Generator().manual_seed(0))
    before = layer.direction.clone()
    layer(torch.zeros(1, 3, 5, 5))
    assert torch.equal(layer.direction, before)


def test_cells_that_touch_the_hole_share_the_verdict_equally_in_each_image() -> None:
    hole = torch.zeros(3, 1, 32, 32, dtype=torch.bool)
    hole[0, 0, 7:9, 0] = True  # two cells
    hole[1, 0, :, :8] = True  # four
    share = cell_shares(hole)
    assert share.shape == (3, 1, 4, 4)
    torch.testing.assert_close(share.sum((1, 2, 3)), torch.tensor([1 / 3, 1 / 3, 0]))
    assert torch.equal(share[0, 0, :2, 0], torch.tensor([1 / 6, 1 / 6]))
    halves = torch.cat([cell_shares(hole[:1]), cell_shares(hole[1:2])])
    torch.testing.assert_close(share[:2], halves / 3)


def test_hinge_losses_follow_their_formula() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    share = torch.tensor([0.5, 0.25, 0.25])
    expected = 0.5 * (0 + 0) + 0.25 * (0.5 + 1) + 0.25 * (2 + 2)
    assert hinge_discriminator_loss(real, fake, share).item() == pytest.approx(expected)
    assert hinge_adversarial_loss(fake, share).item() == pytest.approx(1 - 0.25)


def test_feature_matching_is_the_mean_over_layers() -> None:
    fake, real = [torch.zeros(1, 2, 2, 2), torch.ones(1, 3, 1, 1)], [torch.ones(1, 2, 2, 2)] * 2
    real[1] = torch.full((1, 3, 1, 1), 4.0)
    assert feature_matching_loss(fake, real).item() == pytest.approx((1 + 3) / 2)


def test_the_discriminator_sees_the_filled_image_and_no_prediction_outside_the_hole() -> None:
    image, hidden = _batch()
    views = make_views(image, hidden, UNET, JOINT)
    judge = build_discriminator(UNET)
    prediction = torch.full_like(views.target, 0.3)
    shown = show(judge, prediction, views)
    assert torch.equal(shown[:, 3:].bool(), views.hole)
    where = views.hole.expand_as(prediction)
    assert (shown[:, :3][where] == 0.3).all()
    assert torch.equal(shown[:, :3][~where], views.target[~where])


def test_verdicts_far_from_the_hole_do_not_count() -> None:
    image, hidden = _batch(2, 96)
    hidden[:] = False
    hidden[:, :8, :8] = True
    views = make_views(image, hidden, UNET, JOINT)
    judge = build_discriminator(UNET).eval()
    prediction = views.context[:, :3]
    far = views._replace(target=views.target.clone())
    far.target[..., 80:, 80:] = 1.0
    loss, _ = discriminator_verdict(judge, views, prediction, FP32)
    same, _ = discriminator_verdict(judge, far, prediction, FP32)
    assert loss.item() == same.item()


def test_the_generator_step_gives_the_discriminator_no_gradient() -> None:
    image, hidden = _batch()
    views = make_views(image, hidden, UNET, JOINT)
    judge = build_discriminator(UNET)
    prediction = views.context[:, :3].clone().requires_grad_()
    verdict, distance = generator_losses(judge, views, prediction, FP32, matching=True)
    assert distance is not None
    (verdict + distance).backward()
    assert all(p.grad is None and p.requires_grad for p in judge.parameters())
    assert prediction.grad is not None
    assert prediction.grad[views.hole.expand_as(prediction)].abs().sum() > 0
    assert not prediction.grad[~views.hole.expand_as(prediction)].any()


def _step(networks: Networks, image: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    optimizers = make_optimizers(networks, 1e-3, 1e-3)
    return train_step(
        networks, optimizers, image, hidden, network=UNET, objective=JOINT, dtype=FP32
    )


def _state(networks: Networks) -> list[Tensor]:
    return [t.clone() for n in networks if n is not None for t in n.state_dict().values()]


def test_a_joint_step_moves_both_networks() -> None:
    networks = Networks(build_generator(UNET), build_discriminator(UNET))
    assert networks.discriminator is not None
    judge = networks.discriminator.get_parameter("c1.weight").clone()
    head = networks.generator.get_parameter("decoder.head.weight").clone()
    metrics = _step(networks, *_batch())
    assert float(metrics["nonfinite"]) == 0
    assert {"loss/adversarial", "loss/feature_matching", "loss/discriminator"} <= metrics.keys()
    assert not torch.equal(judge, networks.discriminator.get_parameter("c1.weight"))
    assert not torch.equal(head, networks.generator.get_parameter("decoder.head.weight"))


def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    networks = Networks(build_generator(UNET), build_discriminator(UNET))
    assert networks.discriminator is not None
    nn.init.constant_(networks.discriminator.get_parameter("logit.bias"), float("nan"))
    before = _state(networks)
    assert float(_step(networks, *_batch())["nonfinite"]) == 1
    for old, new in zip(before, _state(networks), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)


def test_only_a_judge_by_patches_matches_features() -> None:
    assert isinstance(build_discriminator(UNET), PatchDiscriminator)
    with pytest.raises(ValueError, match="feature_matching"):
        Objective(adversarial=0.0, feature_matching=0.1)


def test_a_joint_training_resumes_bit_for_bit() -> None:
    def fresh() -> tuple[Networks, Optimizers]:
        networks = Networks(build_generator(UNET), build_discriminator(UNET))
        return networks, make_optimizers(networks, 1e-3, 1e-3)

    def step(networks: Networks, optimizers: Optimizers) -> None:
        settings = {"network": UNET, "objective": JOINT, "dtype": FP32}
        train_step(networks, optimizers, *_batch(2), **settings)  # type: ignore[arg-type]

    whole = fresh()
    step(*whole)
    saved = state_tensors(*whole)
    step(*whole)
    resumed = fresh()
    load_state_tensors(*resumed, saved)
    step(*resumed)
    expected, found = state_tensors(*whole), state_tensors(*resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
