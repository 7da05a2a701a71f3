"""The optimizers of a network, by the settings of `optimization`.

Everything acts on the device and reads nothing back, so that it can be recorded in a CUDA graph.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ce_model.training.muon import Muon, hidden_weights
from ce_model.training.optimization import WITH_BETAS, Optimization

TRUST = 0.001  # LARS: change of a weight per step as a share of its size, at learning rate 1


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
    if optimization.optimizer in WITH_BETAS:
        settings: dict[str, Any] = {
            "lr": rate,
            "betas": optimization.betas,
            "weight_decay": decay,
            "fused": True,
            "capturable": on_gpu,  # into the CUDA graph of a step
        }
        if optimization.optimizer == "muon":
            muon = Muon(_muon_groups(network), optimization.momentum, **settings)
            return _with_state(muon, parameters)
        make = torch.optim.AdamW if optimization.optimizer == "adamw" else torch.optim.Adam
        return _with_state(make(_groups(network, decay), **settings), parameters)
    settings = {"lr": rate, "momentum": optimization.momentum, "fused": True}
    if optimization.optimizer == "lars":
        sgd: torch.optim.SGD = LARS(_lars_groups(network, decay), **settings)
    else:
        sgd = torch.optim.SGD(_groups(network, decay), weight_decay=decay, **settings)
    for parameter in parameters if optimization.momentum else ():
        sgd.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter.detach())}
    return sgd


def _with_state(adam: torch.optim.Adam, parameters: list[nn.Parameter]) -> torch.optim.Adam:
    """Adam makes its state at the first step; made here, a state can be loaded before it."""
    for parameter in parameters:
        if parameter not in adam.state:
            adam.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter.detach()),
                "exp_avg_sq": torch.zeros_like(parameter.detach()),
            }
    return adam


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


def _muon_groups(network: nn.Module) -> list[dict[str, Any]]:
    hidden, plain = hidden_weights(network), undecayed(network)
    named = list(network.named_parameters())
    groups: Sequence[dict[str, Any]] = [
        {"params": [p for n, p in named if n in hidden], "orthogonal": True},
        {"params": [p for n, p in named if n not in hidden | plain]},
        {"params": [p for n, p in named if n in plain], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _lars_groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    decayed, plain = _split(network)
    groups: Sequence[dict[str, Any]] = [
        {"params": decayed, "adapt": True, "lars_decay": decay},
        {"params": plain, "adapt": False},
    ]
    return [group for group in groups if group["params"]]
