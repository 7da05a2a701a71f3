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

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from ce_model.losses import (
    Reconstruction,
    adversarial_loss,
    discriminator_loss,
    joint_loss,
    reconstruction_loss,
)
from ce_model.mask_tensors import shrink
from ce_model.masks import Strategy
from ce_model.networks import NetworkConfig, input_side, output_side

Precision = Literal["auto", "bf16", "fp32"]

IMAGENET_MEAN = (123.0, 117.0, 104.0)  # RGB, 0 to 255
ADAM_BETAS = (0.5, 0.999)
STATISTICS_BATCH = 32
STATISTICS_PICTURES = 256  # that batch norm's statistics are estimated from


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the generator is trained to minimise."""

    reconstruction: Reconstruction = "l2"
    """Error of a pixel: squared (l2) or absolute (l1)."""
    adversarial: float = 0.001
    """Share of the adversarial loss in the joint loss; 0 trains without a discriminator."""
    overlap: int = 4
    """Width of the ring along the border of the hole that is shown and predicted too, pixels."""
    ring_weight: float = 10.0
    """Weight of the ring in the reconstruction loss; the hole has weight 1."""
    region: Literal["hole", "image"] = "hole"
    """Pixels of a full output that count: the hidden ones or all. A centre always counts whole."""
    fill: tuple[float, float, float] = IMAGENET_MEAN
    """Colour of the hole in the input, RGB, 0 to 255; 117 104 123 is the order of train.lua."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not 0 <= self.adversarial <= 1:
            raise ValueError(
                f"objective.adversarial is {self.adversarial}; it must be 0 to 1, because the "
                "reconstruction loss gets the rest"
            )
        if not 0 <= self.overlap <= 16:
            raise ValueError(
                f"objective.overlap is {self.overlap} px; it must be 0 to 16, so that at least "
                "half the side of a 64 px centre stays hidden"
            )
        if self.ring_weight <= 0:
            raise ValueError(f"objective.ring_weight is {self.ring_weight}; it must be above 0")
        if not all(0 <= value <= 255 for value in self.fill):
            raise ValueError(f"objective.fill is {self.fill}; each value must be 0 to 255")


class Views(NamedTuple):
    """What the network sees and what it has to predict; colours in [-1, 1].

    Shape:
        context: float (B, 3, S, S), channels_last, the hole filled with the mean colour.
        target: float (B, 3, T, T), contiguous as the loss needs it.
        hole: bool (B, 1, T, T), True where the network saw nothing, in the frame of the target.
        weight: float (B, 1, T, T), weight of each pixel in the reconstruction loss.
    """

    context: Tensor
    target: Tensor
    hole: Tensor
    weight: Tensor


class Networks(NamedTuple):
    """What is trained; no discriminator without an adversarial loss."""

    generator: nn.Module
    discriminator: nn.Module | None


class Optimizers(NamedTuple):
    """Fused Adam for each of the networks."""

    generator: torch.optim.Adam
    discriminator: torch.optim.Adam | None


class LearningRates(NamedTuple):
    """Of the generator and of the discriminator."""

    generator: float
    discriminator: float


class Prediction(NamedTuple):
    """A prediction beside the truth, colours in [0, 1].

    Shape:
        prediction, target: float (B, 3, T, T); hole: bool (B, 1, T, T).
    """

    prediction: Tensor
    target: Tensor
    hole: Tensor


def default_objective(network: NetworkConfig) -> Objective:
    """The paper's loss: joint with a ring for a centre, joint over the image, or hole only."""
    if network.preset == "alexnet":
        return Objective(adversarial=0.0, overlap=0)
    if network.output == "full":
        return Objective(overlap=0, region="image")
    return Objective()


def default_learning_rates(
    network: NetworkConfig, strategy: Strategy, adversarial: float
) -> LearningRates:
    """The rates of train.lua, and for alexnet those reported for the paper."""
    if network.preset == "alexnet":
        generator = 1e-3 if strategy == "central" else 1e-4
    else:
        generator = 2e-3 if 0 < adversarial < 1 else 2e-4
    return LearningRates(generator, discriminator_rate(generator, adversarial))


def discriminator_rate(generator: float, adversarial: float) -> float:
    """A tenth of the generator's; without a reconstruction loss the same, as in train.lua."""
    return generator if adversarial == 1 else generator / 10


