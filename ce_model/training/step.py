"""One training step of a context encoder, and the state that a resumed run needs.

A step is one discriminator step, then one generator step on the same prediction. It runs on the
device of its images, reads nothing back to the host, and applies no update that is not finite.
Dropout draws from the global random state of torch by nature: the caller seeds it before a step.

To compile, call `networks.generator.compile()`, which works in place. To train on several devices,
wrap the networks in DistributedDataParallel with `ddp_settings()`: without the exchange of buffers
in each forward pass, because the discriminator runs forward twice before its backward pass, and
nothing in training reads the running statistics. The gradient is that of the global batch, however
the hidden pixels are spread over the ranks.

Source: Pathak et al., "Context Encoders: Feature Learning by Inpainting", CVPR 2016,
arXiv:1604.07379, sections 3.2 and 5; train.lua and train_random.lua for the step order, the
overlap ring and the learning rates.
"""

from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ce_model.losses import joint_loss, reconstruction_loss
from ce_model.networks import NetworkConfig
from ce_model.training.adversary import discriminator_verdict, generator_losses
from ce_model.training.distributed import count_hidden
from ce_model.training.objective import Objective
from ce_model.training.optimization import Optimization, rate_factor
from ce_model.training.optimizers import make_optimizer, set_learning_rate
from ce_model.training.precision import autocast
from ce_model.training.views import Views, make_views, predict_from
from ce_model.training.weight_average import WeightAverage


class Networks(NamedTuple):
    """What is trained; no discriminator without an adversarial loss."""

    generator: nn.Module
    discriminator: nn.Module | None


class Optimizers(NamedTuple):
    """What moves the weights of each of the networks, and what follows them."""

    generator: torch.optim.Optimizer
    discriminator: torch.optim.Optimizer | None
    average: WeightAverage | None = None
    """Moving average of the generator; None without one."""
    clip_norm: float = 0.0
    """Largest norm of all gradients of one network; 0 clips nothing."""


def make_optimizers(
    networks: Networks,
    learning_rate: float,
    discriminator_learning_rate: float,
    optimization: Optimization | None = None,
) -> Optimizers:
    """Fused optimizers: their state exists from the start, on the networks' devices.

    Without `optimization` they are Adam as in train.lua.
    """
    wanted = optimization or Optimization()
    generator = make_optimizer(networks.generator, learning_rate, wanted)
    discriminator = None
    if networks.discriminator is not None:
        discriminator = make_optimizer(networks.discriminator, discriminator_learning_rate, wanted)
    average = WeightAverage(networks.generator, wanted.ema) if wanted.ema else None
    return Optimizers(generator, discriminator, average, wanted.clip_norm)


def set_learning_rates(
    optimizers: Optimizers,
    rates: tuple[float, float],
    optimization: Optimization,
    step: int,
    steps: int,
) -> tuple[float, float]:
    """Those of a step, counted from 0, in a run of `steps`; returns them.

    Args:
        optimizers: from `make_optimizers`, with the same `optimization`.
        rates: full learning rates of the generator and of the discriminator.
        optimization: schedule and warm-up.
        step: number of the step that follows.
        steps: length of the run.
    """
    if not optimization.is_moving:
        return rates
    factor = rate_factor(optimization, step, steps)
    now = (rates[0] * factor, rates[1] * factor)
    for optimizer, rate in zip(optimizers[:2], now, strict=True):
        if optimizer is not None:
            set_learning_rate(optimizer, rate)
    return now


