"""How the weights move: optimizer, weight decay, learning rate over the steps, clipping, average.

Everything acts on the device and reads nothing back, so that it can be recorded in a CUDA graph.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ce_model.training.distributed import unwrap

Optimizer = Literal["adam", "adamw", "sgd", "lars"]
Schedule = Literal["constant", "cosine", "step"]
ADAPTIVE: tuple[Optimizer, ...] = ("adam", "adamw")  # they use betas; the others momentum
ADAM_BETAS = (0.5, 0.999)  # train.lua
STEP_FACTOR = 0.1  # of the learning rate, at each milestone
TRUST = 0.001  # LARS: change of a weight per step as a share of its size, at learning rate 1
AVERAGE_WARM_UP = 10.0


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How both networks are updated; the defaults are those of the paper's code."""

    optimizer: Optimizer = "adam"
    """Rule of an update."""
    betas: tuple[float, float] = ADAM_BETAS
    """Decay of Adam's means of the gradient and of its square."""
    momentum: float = 0.9
    """Of sgd and lars."""
    weight_decay: float = 0.0
    """Decoupled in adamw, else added to the gradient; never on biases and normalisations."""
    schedule: Schedule = "constant"
    """Learning rate over the steps: constant, half a cosine to 0, or a tenth at each milestone."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises to its full value, in a straight line."""
    milestones: tuple[int, ...] = ()
    """Steps from which schedule `step` multiplies the rate by 0.1."""
    clip_norm: float = 0.0
    """Largest norm of all gradients of one network; 0 clips nothing."""
    ema: float = 0.0
    """Decay of the moving average of the generator's weights; 0 keeps none."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name, value in (("betas", self.betas[0]), ("betas", self.betas[1]),
                            ("momentum", self.momentum), ("ema", self.ema)):  # fmt: skip
            if not 0 <= value < 1:
                raise ValueError(f"optimization.{name} is {value}; it must be from 0 to below 1")
        for name in ("weight_decay", "clip_norm"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"optimization.{name} is {value}; it must be 0 or more and finite")
        if self.warmup_steps < 0:
            raise ValueError(
                f"optimization.warmup_steps is {self.warmup_steps}; it must be 0 or more"
            )
        if (
            list(self.milestones) != sorted(set(self.milestones))
            or min(self.milestones, default=1) < 1
        ):
            raise ValueError(
                f"optimization.milestones is {self.milestones}; they must be rising steps above 0"
            )
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError(
                f"optimization.schedule is {self.schedule} with milestones {self.milestones}; "
                "schedule step needs milestones, and no other schedule has them"
            )

    @property
    def is_moving(self) -> bool:
        """Whether the learning rate changes from step to step."""
        return self.schedule != "constant" or self.warmup_steps > 0


def rate_factor(optimization: Optimization, step: int, steps: int) -> float:
    """The learning rate of a step as a share of its full value.

    Args:
        optimization: schedule, warm-up and milestones.
        step: number of the step, from 0.
        steps: length of the run.
    """
    if step < optimization.warmup_steps:
        return (step + 1) / optimization.warmup_steps
    if optimization.schedule == "cosine":
        length = max(1, steps - optimization.warmup_steps)
        return (1 + math.cos(math.pi * (step - optimization.warmup_steps) / length)) / 2
    return float(STEP_FACTOR ** sum(step >= milestone for milestone in optimization.milestones))


class WeightAverage:
    """Exponential moving average of a network's weights and statistics, as a network of its own.

    The decay grows with the updates as (1 + n) / (10 + n) up to its full value, so that the
    untrained weights are soon forgotten. A step that was not applied leaves the average alone.

    Attributes:
        module: the averaged network.
        updates: 0-d, how often it was updated.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start from the network as it is."""
        self.module = copy.deepcopy(unwrap(network)).requires_grad_(False)
        self.decay = decay
        device = next(self.module.parameters()).device
        self.updates = torch.zeros((), device=device)

    @torch.no_grad()
    def update(self, network: nn.Module, skip: Tensor) -> None:
        """Move towards the network where `skip`, 0-d, is 0."""
        decay = ((1 + self.updates) / (AVERAGE_WARM_UP + self.updates)).clamp(max=self.decay)
        share = (1 - decay) * (1 - skip)
        self.updates += 1 - skip
        live = unwrap(network).state_dict()
        mine = self.module.state_dict()
        names = [name for name, tensor in mine.items() if tensor.is_floating_point()]
        change = torch._foreach_sub([live[name] for name in names], [mine[name] for name in names])
        torch._foreach_mul_(change, share)
        torch._foreach_add_([mine[name] for name in names], change)
        for name in mine.keys() - names:  # counts of batches
            mine[name].copy_(live[name])

    def tensors(self) -> dict[str, Tensor]:
        """The live state by name."""
        return {**self.module.state_dict(), "updates": self.updates}


class LARS(torch.optim.SGD):
    """SGD whose step is scaled for each weight to its size; biases and norms take plain steps.

    Source: You et al., "Large Batch Training of Convolutional Networks", 2017, arXiv:1708.03888.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Scale the gradients, decay included, then step as SGD."""
        for group in self.param_groups:
            if not group["adapt"]:
                continue
            weights = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in weights]
            decay = group["lars_decay"]
            sizes = torch.stack(torch._foreach_norm(weights))
            slopes = torch.stack(torch._foreach_norm(gradients)) + decay * sizes
            trust = torch.where((sizes > 0) & (slopes > 0), TRUST * sizes / slopes, 1.0)
            torch._foreach_add_(gradients, weights, alpha=decay)
            torch._foreach_mul_(gradients, list(trust.unbind()))
        super().step(closure)


def make_optimizer(
    network: nn.Module, learning_rate: float, optimization: Optimization
) -> torch.optim.Optimizer:
    """The optimizer of one network, fused: its state exists from the start, on its device.

    On a GPU a rate that changes is a tensor, because a recorded step reads it from the device.
    """
    parameters = list(network.parameters())
    on_gpu = parameters[0].is_cuda
    rate: float | Tensor = learning_rate
    if on_gpu and optimization.is_moving:
        rate = torch.tensor(learning_rate, device=parameters[0].device)
    decay = optimization.weight_decay
    if optimization.optimizer in ADAPTIVE:
        make = torch.optim.AdamW if optimization.optimizer == "adamw" else torch.optim.Adam
        adam = make(
            _groups(network, decay),
            lr=rate,
            betas=optimization.betas,
            weight_decay=decay,
            fused=True,
            capturable=on_gpu,  # into the CUDA graph of a step
        )
        # Adam makes its state at the first step; made here, a state can be loaded before it.
        for parameter in parameters:
            adam.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter.detach()),
                "exp_avg_sq": torch.zeros_like(parameter.detach()),
            }
        return adam
    settings: dict[str, Any] = {"lr": rate, "momentum": optimization.momentum, "fused": True}
    if optimization.optimizer == "lars":
        sgd: torch.optim.SGD = LARS(_lars_groups(network, decay), **settings)
    else:
        sgd = torch.optim.SGD(_groups(network, decay), weight_decay=decay, **settings)
    for parameter in parameters if optimization.momentum else ():
        sgd.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter.detach())}
    return sgd


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Of all its parameters, in place where the rate is a tensor on the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def undecayed(network: nn.Module) -> set[str]:
    """Names of biases and of all that belongs to a normalisation: they are not decayed."""
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
    of_norms = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in network.named_modules()
        if isinstance(module, norms)
        for name, _ in module.named_parameters(recurse=False)
    }
    named = dict(network.named_parameters())
    return {
        name
        for name, parameter in named.items()
        if name in of_norms or name.split(".")[-1] == "bias" or parameter.ndim <= 1
    }


def _split(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    plain = undecayed(network)
    named = list(network.named_parameters())
    return [p for n, p in named if n not in plain], [p for n, p in named if n in plain]


def _groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    if not decay:
        return [{"params": list(network.parameters())}]
    decayed, plain = _split(network)
    groups: Sequence[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _lars_groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    decayed, plain = _split(network)
    groups: Sequence[dict[str, Any]] = [
        {"params": decayed, "adapt": True, "lars_decay": decay},
        {"params": plain, "adapt": False},
    ]
    return [group for group in groups if group["params"]]
