"""One training step of a context encoder, and the state that a resumed run needs.

A step is one discriminator step, then one generator step on the same prediction. It runs on the
device of its images, reads nothing back to the host, and applies no update that is not finite.

A batch may be taken in parts, which need the memory of one part for activations: the gradients of
the parts add up to that of the batch. Batch norm sees the images of one part at a time, and its
running statistics move once per part. With a discriminator the generator predicts each part twice,
for the discriminator's update and then for its own, since the activations are not kept in between.

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

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ce_model.losses import joint_loss, reconstruction_loss
from ce_model.networks import INPAINTING, NetworkConfig
from ce_model.pretexts.questions import classification_loss, is_right
from ce_model.training.adversary import discriminator_verdict, generator_losses
from ce_model.training.distributed import count_hidden, exchanging
from ce_model.training.loss_scale import LossScale
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
    accumulate: int = 1
    """Parts in which a batch is taken."""
    scale: LossScale | None = None
    """Of float16; None for arithmetic with the range of float32."""


def make_optimizers(
    networks: Networks,
    learning_rate: float,
    discriminator_learning_rate: float,
    optimization: Optimization | None = None,
    *,
    scaled: bool = False,
) -> Optimizers:
    """Fused optimizers: their state exists from the start, on the networks' devices.

    Without `optimization` they are Adam as in train.lua. Training in float16 needs them `scaled`.
    """
    wanted = optimization or Optimization()
    generator = make_optimizer(networks.generator, learning_rate, wanted)
    discriminator = None
    if networks.discriminator is not None:
        discriminator = make_optimizer(networks.discriminator, discriminator_learning_rate, wanted)
    average = WeightAverage(networks.generator, wanted.ema) if wanted.ema else None
    scale = LossScale(next(networks.generator.parameters()).device) if scaled else None
    return Optimizers(generator, discriminator, average, wanted.clip_norm, wanted.accumulate, scale)


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
    origin: Tensor | None = None,
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
        image: uint8 (B, S, S, 3), RGB; B a multiple of `optimizers.accumulate`. Part i of n has
            the images i, i + n and so on: with more ranks the parts of a batch stay the same.
        hidden: bool (B, S, S), True where hidden.
        origin: int64 (B, 2), from which a sibling pretext draws its samples (`pretexts.draws`);
            None for inpainting.
        network: the networks' config.
        objective: the loss.
        dtype: float32, bfloat16 or float16, from `resolve_precision`.

    Returns:
        0-d tensors on the device, by metric name. `nonfinite` is 1 when an update was left out.
    """
    assert (networks.discriminator is None) == (objective.adversarial == 0)
    assert (origin is None) == (network.pretext == INPAINTING)
    statistics = _statistics(networks)
    before = [value.clone() for value in statistics]
    count = optimizers.accumulate
    given = (image, hidden) if origin is None else (image, hidden, origin)
    image, hidden, *origins = by_parts(count, *given)
    views = make_views(image, hidden, network, objective, *origins)
    num_pixels = count_hidden(views.weight, networks.generator)
    parts = views.chunk(count)
    skip = torch.zeros((), device=image.device)
    metrics: dict[str, Tensor] = {}
    # The generator's own update goes through the same prediction; of several it is made again.
    kept = [_predict(networks.generator, parts[0], dtype)] if count == 1 else []
    if networks.discriminator is not None:
        shown = kept
        if not kept:
            with torch.no_grad():
                shown = [_predict(networks.generator, part, dtype) for part in parts]
            _restore(statistics, before)
        metrics |= _discriminator_step(networks.discriminator, optimizers, parts, shown, dtype)
        skip = _not_finite(metrics["grad_norm/discriminator"])

    optimizers.generator.zero_grad(set_to_none=True)
    losses: dict[str, Tensor] = {}
    for at, part in enumerate(parts):
        with exchanging(networks.generator, at == count - 1):
            prediction = kept[0] if kept else _predict(networks.generator, part, dtype)
            found = (
                _generator_losses(
                    networks.discriminator, part, prediction, num_pixels(), objective, dtype, count
                )
                if origin is None
                else _pretext_losses(part, prediction, num_pixels())
            )
            _backward(found["loss/joint"], optimizers.scale)
        _add(losses, found)
    norm = _norm(networks.generator, losses["loss/joint"], optimizers.scale)
    skip = torch.maximum(skip, _not_finite(norm))
    _clip(networks.generator, norm, optimizers.clip_norm)
    _step_unless(skip, optimizers.generator)
    _restore_if(skip, statistics, before)
    if optimizers.average is not None:
        optimizers.average.update(networks.generator, skip)
    if optimizers.scale is not None:
        metrics["loss_scale"] = optimizers.scale.value.clone()
        optimizers.scale.update(skip)
    return metrics | losses | {"grad_norm/generator": norm, "nonfinite": skip}