def resolve_precision(requested: Precision, device: torch.device | str) -> torch.dtype:
    """float32, or bfloat16 where the processor computes in it.

    Without instructions for it (amx_bf16 or avx512_bf16 on a CPU), bf16 is slower than fp32.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        supported = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    else:
        supported = False
    if requested == "bf16" and not supported:
        raise ValueError(
            f"precision is bf16; this {kind} device has no bf16 arithmetic (on a CPU: amx_bf16 or "
            "avx512_bf16) and would be slower than in fp32; use auto or fp32"
        )
    return torch.bfloat16 if supported and requested != "fp32" else torch.float32


def make_views(
    image: Tensor, hidden: Tensor, network: NetworkConfig, objective: Objective
) -> Views:
    """Hide pixels and cut out the target, on the device of the image.

    For a centre output, `hidden` has to be the central mask: nothing else is predicted.

    Shape:
        image: uint8 (B, S, S, 3), RGB; hidden: bool (B, S, S).
    """
    side, target_side = input_side(network), output_side(network)
    if image.shape[1:] != (side, side, 3) or hidden.shape != image.shape[:3]:
        raise ValueError(
            f"images have shape {tuple(image.shape)} and masks {tuple(hidden.shape)}; "
            f"network.preset {network.preset} needs (B, {side}, {side}, 3) and (B, {side}, {side})"
        )
    picture = image.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    hole = shrink(hidden, objective.overlap)
    context = picture.clone()
    for channel, value in enumerate(objective.fill):
        context[:, channel].masked_fill_(hole, value / 127.5 - 1)
    start = (side - target_side) // 2
    inner = slice(start, start + target_side)
    target, hole, hidden = (
        picture[..., inner, inner],
        hole[:, inner, inner],
        hidden[:, inner, inner],
    )
    weight = hidden.float() if objective.region == "hole" else torch.ones_like(target[:, 0])
    if objective.overlap:
        weight = weight.masked_fill(hidden & ~hole, objective.ring_weight)
    return Views(context, target.contiguous(), hole.unsqueeze(1), weight.unsqueeze(1))


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
    num_pixels = _counting(views.weight, networks.generator)
    with _autocast(image.device, dtype):
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
        adversarial = _adversarial(bare(networks.discriminator), prediction, dtype)
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


def dropout_shifts_statistics(generator: nn.Module) -> bool:
    """Whether batch norm sees other variances in training than in evaluation, for dropout's sake.

    Source: Li et al., "Understanding the Disharmony between Dropout and Batch Normalization by
    Variance Shift", CVPR 2019, arXiv:1801.05134.
    """
    layers = list(generator.modules())
    dropout = any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in layers)
    return dropout and any(isinstance(layer, nn.BatchNorm2d) for layer in layers)


@torch.no_grad()
def estimate_statistics(
    generator: nn.Module,
    image: Tensor,
    hidden: Tensor,
    *,
    network: NetworkConfig,
    objective: Objective,
    dtype: torch.dtype,
) -> None:
    """Running statistics of batch norm as evaluation needs them: today's weights, no dropout.

    They become the plain average over batches of 32 of these pictures; weights and mode stay.
    Shapes as in `train_step`.
    """
    with _evaluating(generator) as encoder:
        norms = [layer for layer in encoder.modules() if isinstance(layer, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # a plain average
        try:
            for start in range(0, len(image), STATISTICS_BATCH):
                part = slice(start, start + STATISTICS_BATCH)
                views = make_views(image[part], hidden[part], network, objective)
                with _autocast(image.device, dtype):
                    encoder(views.context)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


@torch.no_grad()
def predict(
    generator: nn.Module,
    image: Tensor,
    hidden: Tensor,
    *,
    network: NetworkConfig,
    objective: Objective,
    dtype: torch.dtype,
) -> Prediction:
    """Predict in evaluation mode, for the metrics. Shapes as in `train_step`."""
    views = make_views(image, hidden, network, objective)
    with _evaluating(generator) as encoder, _autocast(image.device, dtype):
        prediction = encoder(views.context)
    prediction = prediction.float().add(1).div(2).clamp(0, 1)
    return Prediction(prediction, views.target.add(1).div(2), views.hole)


def fill(
    generator: nn.Module,
    image: Tensor,
    hidden: Tensor,
    *,
    network: NetworkConfig,
    objective: Objective,
    dtype: torch.dtype,
) -> Tensor:
    """The images with their holes filled in: uint8 (B, S, S, 3). Visible pixels stay the same."""
    prediction, _, hole = predict(
        generator, image, hidden, network=network, objective=objective, dtype=dtype
    )
    filled = image.clone()
    start = (image.shape[1] - prediction.shape[2]) // 2
    inner = slice(start, start + prediction.shape[2])
    pixels = prediction.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    filled[:, inner, inner] = torch.where(hole.permute(0, 2, 3, 1), pixels, image[:, inner, inner])
    return filled


def state_tensors(networks: Networks, optimizers: Optimizers) -> dict[str, Tensor]:
    """Everything a step changes, by flat name: private, contiguous copies on the CPU."""
    return {
        name: tensor.to("cpu", copy=True).contiguous()
        for name, tensor in _named_state(networks, optimizers).items()
    }


def load_state_tensors(
    networks: Networks, optimizers: Optimizers, tensors: Mapping[str, Tensor]
) -> None:
    """Continue from `state_tensors`. Names and shapes have to agree exactly."""
    state = _named_state(networks, optimizers)
    missing, unexpected = sorted(state.keys() - tensors), sorted(tensors.keys() - state)
    if missing or unexpected:
        raise ValueError(
            f"the training state does not fit the networks: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])}) and {len(unexpected)} are unexpected "
            f"({', '.join(unexpected[:3])}); use the network and objective it was saved with"
        )
    for name, tensor in state.items():
        if tensor.shape != tensors[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(tensors[name].shape)} in the training state; the network "
                f"needs {tuple(tensor.shape)}; use the network settings it was saved with"
            )
    for name, tensor in state.items():
        tensor.copy_(tensors[name])


def ddp_settings() -> dict[str, bool]:
    """Arguments of DistributedDataParallel for these networks.

    Running statistics stay each rank's own; torch 2.13 renamed that argument, and with the other
    value torch 2.11 refuses the backward pass of the discriminator.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {buffers: False, "gradient_as_bucket_view": True}


