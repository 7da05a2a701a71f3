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
from torch.nn.utils import get_total_norm

from ce_model.losses import adversarial_loss, discriminator_loss, joint_loss, reconstruction_loss
from ce_model.networks import NetworkConfig
from ce_model.training.distributed import count_hidden, unwrap
from ce_model.training.objective import Objective
from ce_model.training.precision import autocast
from ce_model.training.views import make_views

ADAM_BETAS = (0.5, 0.999)


class Networks(NamedTuple):
    """What is trained; no discriminator without an adversarial loss."""

    generator: nn.Module
    discriminator: nn.Module | None


class Optimizers(NamedTuple):
    """Fused Adam for each of the networks."""

    generator: torch.optim.Adam
    discriminator: torch.optim.Adam | None


def make_optimizers(
    networks: Networks, learning_rate: float, discriminator_learning_rate: float
) -> Optimizers:
    """Adam as in train.lua, fused: its state exists from the start, on the networks' devices."""
    generator = _adam(networks.generator, learning_rate)
    if networks.discriminator is None:
        return Optimizers(generator, None)
    return Optimizers(generator, _adam(networks.discriminator, discriminator_learning_rate))


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

    Where a total gradient norm is not finite, nothing is updated that depends on it: weights, Adam
    state and BatchNorm statistics stay as they were, bit for bit. DistributedDataParallel averages
    the gradients before the check, so all ranks decide alike.

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
        prediction = networks.generator(views.context)
    skip = torch.zeros((), device=image.device)
    metrics: dict[str, Tensor] = {}
    if networks.discriminator is not None:
        assert optimizers.discriminator is not None
        metrics |= _discriminator_step(
            networks.discriminator, optimizers.discriminator, views.target, prediction, dtype
        )
        skip = _not_finite(metrics["grad_norm/discriminator"])

    reconstruction = reconstruction_loss(
        prediction, views.target, views.weight, objective.reconstruction, num_pixels()
    )
    joint = reconstruction
    if networks.discriminator is not None:
        adversarial = _adversarial(unwrap(networks.discriminator), prediction, dtype)
        joint = joint_loss(reconstruction, adversarial, objective.adversarial)
        metrics["loss/adversarial"] = adversarial.detach()
    norm = _backward(joint, optimizers.generator, networks.generator)
    skip = torch.maximum(skip, _not_finite(norm))
    _step_unless(skip, optimizers.generator)
    _restore_if(skip, statistics, before)
    return metrics | {
        "loss/reconstruction": reconstruction.detach(),
        "loss/joint": joint.detach(),
        "grad_norm/generator": norm,
        "nonfinite": skip,
    }


def _adam(network: nn.Module, learning_rate: float) -> torch.optim.Adam:
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(
        parameters,
        lr=learning_rate,
        betas=ADAM_BETAS,
        fused=True,
        capturable=parameters[0].is_cuda,  # into the CUDA graph of a step
    )
    # Adam makes its state at the first step; made here, a state can be loaded before it.
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter.detach()),
            "exp_avg_sq": torch.zeros_like(parameter.detach()),
        }
    return optimizer


def _discriminator_step(
    discriminator: nn.Module,
    optimizer: torch.optim.Adam,
    target: Tensor,
    prediction: Tensor,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    # Real and predicted patches go through apart, each with its own batch statistics.
    with autocast(target.device, dtype):
        real = discriminator(target)
        fake = discriminator(prediction.detach())
    loss = discriminator_loss(real, fake)
    norm = _backward(loss, optimizer, discriminator)
    _step_unless(_not_finite(norm), optimizer)
    real, fake = real.detach().float(), fake.detach().float()
    return {
        "loss/discriminator": loss.detach(),
        "discriminator/real": real.sigmoid().mean(),
        "discriminator/fake": fake.sigmoid().mean(),
        "discriminator/accuracy": torch.cat([real > 0, fake < 0]).float().mean(),
        "grad_norm/discriminator": norm,
    }


def _adversarial(discriminator: nn.Module, prediction: Tensor, dtype: torch.dtype) -> Tensor:
    """The updated discriminator's verdict, with no gradients for its own weights."""
    discriminator.requires_grad_(False)
    with autocast(prediction.device, dtype):
        logits = discriminator(prediction)
    discriminator.requires_grad_(True)
    return adversarial_loss(logits)


def _backward(loss: Tensor, optimizer: torch.optim.Adam, network: nn.Module) -> Tensor:
    """Fresh gradients of the network, and their total norm."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return get_total_norm([p.grad for p in network.parameters() if p.grad is not None])


def _not_finite(norm: Tensor) -> Tensor:
    return norm.isfinite().logical_not().float()


def _step_unless(skip: Tensor, optimizer: torch.optim.Adam) -> None:
    """Step where skip is 0, decided on the device: the protocol between GradScaler and Adam."""
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
