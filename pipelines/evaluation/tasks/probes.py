"""What frozen features know: a ridge probe and nearest neighbours, layer by layer.

Features are max-pooled to one budget of values per image (see `ce_model.transfer.pooled`) and
standardised on the training images. The ridge penalty is chosen on a fifth of the training
labels; nothing is fitted to the test split.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ce_model.networks import input_side, layer_features
from ce_model.transfer import metrics
from ce_model.transfer.heads import pool_features
from pipelines.errors import UserError
from pipelines.evaluation import encoders
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.data.images import ImageSet, pick_evenly, read_images, read_labels
from pipelines.evaluation.results import Measured, Row
from pipelines.evaluation.settings import ProbeSettings, percent, settings_in_key
from pipelines.evaluation.task import EvaluationTask, Job, Tell, silent
from pipelines.evaluation.tasks.head_training import split_off

CALIBRATION_IMAGES = 256
PENALTIES = (1e1, 1e2, 1e3, 1e4, 1e5)

Features = dict[str, NDArray[np.float32]]


class Split(NamedTuple):
    """Features of one split."""

    features: Features
    labels: NDArray[np.int64]


def calibration(images: ImageSet, side: int) -> list[torch.Tensor]:
    """Batches of training images, evenly spaced, that every encoder is calibrated on."""
    return list(images.take(pick_evenly(len(images), CALIBRATION_IMAGES)).batches(side, 64))


def extract(
    encoder: nn.Module,
    images: ImageSet,
    side: int,
    values: int,
    dtype: torch.dtype,
    tell: Tell = silent,
) -> Features:
    """Pooled features (N, D) by layer; `tell` hears of each batch."""
    place = encoders.device()
    encoder = encoder.to(place)
    rows: dict[str, list[NDArray[np.float32]]] = {}
    seen = 0
    with torch.inference_mode(), torch.autocast(place.type, dtype, dtype != torch.float32):
        for batch in images.batches(side):
            tell(f"features of image {seen:,}/{len(images):,}")
            seen += len(batch)
            for name, features in layer_features(encoder, batch.to(place)).items():
                found = pool_features(features.float(), values).cpu().numpy()
                rows.setdefault(name, []).append(found)
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def require_labels(labels: NDArray[np.int64], task: str, data: str) -> None:
    """Refuse images without classes (-1), and a single class."""
    known = len(np.unique(labels[labels >= 0]))
    if (labels < 0).any() or known < 2:
        raise UserError(
            f"task '{task}' needs labels of at least 2 classes for every image; '{data}' has "
            f"{known} and {int((labels < 0).sum())} images without a label: leave the task out, "
            "or give class folders (train/<class>/, val/<class>/) or a dataset prepared from them"
        )


def require_labelled(uri: str, limits: tuple[int, int], task: str) -> None:
    """Refuse data whose first training and validation images have no labels."""
    for split, limit in zip(("train", "val"), limits, strict=True):
        require_labels(read_labels(uri, split, limit), task, uri)


def read_labelled(uri: str, limits: tuple[int, int], task: str) -> tuple[ImageSet, ImageSet]:
    """The first training and validation images, all with labels."""
    train, test = (
        read_images(uri, split, limit)
        for split, limit in zip(("train", "val"), limits, strict=True)
    )
    for part in (train, test):
        require_labels(part.labels, task, uri)
    return train, test


def linear(
    train: Split,
    test: Split,
    classes: int,
    settings: ProbeSettings,
    seed: int,
    tell: Tell = silent,
) -> Measured:
    """Accuracy of a ridge classifier for every layer and share of labels; `tell` hears of each."""
    rows: list[Row] = []
    chosen: dict[str, float] = {}
    for share in settings.label_shares:
        seen = some_labels(train.labels, share, seed)
        for layer, features in train.features.items():
            tell(f"probe of {layer}, {percent(share)} of the labels")
            x, mean, deviation = _standardised(features[seen])
            y = np.eye(classes)[train.labels[seen]]
            penalty = _choose_penalty(x, y, seed)
            model = metrics.ridge(x, y, [penalty])[0]
            guess = model((test.features[layer] - mean) / deviation).argmax(1)
            accuracy = float((guess == test.labels).mean())
            rows.append({"layer": layer, "labels": percent(share), "accuracy": accuracy})
            chosen[f"{layer}, {percent(share)}"] = penalty
    notes = {"settings": settings_in_key(settings), "penalty": chosen}
    return Measured(rows, {**notes, "images": _sizes(train, test)}, {})


def neighbours(train: Split, test: Split, settings: ProbeSettings) -> Measured:
    """Accuracy of the vote of the k nearest training images by cosine, for every layer."""
    rows: list[Row] = []
    k = min(settings.k, len(train.labels))
    for layer, features in train.features.items():
        x, mean, deviation = _standardised(features)
        queries = (test.features[layer] - mean) / deviation
        guess = metrics.neighbour_vote(queries, x, train.labels, k)
        rows.append({"layer": layer, "accuracy": float((guess == test.labels).mean())})
    return Measured(
        rows, {"settings": settings_in_key(settings), "images": _sizes(train, test)}, {}
    )


def _sizes(train: Split, test: Split) -> str:
    return f"{len(train.labels)} to train on, {len(test.labels)} to score"


def some_labels(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Numbers of a share of the images, the same share of every class, at least one each."""
    if share == 1:
        return np.arange(len(labels))
    generator = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == label))
        chosen.append(places[: max(1, round(share * len(places)))])
    return np.sort(np.concatenate(chosen))


def _standardised(
    features: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    x = features.astype(np.float64)
    mean, deviation = x.mean(0), x.std(0)
    deviation[deviation < 1e-6 * max(float(deviation.max()), 1e-30)] = np.inf  # dead features
    return (x - mean) / deviation, mean, deviation


def _choose_penalty(x: NDArray[np.float64], y: NDArray[np.float64], seed: int) -> float:
    """The penalty with the best accuracy on the held-out fifth; of equals the larger."""
    fit, held = split_off(len(x), seed)
    truth = y[held].argmax(1)
    tried = metrics.ridge(x[fit], y[fit], PENALTIES)
    accuracy = [float((model(x[held]).argmax(1) == truth).mean()) for model in tried]
    return max(zip(accuracy, PENALTIES, strict=True))[1]


def _limits(config: EvaluateConfig) -> tuple[int, int]:
    return config.frozen.train_images, config.frozen.test_images


def _require_data(task: str, uri: str, config: EvaluateConfig) -> None:
    require_labelled(uri, _limits(config), task)


def _measure_job(job: Job, config: EvaluateConfig, dtype: torch.dtype) -> Measured:
    assert job.subject is not None
    train, test = read_labelled(job.data_uri, _limits(config), job.task)
    settings = config.frozen
    side = settings.side or input_side(job.subject.network)
    calibrated = settings.batch_norm == "calibrated"
    encoder = encoders.encoder_of(
        job.subject, job.seed, calibration(train, side), calibrated=calibrated
    )
    known, requested = (
        Split(extract(encoder, part, side, settings.values, dtype, job.tell), part.labels)
        for part in (train, test)
    )
    if job.task == "knn":
        return neighbours(known, requested, settings)
    return linear(known, requested, len(train.classes), settings, job.seed, job.tell)


LINEAR = EvaluationTask(
    name="linear",
    settings="frozen",
    measure=_measure_job,
    tables=("labels",),
    across="layer",
    main="accuracy of the best layer",
    require_data=partial(_require_data, "linear"),
    probe_side=lambda config: config.frozen.side,
)
KNN = replace(LINEAR, name="knn", tables=(), require_data=partial(_require_data, "knn"))
