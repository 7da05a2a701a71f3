"""Getting an encoder ready for a new task, by the same rule for every encoder.

Weights that come from different pretraining differ in scale, and a common learning rate then
favours some of them: under batch norm, weights whose norm has grown learn more slowly. So every
encoder, random ones too, goes through the same steps before it is fine-tuned:

    calibrate     batch-norm statistics of the new images, unlabelled and without holes
    fold          batch norm becomes part of the convolutions: conv, bias, ReLU
    initialise    fresh layers: Gaussian or k-means filters, unit variance on the new images
    equalise      scale the layers until all learn at one rate; what the network computes stays

Source: Kraehenbuhl, Doersch, Donahue, Darrell, "Data-dependent Initializations of Convolutional
Neural Networks", ICLR 2016, arXiv:1511.06856 (`magic_init`), sections 3.1 and 3.2.
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ce_model import kmeans
from ce_model.hierarchy import Backbone
from ce_model.kmeans import Weighted
from ce_model.layers import ChannelAffine

HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.MaxPool2d, nn.Flatten, nn.Dropout)
Filters = Literal["gaussian", "kmeans"]
Chain = Sequence[Sequence[Weighted]]
"""Layers in the order of the signal; layers that read the same signal stand in one group."""


def calibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the batch-norm statistics by those of these images.

    Args:
        network: changed in place; its train or eval mode is kept.
        batches: float (B, 3, S, S) in [-1, 1]; the average over the batches is taken. Where single
            units are normalised, a lone image at the end goes with the batch before it: in one
            image a unit has no variance.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    if any(isinstance(norm, nn.BatchNorm1d) for norm in norms):
        batches = _without_lone_end(list(batches))
    training, momenta = network.training, [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(training)


def _without_lone_end(batches: list[Tensor]) -> list[Tensor]:
    if len(batches) < 2 or len(batches[-1]) > 1:
        return batches
    return [*batches[:-2], torch.cat(batches[-2:])]


def fold(network: nn.Sequential | Backbone) -> nn.Sequential | Backbone:
    """A copy in which batch norm is part of the layer before it; equal to `network.eval()`.

    The other layers keep their names; the batch norms are gone. In a backbone, where not every
    batch norm stands behind a layer of its own, each becomes a fixed scale and shift.
    """
    if isinstance(network, Backbone):
        plain = network.plain().eval()
        for parent in list(plain.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.BatchNorm2d):
                    setattr(parent, name, ChannelAffine.of(layer))
        return plain
    return _fold_chain(network)


def _fold_chain(network: nn.Sequential) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module]()
    last = ""
    for name, layer in network.named_children():
        if isinstance(layer, nn.BatchNorm2d):
            convolution = layers[last]
            assert isinstance(convolution, nn.Conv2d)
            layers[last] = fuse_conv_bn_eval(convolution.eval(), copy.deepcopy(layer).eval())
            continue
        if isinstance(layer, nn.BatchNorm1d):
            dense = layers[last]
            assert isinstance(dense, nn.Linear)
            layers[last] = fuse_linear_bn_eval(dense.eval(), copy.deepcopy(layer).eval())
            continue
        layers[name] = (
            _fold_chain(layer) if isinstance(layer, nn.Sequential) else copy.deepcopy(layer)
        )
        last = name
    return nn.Sequential(layers).eval()


def chain_of(encoder: nn.Module) -> list[list[Weighted]]:
    """The weighted layers of a folded encoder whose scale may be changed.

    Local response norm is not homogeneous, a residual block neither: what stands before the last
    of them keeps its scale.
    """
    layers: list[list[Weighted]] = []
    for layer in _in_order(encoder):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layers.append([layer])
        elif not isinstance(layer, HOMOGENEOUS):
            layers = []
    return layers


def _in_order(network: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested chains."""
    if isinstance(network, nn.Sequential):
        for layer in network:
            yield from _in_order(layer)
    else:
        yield network


def initialise(
    layers: Iterable[Weighted],
    forward: Callable[[], object],
    *,
    filters: Filters,
    generator: torch.Generator,
) -> None:
    """Draw new weights and give every output channel mean 0 and variance 1 on the data.

    Args:
        layers: layers with a bias; those later in the signal see the new earlier ones.
        forward: one pass of images through the network that holds the layers.
        filters: N(0, 1) weights, or centres of k-means over what the layer reads.
        generator: the only source of randomness.
    """

    def draw(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        if filters == "gaussian":
            layer.weight.normal_(generator=generator)
        else:
            layer.weight.copy_(kmeans.filters_for(layer, inputs[0], generator))
        assert layer.bias is not None
        layer.bias.zero_()

    def normalise(layer: nn.Module, _: object, output: Tensor) -> Tensor:
        assert isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None
        over = [0, *range(2, output.ndim)]
        deviation, mean = torch.std_mean(output, dim=over, correction=0)
        deviation = deviation.clamp_min(1e-6 * float(deviation.max().clamp_min(1e-30)))
        shape = (1, -1, *[1] * (output.ndim - 2))
        layer.weight.div_(deviation.view(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.copy_(-mean / deviation)
        return (output - mean.view(shape)) / deviation.view(shape)

    handles = []
    for layer in layers:
        handles.append(layer.register_forward_pre_hook(draw))
        handles.append(layer.register_forward_hook(normalise))
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()


def equalise(
    chain: Chain, forward: Callable[[], Sequence[Tensor]], generator: torch.Generator
) -> list[float]:
    """Scale the layers so that |gradient| / |weight| is the same for all of them.

    Multiplying layer k by r_k divides its ratio by r_k^2 and, between homogeneous layers (ReLU,
    max pooling), leaves the function alone when the product of all r is 1. The gradient is that
    of random noise at the outputs, so no label is looked at.

    Args:
        chain: changed in place; the last group makes the outputs.
        forward: the outputs for some images, in eval mode.
        generator: source of the noise.

    Returns:
        The factors r, one per group.
    """
    weights = [[layer.weight for layer in group] for group in chain]
    outputs = forward()
    noise = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
    flat = [weight for group in weights for weight in group]
    gradients = iter(torch.autograd.grad(list(outputs), flat, noise))
    rates = []
    for group in weights:
        steps = [next(gradients) for _ in group]
        rates.append(float(_norm(steps) / _norm(group)))
    middle = math.exp(sum(map(math.log, rates)) / len(rates))
    factors = [math.sqrt(rate / middle) for rate in rates]
    so_far = 1.0
    with torch.no_grad():
        for group_of_layers, factor in zip(chain, factors, strict=True):
            so_far *= factor
            for layer in group_of_layers:
                layer.weight.mul_(factor)
                if layer.bias is not None:
                    layer.bias.mul_(so_far)
    return factors


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([tensor.detach().square().sum() for tensor in tensors]).sum().sqrt()
