"""An encoder's layers as plain values, from which torch alone builds them again."""

from typing import Any

from torch import nn

# What a layer is built from, by the names of torch.nn; `bias` is whether there is one.
ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "bias",
    ),
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.ReLU: (),  # never in place: what a layer gives is not changed by the next one
    nn.LeakyReLU: ("negative_slope",),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    nn.LocalResponseNorm: ("size", "alpha", "beta", "k"),
    nn.Flatten: ("start_dim", "end_dim"),
}


class UndescribedLayerError(ValueError):
    """A layer that `ARGUMENTS` does not know: the encoder cannot be rebuilt from plain values."""


def describe_layers(network: nn.Sequential) -> list[dict[str, Any]]:
    """Name, kind and arguments of every layer, in order; those of a Sequential are its layers.

    Raises:
        UndescribedLayerError: a layer of another kind, or a convolution whose padding is not zeros.
    """
    described = []
    for name, layer in network.named_children():
        if type(layer) is nn.Sequential:
            arguments: dict[str, Any] = {"layers": describe_layers(layer)}
        elif type(layer) in ARGUMENTS and getattr(layer, "padding_mode", "zeros") == "zeros":
            arguments = {key: _plain(getattr(layer, key)) for key in ARGUMENTS[type(layer)]}
        else:
            raise UndescribedLayerError(f"layer {name} is a {type(layer).__name__}")
        described.append({"name": name, "kind": type(layer).__name__, "arguments": arguments})
    return described


def _plain(value: Any) -> Any:
    """A value for JSON: of a bias, whether there is one."""
    if value is None or isinstance(value, nn.Parameter):
        return value is not None
    return value