def num_ranks() -> int:
    """Processes that train together; with one, nothing has to be exchanged."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def bare(network: nn.Module) -> nn.Module:
    """The network without its DistributedDataParallel wrapper."""
    if isinstance(network, DistributedDataParallel):
        module: nn.Module = network.module
        return module
    return network


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """The network without its wrapper, in evaluation mode for the block."""
    module = bare(network)
    was_training = module.training
    module.eval()
    try:
        yield module
    finally:
        module.train(was_training)


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def _counting(weight: Tensor, network: nn.Module) -> Callable[[], Tensor]:
    """Begin to count the pixels with a weight; the answer is the mean over the network's ranks.

    DistributedDataParallel averages the gradients. Divided by each rank's own count, a pixel of a
    rank with small holes would weigh more than one of a rank with large holes.
    """
    count = torch.count_nonzero(weight)
    if not isinstance(network, DistributedDataParallel):
        return lambda: count
    group = network.process_group
    ranks = torch.distributed.get_world_size(group)
    if ranks == 1:
        return lambda: count
    # The forward pass need not wait for it. A sum, because gloo has no average.
    reduction = torch.distributed.all_reduce(count, group=group, async_op=True)

    def mean() -> Tensor:
        reduction.wait()
        return count / ranks

    return mean


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
    with _autocast(target.device, dtype):
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
    with _autocast(prediction.device, dtype):
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


def _named_state(networks: Networks, optimizers: Optimizers) -> dict[str, Tensor]:
    """The live tensors of both networks and optimizers by flat name."""
    state: dict[str, Tensor] = {}
    for part in Networks._fields:
        network, optimizer = getattr(networks, part), getattr(optimizers, part)
        if network is None:
            continue
        for name, tensor in bare(network).state_dict().items():
            state[f"{part}.{name}"] = tensor
        for name, parameter in bare(network).named_parameters():
            for key, tensor in optimizer.state[parameter].items():
                state[f"{part}_optimizer.{key}.{name}"] = tensor
    return state
