"""What the encoder of a sibling pretext is asked, the head that answers, and the loss."""

from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ce_model.network_config import NetworkConfig
from ce_model.pretexts import exemplar, relative_position, transformation
from ce_model.pretexts.samples import Samples

WIDTH = 512  # of the head's layers


class Questions(NamedTuple):
    """What a pretext asks of an image."""

    names: tuple[str, ...]
    answers: int
    """Classes of each question, all equally likely."""
    views: int
    side: int
    """Of a view, px."""


def questions_of(network: NetworkConfig) -> Questions:
    """What the pretext of a network asks."""
    if network.pretext == "relative_position":
        answers = len(relative_position.POSITIONS)
        return Questions(("position",), answers, 2, relative_position.PATCH_PX)
    if network.pretext == "exemplar":
        return Questions(("image",), network.exemplar_classes, 1, exemplar.VIEW_PX)
    assert network.pretext == "transformation", "inpainting asks nothing"
    return Questions(transformation.QUESTIONS, transformation.BINS, 2, transformation.VIEW_PX)


def make_samples(network: NetworkConfig, image: Tensor, origin: Tensor) -> Samples:
    """Views of each image and the right answers.

    Shape:
        image: uint8 (B, S, S, 3), RGB; origin: int64 (B, 2), see `draws`.
    """
    if network.pretext == "relative_position":
        return relative_position.make_samples(image, origin)
    if network.pretext == "exemplar":
        return exemplar.make_samples(image, origin)
    return transformation.make_samples(image, origin)


class PretextHead(nn.Module):
    """From the last maps of all views of an image to the answers.

    One layer for each view with the same weights; of several views one layer on all of them; one
    layer that answers. They are normalised over their units, which needs no second image.

    Shape:
        maps: float (B * V, C, H, W), the views of an image beside each other; result: float
        (B, Q, answers), logits.
    """

    def __init__(self, asked: Questions, map_shape: tuple[int, ...]) -> None:
        """Build the layers; their weights are drawn by `networks.init_weights`.

        Args:
            asked: what is asked.
            map_shape: (C, H, W) of the last map of a view.
        """
        super().__init__()
        self.asked = asked
        layers = OrderedDict[str, nn.Module]()
        layers["flatten"] = nn.Flatten()
        layers["view"] = nn.Linear(torch.Size(map_shape).numel(), WIDTH)
        layers["norm_view"] = nn.LayerNorm(WIDTH)
        layers["relu_view"] = nn.ReLU(inplace=True)
        layers["together"] = nn.Unflatten(0, (-1, asked.views))
        layers["beside"] = nn.Flatten()
        if asked.views > 1:
            layers["mix"] = nn.Linear(asked.views * WIDTH, WIDTH)
            layers["norm_mix"] = nn.LayerNorm(WIDTH)
            layers["relu_mix"] = nn.ReLU(inplace=True)
        layers["answer"] = nn.Linear(WIDTH, len(asked.names) * asked.answers)
        layers["apart"] = nn.Unflatten(1, (len(asked.names), asked.answers))
        self.layers = nn.Sequential(layers)

    def forward(self, maps: Tensor) -> Tensor:
        """Answer every question."""
        answers: Tensor = self.layers(maps)
        return answers


def map_shape(encoder: nn.Module, side: int) -> tuple[int, ...]:
    """Shape (C, H, W) of the last map of an image; nothing is computed on the meta device."""
    weight = next(encoder.parameters())
    was_training = encoder.training
    with torch.no_grad():
        found = encoder.eval()(torch.zeros(1, 3, side, side, device=weight.device))
    encoder.train(was_training)
    return tuple(found.shape[1:])


def classification_loss(logits: Tensor, classes: Tensor, num_images: Tensor) -> Tensor:
    """Cross-entropy, summed over the questions and the images, over a number of images.

    Shape:
        logits: float (B, Q, answers); classes: int64 (B, Q); num_images, result: ().
    """
    summed = F.cross_entropy(logits.float().flatten(0, 1), classes.flatten(), reduction="sum")
    return summed / num_images


def is_right(logits: Tensor, classes: Tensor) -> Tensor:
    """Whether the likeliest answer is the right one: bool (B, Q). Shapes as before."""
    return logits.argmax(dim=2) == classes
