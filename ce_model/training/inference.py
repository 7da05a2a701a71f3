"""A trained network at work: statistics of batch norm, predictions, filled images."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypedDict, Unpack

import torch
import torch.distributed
from torch import Tensor, nn

from ce_model import feature_targets
from ce_model.networks import NetworkConfig
from ce_model.pixels import network_input
from ce_model.pretexts.samples import Samples
from ce_model.training.distributed import unwrap
from ce_model.training.objective import Objective
from ce_model.training.precision import autocast
from ce_model.training.views import Views, make_views, predict_from

STATISTICS_BATCH = 32


STATISTICS_IMAGES = 256  # that batch norm's statistics are estimated from


class Computation(TypedDict):
    """Keyword arguments of all functions here: the network, its task, how it computes."""

    network: NetworkConfig
    objective: Objective
    dtype: torch.dtype


class Prediction(NamedTuple):
    """A prediction beside the truth, colours in [0, 1].

    Shape:
        prediction, target: float (B, 3, T, T); hole: bool (B, 1, T, T).
    """

    prediction: Tensor
    target: Tensor
    hole: Tensor


def dropout_shifts_statistics(generator: nn.Module) -> bool:
    """Whether batch norm sees other variances in training than in evaluation, for dropout's sake.

    Source: Li et al., "Understanding the Disharmony between Dropout and Batch Normalization by
    Variance Shift", CVPR 2019, arXiv:1801.05134.
    """
    layers = list(generator.modules())
    dropout = any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in layers)
    return dropout and any(isinstance(layer, nn.BatchNorm2d) for layer in layers)


@torch.no_grad()
def estimate_statistics(
    generator: nn.Module,
    image: Tensor,
    hidden: Tensor,
    **how: Unpack[Computation],
) -> None:
    """Running statistics of batch norm as evaluation needs them: today's weights, no dropout.

    They become the plain average over batches of 32 of these images; weights and mode stay.
    Shapes as in `train_step`.
    """
    # Here, since it loads the compiler of torch: two seconds that nobody who fills has to wait for.
    from ce_model.training.sync_norm import each_rank_alone

    with _evaluating(generator) as encoder, each_rank_alone(encoder):
        norms = [layer for layer in encoder.modules() if isinstance(layer, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # a plain average
        try:
            for start in range(0, len(image), STATISTICS_BATCH):
                part = slice(start, start + STATISTICS_BATCH)
                views = make_views(image[part], hidden[part], how["network"], how["objective"])
                with autocast(image.device, how["dtype"]):
                    predict_from(encoder, views)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


class CellPrediction(NamedTuple):
    """What preset features predicts of the hidden cells, beside the truth.

    Shape:
        prediction, target: float (N, D), N hidden cells, D = `target_channels`.
    """

    prediction: Tensor
    target: Tensor


@torch.no_grad()
def predict_cells(
    generator: nn.Module,
    image: Tensor,
    hidden: Tensor,
    **how: Unpack[Computation],
) -> CellPrediction:
    """Predict the hidden cells in evaluation mode. Shapes as in `train_step`."""
    views = make_views(image, hidden, how["network"], how["objective"])
    assert views.cells is not None
    with _evaluating(generator) as encoder, autocast(image.device, how["dtype"]):
        prediction = predict_from(encoder, views)
    found, target = (
        values.float().permute(0, 2, 3, 1)[views.cells] for values in (prediction, views.target)
    )
    return CellPrediction(found, target)


class Answers(NamedTuple):
    """What a sibling pretext answers, beside what it was asked.

    Shape:
        logits: float (B, Q, answers); samples: views and right answers.
    """

    logits: Tensor
    samples: Samples


@torch.no_grad()
def answer(
    generator: nn.Module,
    image: Tensor,
    hidden: Tensor,
    origin: Tensor,
    **how: Unpack[Computation],
) -> Answers:
    """Answer the questions of a sibling pretext in evaluation mode. Shapes as in `train_step`."""
    views = make_views(image, hidden, how["network"], how["objective"], origin)
    with _evaluating(generator) as network, autocast(image.device, how["dtype"]):
        logits = predict_from(network, views)
    return Answers(logits.float(), Samples(views.context, views.target))


@torch.no_grad()
def predict(
    generator: nn.Module,
    image: Tensor,
    hidden: Tensor,
    **how: Unpack[Computation],
) -> Prediction:
    """Predict in evaluation mode, for the metrics. Shapes as in `train_step`."""
    views = make_views(image, hidden, how["network"], how["objective"])
    with _evaluating(generator) as encoder, autocast(image.device, how["dtype"]):
        prediction = predict_from(encoder, views)
    if views.cells is not None:
        return _of_cells(prediction.float(), views, image, how["network"])
    prediction = prediction.float().add(1).div(2).clamp(0, 1)
    return Prediction(prediction, views.target.add(1).div(2), views.hole)


def _of_cells(
    prediction: Tensor, views: Views, image: Tensor, network: NetworkConfig
) -> Prediction:
    """A prediction of cells as colours (of hog as glyphs), the truth beside it in the same form."""
    truth = network_input(image)
    shown, target = (
        feature_targets.as_image(network.target, values, truth).add(1).div(2).clamp(0, 1)
        for values in (prediction, views.target)
    )
    assert views.cells is not None
    return Prediction(shown, target, feature_targets.whole_cells(views.cells).unsqueeze(1))


def fill(
    generator: nn.Module,
    image: Tensor,
    hidden: Tensor,
    **how: Unpack[Computation],
) -> Tensor:
    """The images with their holes filled in: uint8 (B, S, S, 3). Visible pixels stay the same.

    A network that takes any size (`networks.takes_any_size`) fills images of H x W px.
    """
    prediction, _, hole = predict(generator, image, hidden, **how)
    filled = image.clone()
    rows = _centred(prediction.shape[2], image.shape[1])
    columns = _centred(prediction.shape[3], image.shape[2])
    pixels = prediction.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    filled[:, rows, columns] = torch.where(
        hole.permute(0, 2, 3, 1), pixels, image[:, rows, columns]
    )
    return filled


def _centred(size: int, whole: int) -> slice:
    start = (whole - size) // 2
    return slice(start, start + size)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """The network without its wrapper, in evaluation mode for the block."""
    module = unwrap(network)
    was_training = module.training
    module.eval()
    try:
        yield module
    finally:
        module.train(was_training)
