"""Masked layers: a convolutional network that computes on the visible part of an image alone.

A hole that is only painted over leaks information: its edge is a strong feature, and it shifts the
mean and the variance that batch norm takes. Here every map is zero in the hidden part after each
layer, and batch norm takes its statistics from visible positions alone. With nothing hidden each
function gives what the plain layer gives, so a network trained with masks is used without them as
it is.

Holes are whole cells of a grid: `hidden` is bool (B, G, G), True where a cell is hidden, and a map
of side H, a multiple of G, has H / G positions per cell side. In a map that is coarser than the
grid, a position is visible where any of its cells is. Nothing here reads a value back from a GPU or
makes a shape from one, so that a step can be recorded as a CUDA graph.

Source: Tian et al., "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked
Modeling" (SparK), ICLR 2023, arXiv:2301.03580, section 3.1; Woo et al., "ConvNeXt V2" (FCMAE),
CVPR 2023, arXiv:2301.00808, section 3.1.
"""

from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from ce_model.visible_convolution import convolve_visible, gathers


def visible_positions(hidden: Tensor, side: int) -> Tensor:
    """1 at the visible positions of a map, 0 at the hidden ones.

    Shape:
        hidden: bool (B, G, G); result: float (B, 1, side, side).

    Raises:
        ValueError: the side is neither a multiple nor a divisor of G.
    """
    cells = hidden.shape[-1]
    shown = hidden.logical_not().float()
    if cells % side == 0:
        return F.max_pool2d(shown.unsqueeze(1), cells // side)
    if side % cells:
        raise ValueError(
            f"a map has side {side}; masked layers need a multiple or a divisor of the {cells} "
            "cells of the grid"
        )
    repeat = side // cells
    return shown.repeat_interleave(repeat, 1).repeat_interleave(repeat, 2).unsqueeze(1)


def hide(x: Tensor, hidden: Tensor) -> Tensor:
    """Zero in the hidden cells.

    Shape:
        x: float (B, C, H, H); hidden: bool (B, G, G); result: as x.
    """
    return x * visible_positions(hidden, x.shape[-1]).to(x.dtype)


def masked_batch_norm(norm: nn.BatchNorm2d, x: Tensor, visible: Tensor) -> Tensor:
    """What a batch-norm layer gives when the hidden positions do not exist; zero at those.

    In training mode the layer's running statistics move as they do in `nn.BatchNorm2d`. In a
    distributed training mean and variance are those of the visible positions of all ranks, however
    many each of them has, so a batch gives one result for any number of ranks.

    Args:
        norm: an affine layer with running statistics and a fixed momentum.
        x: what it normalises.
        visible: 1 where visible, else 0.

    Shape:
        x: float (B, C, H, W); visible: float (B, 1, H, W); result: as x.
    """
    if not norm.training:
        return norm(x) * visible.to(x.dtype)  # type: ignore[no-any-return]
    with torch.autocast(x.device.type, enabled=False):  # the sums are products, in float32 always
        y, mean, variance, count = _MaskedNorm.apply(x, visible, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    _follow(norm, mean, variance, count)
    return y  # type: ignore[no-any-return]


@torch.no_grad()
def _follow(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Move the running statistics; the variance that they hold is the unbiased one."""
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    unbiased = variance * (count / (count - 1).clamp(min=1))
    if norm.momentum is None:  # a plain average over all batches so far
        share = 1 / norm.num_batches_tracked.float()
        norm.running_mean.add_((mean - norm.running_mean) * share)
        norm.running_var.add_((unbiased - norm.running_var) * share)
    else:
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(unbiased, norm.momentum)


class _MaskedNorm(torch.autograd.Function):
    """Batch norm over the visible positions: output, and the mean, variance and count it took.

    Written out because autograd would keep and pass over four maps more. A sum over positions is
    a product with the row of visible positions, which is the fastest reduction there is.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, visible: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        ctx.shared = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        x_PC = x.float().permute(0, 2, 3, 1).reshape(-1, channels)
        shown = visible.float().reshape(-1)
        sums = torch.cat([shown @ x_PC, shown.sum().view(1)])
        if ctx.shared:
            torch.distributed.all_reduce(sums)
        count = sums[-1].clamp(min=1)
        mean = sums[:-1] / count
        # About the shared mean, in a second pass: a difference of squares would lose digits.
        centred = x_PC - mean
        squares = shown @ centred.square()
        if ctx.shared:
            torch.distributed.all_reduce(squares)
        variance = squares / count
        scale = torch.rsqrt(variance + eps)
        normal = centred.mul_(scale).mul_(shown.unsqueeze(1))
        # Not a view, since the ReLU behind it works in place.
        y = torch.empty(
            x.shape, dtype=torch.float32, device=x.device, memory_format=torch.channels_last
        )
        y_PC = y.permute(0, 2, 3, 1).view(-1, channels)
        torch.addcmul(bias.float(), normal, weight.float(), out=y_PC).mul_(shown.unsqueeze(1))
        ctx.save_for_backward(normal, shown, count, scale, weight)
        ctx.mark_non_differentiable(mean, variance, count)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        normal, shown, count, scale, weight = ctx.saved_tensors
        batch, channels, height, width = gradient.shape
        g_PC = gradient.float().permute(0, 2, 3, 1).reshape(-1, channels)
        of_bias = shown @ g_PC
        of_weight = (g_PC * normal).sum(0)
        # Through mean and variance, a position feels the gradients of all ranks.
        sums = torch.stack([of_bias, of_weight])
        if ctx.shared:
            torch.distributed.all_reduce(sums)
        of_mean, of_variance = sums / count
        of_x = (g_PC - of_mean).mul_(shown.unsqueeze(1))
        of_x.addcmul_(normal, of_variance, value=-1).mul_(weight.float() * scale)
        shaped = of_x.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return shaped.to(gradient.dtype), None, of_weight, of_bias, None


def masked_layer(layer: nn.Module, x: Tensor, hidden: Tensor) -> Tensor:
    """One layer of a plain network, on the visible cells alone; zero in the hidden ones.

    The input has to be zero there already. Max pooling is exact where what it pools is 0 or more,
    as after a ReLU.

    Shape:
        x: float (B, C, H, H); hidden: bool (B, G, G); result: float (B, D, K, K).
    """
    y: Tensor
    if isinstance(layer, nn.BatchNorm2d):
        return masked_batch_norm(layer, x, visible_positions(hidden, x.shape[-1]))
    if isinstance(layer, nn.Conv2d) and gathers(layer, x, hidden):
        return convolve_visible(x, layer.weight, visible_positions(hidden, x.shape[-1]))
    y = layer(x)
    # Batch norm behind a convolution leaves the hidden positions out and zeroes them.
    return hide(y, hidden) if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d) else y