def by_parts(count: int, *batch: Tensor) -> tuple[Tensor, ...]:
    """The batch, the images of one part beside each other."""
    size = len(batch[0])
    if size % count:
        raise ValueError(
            f"the batch has {size} images; taken in {count} parts, it needs a multiple of it"
        )
    if count == 1:
        return batch
    order = torch.arange(size, device=batch[0].device).view(-1, count).T.flatten()
    return tuple(each[order] for each in batch)


def _predict(generator: nn.Module, views: Views, dtype: torch.dtype) -> Tensor:
    with autocast(views.context.device, dtype):
        return predict_from(generator, views)


def _discriminator_step(
    discriminator: nn.Module,
    optimizers: Optimizers,
    parts: Sequence[Views],
    predictions: Sequence[Tensor],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    optimizer = optimizers.discriminator
    assert optimizer is not None
    optimizer.zero_grad(set_to_none=True)
    metrics: dict[str, Tensor] = {}
    for at, (part, prediction) in enumerate(zip(parts, predictions, strict=True)):
        with exchanging(discriminator, at == len(parts) - 1):
            loss, told = discriminator_verdict(discriminator, part, prediction, dtype)
            loss = loss / len(parts)
            _backward(loss, optimizers.scale)
        share = {name: value / len(parts) for name, value in told.items()}
        _add(metrics, {"loss/discriminator": loss, **share})
    norm = _norm(discriminator, metrics["loss/discriminator"], optimizers.scale)
    _clip(discriminator, norm, optimizers.clip_norm)
    _step_unless(_not_finite(norm), optimizer)
    return metrics | {"grad_norm/discriminator": norm}


def _generator_losses(
    discriminator: nn.Module | None,
    part: Views,
    prediction: Tensor,
    num_pixels: Tensor,
    objective: Objective,
    dtype: torch.dtype,
    count: int,
) -> dict[str, Tensor]:
    """What one of `count` parts adds to the losses of the batch."""
    losses = {
        "loss/reconstruction": reconstruction_loss(
            prediction, part.target, part.weight, objective.reconstruction, num_pixels
        )
    }
    joint = losses["loss/reconstruction"]
    if discriminator is not None:
        adversarial, matching = generator_losses(
            discriminator, part, prediction, dtype, matching=objective.feature_matching > 0
        )
        losses["loss/adversarial"] = adversarial / count
        joint = joint_loss(joint, losses["loss/adversarial"], objective.adversarial)
        if matching is not None:
            losses["loss/feature_matching"] = matching / count
            joint = joint + objective.feature_matching * losses["loss/feature_matching"]
    return {**losses, "loss/joint": joint}


def _pretext_losses(part: Views, logits: Tensor, num_images: Tensor) -> dict[str, Tensor]:
    """What a part adds to the loss and to the accuracy of a sibling pretext."""
    loss = classification_loss(logits, part.target, num_images)
    right = is_right(logits, part.target).float().mean(dim=1).sum() / num_images
    return {"loss/classification": loss, "loss/joint": loss, "pretext/accuracy": right}


def _add(sums: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        sums[name] = sums[name] + value.detach() if name in sums else value.detach()


def _backward(loss: Tensor, scale: LossScale | None) -> None:
    """Add to the gradients."""
    (loss if scale is None else loss * scale.value).backward()  # type: ignore[no-untyped-call]


def _norm(network: nn.Module, loss: Tensor, scale: LossScale | None) -> Tensor:
    """Total norm of the gradients, unscaled here: not finite where the loss is not."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    if scale is not None:
        torch._foreach_mul_(gradients, 1 / scale.value)
    return get_total_norm(gradients) + 0 * loss  # the hinge of nan has a gradient of 0


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


def _restore(tensors: list[Tensor], before: list[Tensor]) -> None:
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(old)


def _restore_if(skip: Tensor, tensors: list[Tensor], before: list[Tensor]) -> None:
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(skip.bool(), old, tensor))
