"""Filters that are centres of k-means over what a layer reads: good ones before any training.

Source: Coates and Ng, "Learning Feature Representations with K-means", 2012; layer by layer in
Kraehenbuhl et al., "Data-dependent Initializations of Convolutional Neural Networks", ICLR 2016,
arXiv:1511.06856, section 3.1.
"""

import copy
from contextlib import suppress
from itertools import islice

import torch
from torch import Tensor, nn

Weighted = nn.Conv2d | nn.Linear

PATCHES = 4000
ROUNDS = 10
LEAST_CONTRAST = 1e-4  # norm of a patch less its mean
WHITENED_VALUES = 512  # patches with more values than this have too few samples for a covariance


@torch.no_grad()
def first_filters(
    encoder: nn.Module, images: Tensor, layers: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Weights with which the first convolutions of an encoder may begin its training.

    A layer reads what those before it, with their new filters and batch norm over these images,
    make of the images. Its weights keep their norm, and so the pace at which they learn.

    Args:
        encoder: its convolutions stand in the order in which it uses them; it stays as it is.
        images: float (B, 3, S, S) in [-1, 1].
        layers: convolutions to draw filters for, from the first on.
        generator: the only source of randomness.

    Returns:
        New weights by their names in the encoder.
    """
    found: dict[str, Tensor] = {}
    network = copy.deepcopy(encoder).train()

    def draw(name: str, layer: nn.Conv2d, x: Tensor) -> None:
        filters = filters_for(layer, x, generator)
        found[name] = filters * (layer.weight.norm() / filters.norm())
        layer.weight.copy_(found[name])
        if len(found) == layers:
            raise _Drawn

    convolutions = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    for name, layer in islice(convolutions, layers):
        layer.register_forward_pre_hook(
            lambda layer, inputs, name=name: draw(f"{name}.weight", layer, inputs[0])
        )
    with suppress(_Drawn):
        network(images)
    return found


class _Drawn(Exception):
    """Ends a pass behind the last layer that it is for."""


def filters_for(layer: Weighted, x: Tensor, generator: torch.Generator) -> Tensor:
    """Centres of spherical k-means over the patches a layer reads, as its weights.

    Small patches (conv1) are whitened first, as Coates and Ng do; with groups, the first group's
    patches serve all. Patches of one value, as of a white background, say nothing and are left out.
    """
    patches = _patches(layer, x, generator)
    patches = patches - patches.mean(1, keepdim=True)
    contrast = patches.norm(dim=1, keepdim=True)
    patches = (patches / contrast)[contrast.squeeze(1) > LEAST_CONTRAST]
    small = patches.shape[1] <= WHITENED_VALUES
    whitening = _whitening(patches) if small and len(patches) else None
    points = patches if whitening is None else patches @ whitening
    points = points / points.norm(dim=1, keepdim=True).clamp_min(1e-6)
    count = layer.weight.shape[0]
    chosen = torch.randperm(len(points), generator=generator)[:count]
    if len(chosen) < count:  # few patches that say something: fill up with noise directions
        extra = torch.randn(count - len(chosen), points.shape[1], generator=generator)
        centers = torch.cat([points[chosen], extra / extra.norm(dim=1, keepdim=True)])
    else:
        centers = points[chosen]
    for _ in range(ROUNDS):
        nearest = (points @ centers.T).argmax(1)
        sums = torch.zeros_like(centers).index_add_(0, nearest, points)
        lengths = sums.norm(dim=1, keepdim=True)
        centers = torch.where(lengths > 0, sums / lengths.clamp_min(1e-12), centers)
    filters = centers if whitening is None else centers @ whitening.T
    return filters.view(layer.weight.shape)


def _patches(layer: Weighted, x: Tensor, generator: torch.Generator) -> Tensor:
    """float (at most PATCHES, values of one filter): what the layer reads, at random."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])[:PATCHES].float()
    down, across = layer.kernel_size
    x = x[:, : layer.weight.shape[1]].float()
    each = -(-PATCHES // len(x))
    found = []
    for image in x:
        tops = torch.randint(image.shape[1] - down + 1, (each,), generator=generator).tolist()
        lefts = torch.randint(image.shape[2] - across + 1, (each,), generator=generator).tolist()
        for top, left in zip(tops, lefts, strict=True):
            found.append(image[:, top : top + down, left : left + across].flatten())
    return torch.stack(found)[:PATCHES]


def _whitening(points: Tensor) -> Tensor:
    """ZCA matrix of the points, regularised."""
    centered = points - points.mean(0)
    values, vectors = torch.linalg.eigh(centered.T @ centered / len(points))
    scale = (values.clamp_min(0) + 0.1 * values.mean()).rsqrt()
    matrix: Tensor = vectors * scale @ vectors.T
    return matrix
