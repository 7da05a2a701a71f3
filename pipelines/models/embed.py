"""Features of images by a trained encoder: one arithmetic for the Python face and for the job.

An image is brought to the network's side as for evaluation: the shorter side resized, the centre
square taken, no hole. Batch norm uses the statistics of the training.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ce_model.choices import Pool
from ce_model.pixels import network_input
from pipelines.data import images, untrusted
from pipelines.data.images import ImageArray
from pipelines.errors import UserError
from pipelines.models.files import LoadedModel

Features = NDArray[np.float32]
SMALLEST_NORM = 1e-12
MAX_PIXELS = 50_000_000  # far below a decompression bomb, far above a photograph


def layer_shapes(model: LoadedModel) -> dict[str, tuple[int, ...]]:
    """Shape of the features of one image by layer, first to last: (C, H, W) or (D,)."""
    blank = np.zeros((1, model.side, model.side, 3), np.uint8)
    return {name: tuple(found.shape[1:]) for name, found in _activations(model, blank).items()}


def require_layer(model: LoadedModel, layer: str | None) -> str:
    """The layer with its default, the last one, resolved.

    Raises:
        UserError: the encoder has no such layer.
    """
    names = list(layer_shapes(model))
    if layer is None:
        return names[-1]
    if layer not in names:
        raise UserError(f"layer is '{layer}'; preset {model.network.preset} has {', '.join(names)}")
    return layer


def width(model: LoadedModel, layer: str, pool: Pool) -> int:
    """Values per image."""
    shape = layer_shapes(model)[layer]
    return math.prod(shape if pool == "none" else shape[:1])


def open_square(data: bytes, side: int, max_pixels: int = MAX_PIXELS) -> ImageArray:
    """Encoded image -> uint8 (side, side, 3); a large JPEG is shrunk while it is decoded.

    Raises:
        untrusted.BadImage: the bytes are not an image that can be used.
    """
    limits = untrusted.Limits(max_pixels=max_pixels, enough_side=side)
    return images.square(untrusted.open_rgb(data, limits), side, side, 0.5, 0.5)


def squares(batch: Sequence[ImageArray], side: int) -> NDArray[np.uint8]:
    """Images of any sizes, uint8 (H, W, 3) each -> uint8 (N, side, side, 3)."""
    found = np.empty((len(batch), side, side, 3), np.uint8)
    for at, image in enumerate(batch):
        found[at] = images.square(image, side, side, 0.5, 0.5)
    return found


def embed_squares(
    model: LoadedModel, batch: NDArray[np.uint8], layer: str, pool: Pool, *, normalize: bool
) -> Features:
    """Features of images of the network's side.

    Args:
        model: on any device.
        batch: uint8 (N, S, S, 3), RGB.
        layer: one of `layer_shapes`.
        pool: what becomes of a map.
        normalize: to length 1, so that dot products are cosines; a zero vector stays zero.

    Returns:
        float32 (N, D).
    """
    found = _activations(model, batch)[layer]
    if found.ndim == 4 and pool != "none":
        found = found.mean((2, 3)) if pool == "mean" else found.amax((2, 3))
    found = found.flatten(1).float()
    if normalize:
        found = torch.nn.functional.normalize(found, dim=1, eps=SMALLEST_NORM)
    features: Features = found.cpu().numpy()
    return features


def _activations(model: LoadedModel, batch: NDArray[np.uint8]) -> dict[str, Tensor]:
    device = next(model.generator.parameters()).device
    x = network_input(torch.from_numpy(np.ascontiguousarray(batch)).to(device))
    with torch.inference_mode():
        return model.generator.encoder_features(x)