def train_step(
    networks: Networks,
    optimizers: Optimizers,
    image: Tensor,
    hidden: Tensor,
    *,
    network: NetworkConfig,
    objective: Objective,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Update the discriminator, if there is one, then the generator.

    Where a total gradient norm is not finite, nothing is updated that depends on it: weights, the
    optimizer's state, the moving average and BatchNorm statistics stay as they were, bit for bit.
    DistributedDataParallel averages the gradients before the check, so all ranks decide alike.

    Args:
        networks: in training mode; plain or wrapped.
        optimizers: from `make_optimizers`.
        image: uint8 (B, S, S, 3), RGB.
        hidden: bool (B, S, S), True where hidden.
        network: the networks' config.
        objective: the loss.
        dtype: float32 or bfloat16, from `resolve_precision`.

    Returns:
        0-d tensors on the device, by metric name. `nonfinite` is 1 when an update was left out.
    """
    assert (networks.discriminator is None) == (objective.adversarial == 0)
    statistics = _statistics(networks)
    before = [value.clone() for value in statistics]
    views = make_views(image, hidden, network, objective)
    num_pixels = count_hidden(views.weight, networks.generator)
    with autocast(image.device, dtype):
        prediction = predict_from(networks.generator, views)
    skip = torch.zeros((), device=image.device)
    metrics: dict[str, Tensor] = {}
    if networks.discriminator is not None:
        assert optimizers.discriminator is not None
        metrics |= _discriminator_step(
            networks.discriminator,
            optimizers.discriminator,
            views,
            prediction,
            dtype,
            optimizers.clip_norm,
        )
        skip = _not_finite(metrics["grad_norm/discriminator"])

    reconstruction = reconstruction_loss(
        prediction, views.target, views.weight, objective.reconstruction, num_pixels()
    )
    joint = reconstruction
    if networks.discriminator is not None:
        adversarial, matching = generator_losses(
            networks.discriminator, views, prediction, dtype,
            matching=objective.feature_matching > 0,
        )  # fmt: skip
        joint = joint_loss(reconstruction, adversarial, objective.adversarial)
        metrics["loss/adversarial"] = adversarial.detach()
        if matching is not None:
            joint = joint + objective.feature_matching * matching
            metrics["loss/feature_matching"] = matching.detach()
    norm = _backward(joint, optimizers.generator, networks.generator)
    skip = torch.maximum(skip, _not_finite(norm))
    _clip(networks.generator, norm, optimizers.clip_norm)
    _step_unless(skip, optimizers.generator)
    _restore_if(skip, statistics, before)
    if optimizers.average is not None:
        optimizers.average.update(networks.generator, skip)
    return metrics | {
        "loss/reconstruction": reconstruction.detach(),
        "loss/joint": joint.detach(),
        "grad_norm/generator": norm,
        "nonfinite": skip,
    }


def _discriminator_step(
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    views: Views,
    prediction: Tensor,
    dtype: torch.dtype,
    clip_norm: float,
) -> dict[str, Tensor]:
    loss, measured = discriminator_verdict(discriminator, views, prediction, dtype)
    norm = _backward(loss, optimizer, discriminator)
    _clip(discriminator, norm, clip_norm)
    _step_unless(_not_finite(norm), optimizer)
    return {"loss/discriminator": loss.detach(), **measured, "grad_norm/discriminator": norm}


def _backward(loss: Tensor, optimizer: torch.optim.Optimizer, network: nn.Module) -> Tensor:
    """Fresh gradients of the network, and their total norm: not finite where the loss is not."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
    return norm + 0 * loss.detach()  # the hinge of nan has a gradient of 0


def _clip(network: nn.Module, norm: Tensor, largest: float) -> None:
    """Scale the gradients down to the largest norm, decided on the device."""
    if largest:
        clip_grads_with_norm_(network.parameters(), largest, norm)


def _not_finite(norm: Tensor) -> Tensor:
    return norm.isfinite().logical_not().float()


def _step_unless(skip: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Step where skip is 0, decided on the device: GradScaler's protocol with fused optimizers."""
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = skip  # type: ignore[attr-defined]
    optimizer.step()


def _statistics(networks: Networks) -> list[Tensor]:
    """Running means and variances of BatchNorm, which a forward pass changes."""
    buffers = [b for network in networks if network is not None for b in network.buffers()]
    return [buffer for buffer in buffers if buffer.is_floating_point()]


def _restore_if(skip: Tensor, tensors: list[Tensor], before: list[Tensor]) -> None:
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(skip.bool(), old, tensor))
