"""Losses against the formulas of the paper and of train.lua, written in NumPy."""

from typing import Literal

import numpy as np
import pytest
import torch

from ce_model.losses import adversarial_loss, discriminator_loss, joint_loss, reconstruction_loss


def _pair(side: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    prediction, target = generator.uniform(-1, 1, (2, 4, 3, side, side)).astype(np.float32)
    return prediction, target


def _loss(
    prediction: np.ndarray, target: np.ndarray, weight: np.ndarray, kind: Literal["l2", "l1"]
) -> float:
    tensors = [torch.from_numpy(array) for array in (prediction, target, weight)]
    return reconstruction_loss(*tensors, kind).item()


def test_centre_loss_is_the_weighted_mean_of_train_lua() -> None:
    prediction, target = _pair(64)
    weight = np.full((4, 1, 64, 64), 10, dtype=np.float32)
    weight[:, :, 4:-4, 4:-4] = 1
    expected = np.sum(weight * (prediction - target) ** 2) / (4 * 3 * 64 * 64)
    assert _loss(prediction, target, weight, "l2") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_hole_loss_is_the_mean_over_hidden_values(kind: Literal["l2", "l1"]) -> None:
    prediction, target = _pair(16)
    hidden = np.random.default_rng(1).random((4, 1, 16, 16)) < 0.25
    difference = (prediction - target)[np.broadcast_to(hidden, prediction.shape)]
    expected = np.mean(difference**2 if kind == "l2" else np.abs(difference))
    found = _loss(prediction, target, hidden.astype(np.float32), kind)
    assert found == pytest.approx(expected, rel=1e-5)


def test_losses_of_parts_by_their_mean_count_average_to_the_loss_of_the_whole() -> None:
    prediction, target = (torch.from_numpy(array) for array in _pair(8))
    weight = torch.zeros(4, 1, 8, 8)
    weight[0], weight[2, :, :2] = 1, 10  # the second part hides a quarter of the first, with a ring
    parts = zip(prediction.split(2), target.split(2), weight.split(2), strict=True)
    mean = torch.count_nonzero(weight) / 2
    losses = [reconstruction_loss(*part, num_pixels=mean) for part in parts]
    torch.testing.assert_close(sum(losses) / 2, reconstruction_loss(prediction, target, weight))


def test_visible_pixels_get_no_gradient() -> None:
    prediction, target = (torch.from_numpy(array) for array in _pair(8))
    hidden = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    prediction.requires_grad_(True)
    reconstruction_loss(prediction, target, hidden.float()).backward()
    assert prediction.grad is not None
    assert torch.equal(prediction.grad.ne(0), hidden.expand_as(prediction))


def test_adversarial_losses_are_binary_cross_entropies() -> None:
    real, fake = np.random.default_rng(0).normal(0, 3, (2, 16))

    def probability(logits: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-logits))

    both = -np.log(probability(real)).mean() - np.log(1 - probability(fake)).mean()
    assert discriminator_loss(torch.tensor(real), torch.tensor(fake)).item() == pytest.approx(both)
    fooled = -np.log(probability(fake)).mean()
    assert adversarial_loss(torch.tensor(fake)).item() == pytest.approx(fooled)


def test_sure_answers_give_finite_losses_and_gradients() -> None:
    logits = torch.tensor([-500.0, 500.0], requires_grad=True)
    loss = discriminator_loss(logits, -logits) + adversarial_loss(logits)
    loss.backward()
    assert logits.grad is not None
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_losses_of_bfloat16_predictions_are_computed_in_float32() -> None:
    half = torch.full((2, 3, 4, 4), 0.1, dtype=torch.bfloat16)
    loss = reconstruction_loss(half, torch.zeros(2, 3, 4, 4), torch.ones(2, 1, 4, 4))
    assert loss.dtype == torch.float32
    assert adversarial_loss(half[:, 0, 0, 0]).dtype == torch.float32


@pytest.mark.parametrize(("share", "expected"), [(0.0, 2.0), (0.001, 2.003), (1.0, 5.0)])
def test_joint_loss_weighs_the_two(share: float, expected: float) -> None:
    joint = joint_loss(torch.tensor(2.0), torch.tensor(5.0), share)
    assert joint.item() == pytest.approx(expected)
