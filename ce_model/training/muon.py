"""Muon: the steps of hidden layers are made orthogonal, so that none of their directions starves.

The momentum of a layer's gradient, as a matrix of outputs by inputs, is replaced by the nearest
matrix whose singular values are all about 1, found by five products (Newton and Schulz). A gradient
that mostly has a few directions, as those of masked prediction do, then moves the others too.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
https://kellerjordan.github.io/posts/muon; Liu et al., "Muon is Scalable for LLM Training", 2025,
arXiv:2502.16982, for a step as large as AdamW's. `torch.optim.Muon` takes matrices alone, no
kernels, computes in bfloat16, and cannot leave out a step that is not finite.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Newton and Schulz, after Jordan et al.
ITERATIONS = 5
STEP_SIZE = 0.2  # root mean square of an update of AdamW, after Liu et al.


class Muon(torch.optim.AdamW):
    """Orthogonal steps in the groups that have `orthogonal`, and those of AdamW in the others."""

    def __init__(self, groups: list[dict[str, Any]], momentum: float, **adamw: Any) -> None:
        """Groups and settings as of AdamW; the state of the orthogonal ones exists from here on."""
        super().__init__(groups, **adamw)
        self.momentum = momentum
        for _, weight in self._orthogonal():
            self.state[weight] = {"momentum_buffer": torch.zeros_like(weight.detach())}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Where `found_inf` is 1, nothing moves, as in AdamW's fused step."""
        skip = getattr(self, "found_inf", None)
        done: list[tuple[Tensor, Tensor]] = []
        for group, weight in self._orthogonal():
            if weight.grad is not None:
                self._move(weight, weight.grad, group, skip)
                done.append((weight, weight.grad))
                weight.grad = None  # AdamW leaves it alone
        super().step(closure)
        for weight, gradient in done:
            weight.grad = gradient

    def _orthogonal(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for group in self.param_groups:
            if group.get("orthogonal"):
                for weight in group["params"]:
                    yield group, weight

    def _move(
        self, weight: Tensor, gradient: Tensor, group: dict[str, Any], skip: Tensor | None
    ) -> None:
        mean = self.state[weight]["momentum_buffer"]
        if skip is not None:
            gradient = torch.where(skip > 0, mean, gradient)
        mean.lerp_(gradient, 1 - self.momentum)
        matrices = as_matrices(gradient.lerp(mean, self.momentum))
        size = STEP_SIZE * max(matrices.shape[1:]) ** 0.5
        move = orthogonal(matrices).reshape(weight.shape) * size + group["weight_decay"] * weight
        rate = group["lr"] if skip is None else group["lr"] * (1 - skip)
        weight.sub_(move * rate)


def as_matrices(weight: Tensor) -> Tensor:
    """(N, outputs, inputs): a weight of three sides is N matrices, any other kernel is one.

    Shape:
        weight: (N, A, B) of a channel-wise layer; else (A, B, ...) of a layer or convolution.
    """
    return weight if weight.ndim == 3 else weight.reshape(1, len(weight), -1)


def orthogonal(matrices: Tensor) -> Tensor:
    """The singular values of each matrix brought near 1 (0.7 to 1.2); their vectors stay.

    x becomes (a + b x x^T + c (x x^T)^2) x, five times. The factors are found from the small square
    x x^T alone and applied once, which takes half the time.

    Shape:
        matrices: float (N, A, B); result: the same.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    square = x @ x.mT
    product = factor = _factor(square)
    for _ in range(ITERATIONS - 1):
        square = factor @ square @ factor
        factor = _factor(square)
        product = factor @ product
    x = product @ x
    return x.mT if tall else x


def _factor(square: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    one = torch.eye(square.shape[1], device=square.device, dtype=square.dtype)
    return a * one + b * square + c * square @ square


def hidden_weights(network: nn.Module) -> set[str]:
    """Names of the weights that step orthogonally.

    All matrices and kernels but the first and the last of the network, which read colours and
    write what is asked for, and those with one input or one output, as of a depthwise layer.
    """
    kernels = [(name, p) for name, p in network.named_parameters() if p.ndim > 1]
    return {
        name
        for name, p in kernels[1:-1]
        if min(as_matrices(p).shape[1:]) > 1 and (p.ndim < 4 or p.shape[1] > 1)
    }
