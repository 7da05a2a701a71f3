"""Batch norm over the images of all ranks, so that a batch gives one result however it is spread.

torch.nn.SyncBatchNorm works on GPUs alone; this one works wherever its process group does, and
normalises by the same sums. Ranks may hold different numbers of images.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_norms(network: nn.Module) -> None:
    """Let each batch norm of a network see the images of all ranks; names and weights stay.

    Nothing changes in evaluation mode. Every rank has to take part in every forward pass.
    """
    for layer in network.modules():
        if type(layer) in SYNCHRONISED:
            layer.__class__ = SYNCHRONISED[type(layer)]


@contextmanager
def each_rank_alone(network: nn.Module) -> Iterator[None]:
    """Within the block, every rank normalises by its own images: they may differ in number."""
    layers = [layer for layer in network.modules() if type(layer) in SYNCHRONISED.values()]
    for layer in layers:
        layer.__class__ = type(layer).__bases__[0]
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = SYNCHRONISED[type(layer)]


class _GlobalNorm(torch.autograd.Function):
    """Normalisation by mean and biased variance over all ranks: the result, mean and variance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [d for d in range(x.ndim) if d != 1]
        count = torch.tensor([x.numel() / x.shape[1]], dtype=torch.float32, device=x.device)
        wide = x.float()
        sums = torch.cat([wide.sum(dims), wide.square().sum(dims), count])
        torch.distributed.all_reduce(sums)
        channels = x.shape[1]
        total = sums[-1]
        mean = sums[:channels] / total
        # About the shared mean, in a second pass: a difference of squares would lose digits.
        centred = wide - _column(mean, x)
        variance = centred.square().sum(dims)
        torch.distributed.all_reduce(variance)
        variance = variance / total
        scale = (variance + epsilon).rsqrt()
        normal = centred * _column(scale, x)
        ctx.save_for_backward(normal, scale, total)
        ctx.mark_non_differentiable(mean, variance, total)
        return normal.to(x.dtype), mean, variance, total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        normal, scale, total = ctx.saved_tensors
        dims = [d for d in range(normal.ndim) if d != 1]
        wide = gradient.float()
        sums = torch.stack([wide.sum(dims), (wide * normal).sum(dims)])
        torch.distributed.all_reduce(sums)
        of_mean, of_variance = sums / total
        result = wide - _column(of_mean, normal) - normal * _column(of_variance, normal)
        return (result * _column(scale, normal)).to(gradient.dtype), None


def _column(values: Tensor, like: Tensor) -> Tensor:
    """One value per channel, to be spread over (N, C, ...)."""
    return values.view(1, -1, *[1] * (like.ndim - 2))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _forward(layer: _BatchNorm, x: Tensor) -> Tensor:
    normal: Tensor
    normal, mean, variance, total = _GlobalNorm.apply(x, layer.eps)  # type: ignore[no-untyped-call]
    if layer.track_running_stats and layer.running_mean is not None:
        assert layer.running_var is not None and layer.num_batches_tracked is not None
        layer.num_batches_tracked.add_(1)
        count = layer.num_batches_tracked.float()
        share = 1 / count if layer.momentum is None else layer.momentum  # None: a plain average
        with torch.no_grad():
            unbiased = variance * (total / (total - 1))
            layer.running_mean += share * (mean - layer.running_mean)
            layer.running_var += share * (unbiased - layer.running_var)
    if layer.affine:
        normal = normal * _column(layer.weight, x) + _column(layer.bias, x)
    return normal.to(x.dtype)


class SynchronisedNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d over all ranks. Shape: (N, C) or (N, C, L), as the result."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the statistics of all ranks in training, else as nn.BatchNorm1d."""
        return _forward(self, input) if self.training else super().forward(input)


class SynchronisedNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d over all ranks. Shape: (N, C, H, W), as the result."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the statistics of all ranks in training, else as nn.BatchNorm2d."""
        return _forward(self, input) if self.training else super().forward(input)


SYNCHRONISED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SynchronisedNorm1d,
    nn.BatchNorm2d: SynchronisedNorm2d,
}
