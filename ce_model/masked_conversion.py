"""Masked layers for any convolutional network: one conversion, in place.

While its `Visibility` holds hidden cells, the network computes on the visible positions alone, by
the rules of `masked`: each layer with weights and each pooling leaves zero in the hidden part,
batch norm takes its statistics from visible positions, and a global mean counts those. While it
holds none, the network is what it was. Names and weights stay.

Source: Tian et al. (SparK), ICLR 2023, arXiv:2301.03580; Woo et al. (FCMAE), CVPR 2023,
arXiv:2301.00808.
"""

from itertools import zip_longest
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ce_model.masked import masked_batch_norm, visible_positions
from ce_model.visible_convolution import convolve_visible, gathers

# They mix positions in a way that has no masked form here.
UNSUITED = (nn.GroupNorm, _InstanceNorm, _BatchNorm, nn.MultiheadAttention, nn.AdaptiveMaxPool2d)


class UnsuitedLayerError(ValueError):
    """A layer that cannot leave the hidden positions out."""


class Visibility:
    """The hidden cells of the batch that a network reads just now; it is copied with the network.

    Attributes:
        hidden: bool (B, G, G), True where hidden; None: nothing is, and every layer is plain.
    """

    def __init__(self) -> None:
        """Nothing is hidden."""
        self.hidden: Tensor | None = None
        self._by_side: dict[int, Tensor] = {}

    def show(self, hidden: Tensor | None) -> None:
        """From now on these cells are hidden."""
        self.hidden, self._by_side = hidden, {}

    def at(self, side: int) -> Tensor:
        """1 at the visible positions of a map, else 0: float (B, 1, side, side)."""
        assert self.hidden is not None
        if side not in self._by_side:
            self._by_side[side] = visible_positions(self.hidden, side)
        return self._by_side[side]


class MaskedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm of the visible positions; plain while nothing is hidden. Shape: (B, C, H, W)."""

    visibility: Visibility

    def forward(self, input: Tensor) -> Tensor:
        """See `masked.masked_batch_norm`."""
        if self.visibility.hidden is None:
            return super().forward(input)
        visible = self.visibility.at(input.shape[-1])
        if not self.training:
            return super().forward(input) * visible.to(input.dtype)
        return masked_batch_norm(self, input, visible)


class MaskedConv2d(nn.Conv2d):
    """Computes at visible positions alone where that is the faster way; plain otherwise."""

    visibility: Visibility

    def forward(self, input: Tensor) -> Tensor:
        """See `visible_convolution`."""
        hidden = self.visibility.hidden
        if hidden is None or not gathers(self, input, hidden):
            return super().forward(input)
        return convolve_visible(input, self.weight, self.visibility.at(input.shape[-1]))


MASKED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: MaskedBatchNorm2d,
    nn.Conv2d: MaskedConv2d,
}
PLAIN = {masked: plain for plain, masked in MASKED.items()}


class _Hide:
    """Forward hook: zero at the hidden positions of a layer's map."""

    def __init__(self, visibility: Visibility, *, channels_last: bool) -> None:
        self._visibility, self._channels_last = visibility, channels_last

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if self._visibility.hidden is None or output.ndim == 2:  # of whole images
            return output
        if output.ndim != 4:
            raise UnsuitedLayerError(
                f"a {type(layer).__name__} reads a sequence of positions, not a map"
            )
        if self._channels_last:
            visible = self._visibility.at(output.shape[2]).permute(0, 2, 3, 1)
        else:
            visible = self._visibility.at(output.shape[3])
        return output * visible.to(output.dtype)


class _CountVisible:
    """Forward hook of a global mean, whose sum has zeros at the hidden positions."""

    def __init__(self, visibility: Visibility) -> None:
        self._visibility = visibility

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self._visibility.hidden is None:
            return output
        if output.shape[2:] != (1, 1):
            raise UnsuitedLayerError("an AdaptiveAvgPool2d does not take the mean of the whole map")
        share = self._visibility.at(inputs[0].shape[-1]).mean((2, 3), keepdim=True)
        return output / share.clamp(min=1 / inputs[0].shape[-1] ** 2).to(output.dtype)


def convert(network: nn.Module) -> Visibility:
    """Give a network masked layers; returns what says which cells are hidden.

    Max pooling is exact where what it pools is 0 or more, as after a ReLU.

    Args:
        network: changed in place; maps are square (B, C, H, H), or (B, H, H, C) for linear layers
            and for layer norms whose `data_format` is not "channels_first".

    Raises:
        UnsuitedLayerError: a layer takes statistics or attention over positions.
    """
    visibility = Visibility()
    for parent in list(network.modules()):
        layers = list(parent.children())
        for layer, after in zip_longest(layers, layers[1:]):
            if type(layer) in MASKED:  # a layer that stands in two places is masked already
                layer.__class__ = MASKED[type(layer)]
                layer.visibility = visibility
            if isinstance(layer, MaskedBatchNorm2d):
                continue
            if isinstance(layer, UNSUITED):
                raise UnsuitedLayerError(f"a {type(layer).__name__} mixes all positions of a map")
            elif isinstance(layer, nn.AdaptiveAvgPool2d):
                layer.register_forward_hook(_CountVisible(visibility))
            elif isinstance(layer, nn.Linear | nn.LayerNorm):
                first = getattr(layer, "data_format", "channels_last") == "channels_first"
                layer.register_forward_hook(_Hide(visibility, channels_last=not first))
            elif isinstance(layer, nn.Conv2d | nn.AvgPool2d | nn.MaxPool2d) and not (
                # The norm behind it leaves the hidden positions out and zeroes them.
                isinstance(after, nn.BatchNorm2d)
            ):
                layer.register_forward_hook(_Hide(visibility, channels_last=False))
    return visibility


def unconvert(network: nn.Module) -> None:
    """Make the layers of a converted network plain again, in place."""
    for layer in network.modules():
        if isinstance(layer, MaskedBatchNorm2d | MaskedConv2d):
            del layer.visibility
            layer.__class__ = PLAIN[type(layer)]  # type: ignore[assignment]
        for key, hook in list(layer._forward_hooks.items()):
            if isinstance(hook, _Hide | _CountVisible):
                del layer._forward_hooks[key]
